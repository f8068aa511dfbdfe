"""All of one run as text: state, figures, settings, checkpoints, the last sample, and commands to paste."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from prnn import command_line
from prnn.error_messages import binary
from prnn.errors import UserError
from prnn.manage import listing, text
from prnn.manage.text import Table
from prnn.reporting import runs, tables
from prnn.training import checkpoint, limits, run_dir, run_names
from prnn.training.observe import run_state
from prnn.training.observe.record_reader import damage

_SAMPLED = ("char_lm", "translation")  # the tasks that prnn-sample takes; the tasks themselves would import torch
_WITHOUT_END = ("running", "stalled", "killed")  # whose last heartbeat tells more than the state


def lines(path: Path) -> list[str]:
    """The lines about the run in ``path``. Raises ``UserError`` if its record cannot be read."""
    run, cwd = runs.load(path), Path.cwd()
    name = run_dir.short_name(path, cwd)
    found = listing.entry(path, name)
    figures = {
        "run": name,
        "directory": str(path),
        "task": found.task,
        **{key: cell.text for key, cell in tables.overview(run).items()},
    }
    figures |= {"size": binary(found.size), **(_heartbeat(path) if found.state.name in _WITHOUT_END else {})}
    sections = [("", text.fields({key: value for key, value in figures.items() if value != text.NOTHING}))]
    sections += [
        ("settings", _settings(run)),
        ("checkpoints", text.lines(_checkpoints(path), right=("step", "size")) if checkpoint.listing(path) else []),
        ("test", [f"{key}  {value}" for key, value in _test(run).items()]),
        ("made with", text.fields(_versions(run))),
        ("last sample", [str(each["text"]) for each in run.of_kind("sample")[-1:] if each.get("text")]),
        ("commands", _commands(path, name, found, run)),
    ]
    said = [line for title, inside in sections if inside for line in (*([f"\n{title}:"] if title else []), *inside)]
    return [*said, *([f"\n{damage(run.damaged, run.records.path)}"] if run.damaged else [])]


def _settings(run: runs.Run) -> list[str]:
    """The overrides, which are the settings that differ from the defaults."""
    typed = [each for each in run.overrides if each.partition("=")[0] not in ("resume", "run_dir")]
    return typed or (["the defaults"] if run.config else [])


def _heartbeat(path: Path) -> dict[str, str]:
    last = run_state.heartbeat(path)
    if not last:
        return {}
    where = f"step {int(last['step']):,}, {last['phase']}, {run_names.ago(time.time() - last['time'])}"
    return {"last heartbeat": f"{where}, process {int(last['pid'])} on {last['host']}"}


def _checkpoints(path: Path) -> Table:
    best, found = checkpoint.best_name(path), checkpoint.listing(path)
    rows = []
    for each in found:
        step = checkpoint.step_of(each)
        marks = [
            word for word, true in (("last", each == found[-1]), ("best", checkpoint.name_of(step) == best)) if true
        ]
        rows.append([f"{step:,}", binary(listing.size(each)), _written(each), ", ".join(marks)])
    return Table(["step", "size", "written", ""], rows)


def _written(path: Path) -> str:
    try:
        return run_names.ago(time.time() - path.stat().st_mtime)
    except OSError:  # removed meanwhile
        return "–"


def _test(run: runs.Run) -> dict[str, str]:
    return {row[0]: row[1] for row in Table.of(tables.tests([run])).rows}


def _versions(run: runs.Run) -> dict[str, str]:
    return {name: value for name, value in Table.of(tables.made_with([run])).rows if name != "directory"}


def _commands(path: Path, name: str, found: listing.Entry, run: runs.Run) -> list[str]:
    """What can be done with the run next."""
    if found.state.active:
        return [command_line.shell("prnn-runs", "tail", f"run={name}")]
    commands = []
    if checkpoint.listing(path):
        resume = command_line.override("resume", name)
        limit = (
            limits.beyond(found.state.detail, run.settings().get, found.steps) if found.state.name == "done" else None
        )
        commands.append(command_line.shell("prnn-train", resume, *([limit[1]] if limit else [])))
        if found.task in _SAMPLED:
            commands.append(command_line.shell("prnn-sample", f"run={name}"))
    if runs.has_begun(path):
        commands.append(command_line.shell("prnn-report", f"run={name}"))
    return commands


def comparison(names: Iterable[str], root: Path, width: int | None) -> list[str]:
    """Key figures of several runs side by side, and the settings in which they differ."""
    loaded = [runs.load(each.path) for each in listing.named(names, root)]
    if len(loaded) < 2:
        raise UserError("compare needs several runs: give run=A,B, or the folder of a sweep.")
    for each in loaded:  # shorter than the two components of a page's labels, where that is a name too
        each.label = run_dir.short_name(each.path, Path.cwd())
    different = tables.differences(loaded)
    parts = [("", tables.details(loaded)), ("tests", tables.tests(loaded))]
    parts += [("settings that differ", different)] if different is not None else []
    said = []
    for title, of_report in parts:
        if (table := Table.of(of_report)).rows:
            said += [*([f"\n{title}:"] if title else []), *_fitting(table, width)]
    return said


def _fitting(table: Table, width: int | None) -> list[str]:
    wide = text.lines(table)
    return wide if width is None or max(map(len, wide)) <= width else text.stacked(table)
