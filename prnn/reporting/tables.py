"""The page's tables: results of the runs, their environment, and the settings in which they differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prnn.config import written
from prnn.reporting import words
from prnn.reporting.numbers import duration, exact
from prnn.reporting.runs import Run
from prnn.training import checkpoint
from prnn.training.observe.record_reader import number
from prnn.training.observe.run_state import State


@dataclass(frozen=True)
class Cell:
    """A cell's text, and the number it is sorted by."""

    text: str
    value: float | None = None


@dataclass
class Table:
    """A header and rows of cells; the first column is the row header. ``runs``: the page's index of the run that each
    row is about, or, with ``across``, each column but the first.
    """

    head: list[str]
    rows: list[list[Cell]]
    runs: list[int] = field(default_factory=list)
    across: bool = False


_MAIN = ("task", "state", "best validation loss", "at step", "training loss", "steps", "training time",
         "tokens per second", "parameters")  # fmt: skip


def overview(run: Run, unit: str | None = None) -> dict[str, Cell]:
    """Key figures of a run, by name. From its summary if that is up to date, else from its record.

    ``unit`` is the name of its tokens, its own if left out.
    """
    unit = unit or run.unit
    summary = run.summary if run.finished else {}
    steps, losses = run.known("val", "loss")
    best = int(losses.argmin()) if len(losses) else None
    last_train = run.latest("train")
    speed, trained = _last(run, "train", "tokens_per_second"), _last(run, "train", "loss")
    seconds = number(summary.get("seconds", last_train.get("seconds")))
    return {
        "state": Cell(_state(run.state)),
        "best validation loss": _cell(None if best is None else losses[best].item()),
        "at step": _cell(None if best is None else int(steps[best])),
        "last validation loss": _cell(_last(run, "val", "loss")),
        "training loss": _cell(trained),
        "steps": _cell(max(run.last_step, checkpoint.last_step(run.path))),
        "epochs": _cell(summary.get("epochs", last_train.get("epoch"))),
        unit: _cell(summary.get("tokens", last_train.get("tokens"))),
        "training time": Cell(duration(seconds), seconds),
        f"{unit} per second": _cell(summary.get("tokens_per_second", speed)),
        "parameters": _cell(run.summary.get("parameters")),
        "memory": _mib(summary.get("memory_mib", last_train.get("memory_mib"))),
        "processes": _cell(run.summary.get("processes")),
        "device": _cell(run.summary.get("device")),
    }


def _cell(value: Any) -> Cell:
    return Cell(exact(value), number(value))


def _last(run: Run, kind: str, name: str) -> float | None:
    """The last number of a field."""
    _, values = run.known(kind, name)
    return values[-1].item() if len(values) else None


def _state(state: State) -> str:
    """A run's state, and in words the limit that it reached."""
    return str(state) if state.name != "done" or not state.detail else f"done ({words.reason(state.detail)})"


def _mib(value: Any) -> Cell:
    known = number(value)
    return _cell(None) if known is None else Cell(f"{exact(known)} MiB", known)


def overviews(runs: list[Run]) -> Table:
    """The main figures of several runs, one run per row."""
    figures = [{"task": Cell(words.task(run.task)), **overview(run, "tokens")} for run in runs]
    several = len({run.task for run in runs}) > 1
    names = [name for name in _MAIN if several or name != "task"]
    rows = [[Cell(run.label), *(each[name] for name in names)] for run, each in zip(runs, figures, strict=True)]
    return Table(["run", *names], rows, list(range(len(runs))))


def details(runs: list[Run]) -> Table:
    """All figures of several runs, one run per column."""
    return _transposed(runs, {index: overview(run, "tokens") for index, run in enumerate(runs)})


def tests(runs: list[Run]) -> Table:
    """The final test metrics of each run that has them; the latest, if a resumed run has several."""
    columns = {}
    for index, run in enumerate(runs):
        records = [record for record in run.of_kind("test") if isinstance(record.get("figures"), dict)]
        if records:
            figures = {words.words(name).name: _figure(name, value) for name, value in records[-1]["figures"].items()}
            columns[index] = {"step of the tested model": _cell(records[-1].get("of_step")), **figures}
    return _transposed(runs, columns)


def _figure(name: str, value: Any) -> Cell:
    known, shown = number(value), words.words(name)
    if known is None or not shown.percent:
        return _cell(value)
    return Cell(f"{100 * known:.4g} %", known)


def made_with(runs: list[Run]) -> Table:
    """Device, package versions, commit and seed of each run."""
    columns = {}
    for index, run in enumerate(runs):
        versions = run.summary.get("versions")
        columns[index] = {
            "directory": str(run.path),
            "device": run.summary.get("device"),
            "processes": run.summary.get("processes"),
            "threads of each": run.summary.get("threads"),
            **(versions if isinstance(versions, dict) else {}),
            "commit": run.summary.get("git_commit"),
            "seed": run.config.get("seed"),
        }
    return _transposed(runs, columns)


def differences(runs: list[Run]) -> Table | None:
    """The settings that differ between these runs; a missing setting is a dash.

    Runs without a configuration are left out; None where fewer than two have one.
    """
    settings = {index: run.settings() for index, run in enumerate(runs) if run.config}
    if len(settings) < 2:
        return None
    names = dict.fromkeys(name for each in settings.values() for name in each)
    missing = object()
    differing = [
        name
        for name in names
        if any(
            each.get(name, missing) != next(iter(settings.values())).get(name, missing) for each in settings.values()
        )
    ]
    columns = {
        index: {name: _setting(each[name]) for name in differing if name in each} for index, each in settings.items()
    }
    return _transposed(runs, columns)


def _setting(value: Any) -> str:
    """A setting, approximately as in YAML."""
    return str(value) if isinstance(value, list) else written(value)


def _transposed(runs: list[Run], columns: Mapping[int, Mapping[str, Any]]) -> Table:
    """A table with one column per run, by its index, and one row per name."""
    names = list(dict.fromkeys(name for each in columns.values() for name in each))
    cells = [[each.get(name) for each in columns.values()] for name in names]
    rows = [
        [Cell(name), *(value if isinstance(value, Cell) else _cell(value) for value in row)]
        for name, row in zip(names, cells, strict=True)
    ]
    return Table(["", *(runs[index].label for index in columns)], rows, list(columns), across=True)
