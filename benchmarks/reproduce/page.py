"""docs/reproductions.md: every row of ``reproductions.py``, with what ``benchmarks.reproduce`` has recorded of it."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.common import files
from benchmarks.common.files import ROOT
from benchmarks.common.markdown import table
from benchmarks.reproduce import parked, picture, records, settings
from benchmarks.reproduce.records import Entry, Series, number
from benchmarks.reproduce.reproductions import GROUPS, SOURCES
from benchmarks.reproduce.rows import Figure, Group, Published, Row
from benchmarks.reproduce.seeds import DIVERGED, FAILED

PAGE = ROOT / "docs" / "reproductions.md"
HEAD = ("run", "figure", "published", "goal", "ours", "seeds", "steps", "time", "per second", "of")
ABOUT = """\
# Reproductions

Generated from [benchmarks/results/reproductions](../benchmarks/results/reproductions) by
`python -m benchmarks.report benchmarks/results/reproductions --markdown docs/reproductions.md`; not to be edited.
`python -m benchmarks.reproduce NAME` runs a row and adds its results; `--list` shows what each costs, and
`--all --budget 2h --resume` runs what is missing, the shortest first.

*ours* is the mean over the seeds that finished ± the sample standard deviation (smallest to largest). *seeds* counts
those that reached the goal, of those that were run; a seed that diverged or failed has not reached it. No seed was
restarted unless *restarts* are shown. *time* is the training time of one seed, without validation. A figure is *stale*
if a setting of its row has changed since. A run with further settings has a separate line."""


class Line(NamedTuple):
    """A row, or one with further settings, as it is shown."""

    row: Row
    series: Series | None  # None: not run
    mark: str  # such as R1
    changes: list[str]  # in its settings, since the run
    progress: dict[int, int]  # by seed, the step of runs of the row itself that were stopped


def write(folder: Path | None = None, page: Path | None = None) -> None:
    """Write the page and the pictures next to it."""
    page = page or PAGE
    lines = shown(folder or records.FOLDER)
    files.write(page, render(lines))
    for group in GROUPS:
        picture.draw(group, current(lines, group), page.with_name(picture.name_of(group)))


def shown(folder: Path, groups: Iterable[Group] = GROUPS) -> list[Line]:
    """The lines of the page: of each row that itself, run or not, and then those with other settings."""
    lines: list[Line] = []
    for row in (row for group in groups for row in group.rows):
        found = records.load(folder, row.name)
        plain = [each for each in found if not records.variant(each)]
        others = [each for each in found if records.variant(each)]
        progress = parked.progress(folder / row.name, row.overrides)
        for series in [*(plain or [None]), *others]:
            if series is None:
                lines.append(Line(row, None, "", [], progress))
                continue
            changed = settings.changes(series["settings"], settings.resolved([*row.overrides, *series["overrides"]]))
            mark = f"R{sum(line.series is not None for line in lines) + 1}"
            lines.append(Line(row, series, mark, changed, {} if records.variant(series) else progress))
    return lines


def current(lines: Iterable[Line], group: Group) -> dict[str, Series]:
    """The series of the group's rows with today's settings, by name; of several devices the last."""
    return {
        line.row.name: line.series
        for line in lines
        if line.series is not None and line.row in group.rows and not line.changes and not records.variant(line.series)
    }


def render(lines: Sequence[Line], groups: Iterable[Group] = GROUPS) -> str:
    """The page."""
    groups = list(groups)
    parts = [ABOUT]
    for group in groups:
        mine = [line for line in lines if line.row in group.rows]
        parts += [f"## {group.title}", group.about]
        if picture.can_be_drawn(group, current(lines, group)):
            parts.append(f"![{group.title}: published figures and ours]({picture.name_of(group)})")
        parts.append(table(HEAD, [cells for line in mine for cells in line_cells(line)]))
        if differences := differing(group):
            parts += ["What differs from the published runs:", differences]
    recorded = [line for line in lines if line.series is not None]
    if recorded:
        parts += ["## Where and how", "\n".join(map(run_section, recorded))]
    used = {
        each.source for group in groups for row in group.rows for figure in row.figures for each in figure.published
    }
    if used:
        parts += ["## Sources", "\n".join(source_text(name) for name in SOURCES if name in used)]
    return "\n\n".join(parts) + "\n"


def differing(group: Group) -> str:
    """A line for each row, or for several of which the same is said."""
    names: dict[str, list[str]] = {}
    for row in group.rows:
        if row.differs:
            names.setdefault(row.differs, []).append(f"`{row.name}`")
    return "\n".join(f"- {', '.join(rows)}: {words}" for words, rows in names.items())


def line_cells(line: Line) -> Iterator[list[str]]:
    """One line of the table per metric."""
    row, series = line.row, line.series
    if series is None:
        unfinished = f"not finished ({reached_steps(line)})" if line.progress else "not run"
        for i, figure in enumerate(row.figures):
            status = f"{unfinished}: needs {row.needs}" if i == 0 else unfinished
            yield [*head_cells(row, [], figure, i), status, "", "", "", "", ""]
        return
    stale = f" (stale: {', '.join(line.changes)})" if line.changes else ""
    for i, figure in enumerate(row.figures):
        if not any(figure.key in entry["figures"] for entry in records.finished(series)) and records.finished(series):
            # the metric was added to the row after the run
            words = f"not recorded{stale}"
            yield [*head_cells(row, records.variant(series), figure, i), words, "", "", "", "", line.mark]
            continue
        costs = [steps(series), duration(series), rate(series)] if i == 0 else ["", "", ""]
        total = len(series["seeds"])
        seeds = f"{reached(series, figure)} of {total}" if figure.goal is not None else f"{total}"
        yield [
            *head_cells(row, records.variant(series), figure, i),
            spread(records.values(series, figure)) + stale,
            seeds + (asides(line) if i == 0 else ""),
            *costs,
            line.mark,
        ]


def reached_steps(line: Line) -> str:
    return ", ".join(f"seed {seed} at step {step:,}" for seed, step in line.progress.items())


def reached(series: Series, figure: Figure) -> int:
    return sum(figure.reached(entry["figures"].get(figure.key)) for entry in records.finished(series))


def head_cells(row: Row, variant: list[str], figure: Figure, i: int) -> list[str]:
    """The cells of a row before its results: the preset, and the published value and goal of one metric."""
    name = f"`{row.name}`: {row.title}" if not variant else f"`{row.name}` with `{' '.join(variant)}`"
    published = "; ".join(map(published_text, figure.published)) or "none"
    sign = "≥" if figure.better == "higher" else "≤"
    return [
        name if i == 0 else "",
        figure.what,
        published,
        "" if figure.goal is None else f"{sign} {figure.goal:,.10g}",
    ]


def published_text(published: Published) -> str:
    words = [f"{published.value:,.10g}"] if published.value is not None else []
    note = f", {published.note}" if published.note else ""
    return " ".join([*words, f"({published.source}{note})"])


def spread(found: Sequence[float]) -> str:
    if not found:
        return "no figure"
    mean = f"**{number(statistics.fmean(found))}**"
    if len(found) == 1:
        return mean
    return f"{mean} ± {number(statistics.stdev(found))} ({number(min(found))} to {number(max(found))})"


def asides(line: Line) -> str:
    """A note about seeds that diverged, failed, were restarted, are missing, or are others than the row's."""
    assert line.series is not None
    seeds = line.series["seeds"]
    recorded = {entry["seed"] for entry in seeds}
    statuses = [entry["status"] for entry in seeds]
    notes = [f"{statuses.count(status)} {status}" for status in (DIVERGED, FAILED) if status in statuses]
    restarts = sum(len(entry.get("restarted", [])) for entry in seeds)
    notes += [f"{restarts} restarts"] if line.series["restarts"] else []
    if not records.variant(line.series):
        missing, others = set(line.row.seeds) - recorded, recorded - set(line.row.seeds)
        notes += [f"{len(missing)} not run"] if missing else []
        notes += [reached_steps(line)] if line.progress else []
        notes += [f"{len(others)} not among the row's"] if others else []
    return f" ({', '.join(notes)})" if notes else ""


def mean_of(series: Series, key: str) -> float | None:
    """The mean over the seeds that finished."""
    found = [entry[key] for entry in records.finished(series) if entry.get(key) is not None]
    return statistics.fmean(found) if found else None


def steps(series: Series) -> str:
    mean = mean_of(series, "steps")
    return "" if mean is None else f"{mean:,.0f}"


def duration(series: Series) -> str:
    seconds = mean_of(series, "seconds")
    if seconds is None:
        return ""
    if seconds < 600:
        return f"{seconds:,.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 3 * 3600 else f"{seconds / 3600:,.1f} h"


def rate(series: Series) -> str:
    mean = mean_of(series, "tokens_per_second")
    return "" if mean is None else f"{mean:,.0f} {records.finished(series)[0]['unit']}"


def run_section(line: Line) -> str:
    """The exact command of a line, its seeds, and where and when they were run."""
    row, series = line.row, line.series
    assert series is not None
    entries: list[Entry] = series["seeds"]
    segments = [segment for entry in entries for segment in (*entry.get("segments", []), entry)]
    switches = [f"{name}={value}" for name, value in series["environment"].items()]
    command = ["prnn-train", *row.overrides, *series["overrides"], "seed=SEED"]
    gpu = [f"GPU {series['device']}"] if series["device"] not in (None, "cpu") else []
    threads = listed(f"{entry['threads']}" for entry in entries if entry.get("threads"))
    loads = [entry["load"] for entry in entries if entry.get("load") is not None]
    parts = [
        listed((segment["processor"] for segment in segments), "; "),
        *gpu,
        f"{threads} threads" if threads != "1" else "1 thread",
        f"torch {listed(segment['torch'] for segment in segments)}",
        *([f"load {statistics.median(loads):.3g} before"] if loads else []),
        f"commit {listed(segment['commit'] or 'unknown' for segment in segments)}",
        listed(segment["date"][:10] for segment in segments),
        *dict.fromkeys(
            f"{name.upper()} {signature}"
            for entry in records.finished(series)
            for name, signature in entry.get("signatures", {}).items()
        ),
    ]
    numbers = ", ".join(str(entry["seed"]) for entry in entries)
    return f"- {line.mark}: `{shlex.join([*switches, *command])}`, seeds {numbers}; {'; '.join(parts)}"


def listed(words: Iterable[str], separator: str = ", ") -> str:
    """Each of them once."""
    return separator.join(dict.fromkeys(words))


def source_text(name: str) -> str:
    words, address = SOURCES[name]
    return f"- {name}: {words}" + (f", <{address}>" if address else "")
