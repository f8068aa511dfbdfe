"""docs/reproductions.md: every row of ``reproductions.py``, with the recorded results of ``benchmarks.reproduce``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.common import files
from benchmarks.common.files import ROOT
from benchmarks.common.markdown import table
from benchmarks.reproduce import records
from benchmarks.reproduce.records import Record, number
from benchmarks.reproduce.reproductions import GROUPS, SOURCES
from benchmarks.reproduce.rows import Figure, Group, Published, Row

PAGE = ROOT / "docs" / "reproductions.md"
HEAD = ("run", "figure", "published", "goal", "ours", "seeds", "steps", "time", "per second", "of")
ABOUT = """\
# Reproductions

Generated from [benchmarks/results/reproductions.json](../benchmarks/results/reproductions.json) by
`python -m benchmarks.report benchmarks/results/reproductions.json --markdown docs/reproductions.md`; not to be edited.
`python -m benchmarks.reproduce NAME --seeds 10` runs a row and adds its results; `--list` shows the cost of each.

*ours* is the mean over the seeds that finished ± the sample standard deviation (smallest to largest). *seeds* counts
those that reached the goal, of those that were run; a seed that diverged or failed has not reached it. No seed was
restarted unless *restarts* are shown. *time* is the training time of one seed, without validation. A run on another
machine, or with further settings, has a separate line; of several records the latest is shown."""


def write(records_file: Path, page: Path) -> None:
    files.write(page, render(records.load(records_file)))


def render(recorded: list[Record], groups: Iterable[Group] = GROUPS) -> str:
    """The page."""
    shown = records.latest(recorded)
    rows = [row.name for group in groups for row in group.rows]
    lost = sorted({record["name"] for record in shown} - set(rows))
    shown = [record for name in rows for record in shown if record["name"] == name]
    marks = {records.identity(record): f"R{i}" for i, record in enumerate(shown, 1)}
    parts = [ABOUT]
    for group in groups:
        lines = [line for row in group.rows for line in row_lines(row, shown, marks)]
        parts += [f"## {group.title}", group.about, table(HEAD, lines)]
    if shown:
        parts += [
            "## Where and how",
            "\n".join(run_section(record, marks[records.identity(record)]) for record in shown),
        ]
    used = {
        each.source for group in groups for row in group.rows for figure in row.figures for each in figure.published
    }
    if used:
        parts += ["## Sources", "\n".join(source_text(name) for name in SOURCES if name in used)]
    if lost:
        parts.append(f"Recorded, but not rows any more: {', '.join(lost)}.")
    return "\n\n".join(parts) + "\n"


def row_lines(row: Row, shown: list[Record], marks: dict[tuple[str, ...], str]) -> Iterator[list[str]]:
    """One line per metric: of the row itself, run or not, and of every run with other settings."""
    matches = [record for record in shown if record["name"] == row.name]
    plain = [record for record in matches if not records.variant(record)]
    if not plain:
        yield from unrun_lines(row)
    for record in [*plain, *(record for record in matches if records.variant(record))]:
        yield from record_lines(row, record, marks[records.identity(record)])


def unrun_lines(row: Row) -> Iterator[list[str]]:
    for i, figure in enumerate(row.figures):
        status = f"not run: needs {row.needs}" if i == 0 else "not run"
        yield [*head_cells(row, [], figure, i), status, "", "", "", "", ""]


def record_lines(row: Row, record: Record, mark: str) -> Iterator[list[str]]:
    by_key = {figure["key"]: figure for figure in record["figures"]}
    for i, figure in enumerate(row.figures):
        summary = by_key.get(figure.key)
        if summary is None:  # the metric was added to the row after the run
            yield [*head_cells(row, records.variant(record), figure, i), "not recorded", "", "", "", "", mark]
            continue
        costs = [mean(record, "steps"), duration(record), rate(record)] if i == 0 else ["", "", ""]
        reached = f"{reached_seeds(record, figure, by_key)} of {summary['seeds']}" if figure.goal is not None else ""
        seeds = reached or f"{summary['seeds']}"
        yield [
            *head_cells(row, records.variant(record), figure, i),
            spread(summary["ours"]),
            seeds + (asides(record) if i == 0 else ""),
            *costs,
            mark,
        ]


def reached_seeds(record: Record, figure: Figure, by_key: dict[str, Record]) -> int:
    """The verdict by the goal in the table, which may differ from the one at the time of the run."""
    if by_key[figure.key]["goal"] == figure.goal:
        return int(by_key[figure.key]["reached"])
    last = [seed["attempts"][-1].get("figures", {}) for seed in record["seeds"]]
    return sum(figure.reached(figures.get(figure.key)) for figures in last)


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


def spread(ours: dict[str, float] | None) -> str:
    if ours is None:
        return "no figure"
    if ours["std"] is None:
        return f"**{number(ours['mean'])}**"
    return f"**{number(ours['mean'])}** ± {number(ours['std'])} ({number(ours['min'])} to {number(ours['max'])})"


def asides(record: Record) -> str:
    """A note about seeds that diverged or failed."""
    statuses = [seed["status"] for seed in record["seeds"]]
    notes = [f"{statuses.count(status)} {status}" for status in ("diverged", "failed") if status in statuses]
    restarts = sum(seed["restarts"] for seed in record["seeds"])
    notes += [f"{restarts} restarts"] if record["restarts_allowed"] else []
    notes += [f"stopped early, of {record['seeds_asked']}"] if len(statuses) < record["seeds_asked"] else []
    return f" ({', '.join(notes)})" if notes else ""


def mean(record: Record, key: str) -> str:
    return f"{record[key]['mean']:,.0f}" if record[key] else ""


def duration(record: Record) -> str:
    if not record["seconds"]:
        return ""
    seconds = record["seconds"]["mean"]
    if seconds < 600:
        return f"{seconds:,.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 3 * 3600 else f"{seconds / 3600:,.1f} h"


def rate(record: Record) -> str:
    return f"{mean(record, 'tokens_per_second')} {record['unit']}" if record["tokens_per_second"] else ""


def run_section(record: Record, mark: str) -> str:
    """The provenance of a record."""
    machine = record["machine"]
    gpu = [f"GPU {machine['device']}"] if machine["device"] not in (None, "cpu") else []
    threads = [f"{record['threads']} threads"] if record["threads"] else []
    parts = [machine["processor"], *gpu, *threads, f"torch {machine['torch']}"]
    if machine.get("load") is not None:
        parts.append(f"load {machine['load']:g} before")
    command = " ".join([*(f"{name}={value}" for name, value in record["environment"].items()), record["command"]])
    numbers = ", ".join(str(seed["seed"]) for seed in record["seeds"])
    return (
        f"- {mark}: `{command}`, seeds {numbers}; {'; '.join(parts)}; commit {record['commit']}, {record['date'][:10]}"
    )


def source_text(name: str) -> str:
    words, address = SOURCES[name]
    return f"- {name}: {words}" + (f", <{address}>" if address else "")
