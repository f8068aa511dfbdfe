"""The page's tables: results of the runs, their environment, and the settings in which they differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prnn.reporting.runs import Run
from prnn.reporting.ticks import duration, exact
from prnn.training.observe import run_state
from prnn.training.observe.record_reader import number


@dataclass
class Table:
    """A header and rows of strings; the first column is the row header."""

    head: list[str]
    rows: list[list[str]]


def overview(run: Run) -> dict[str, str]:
    """Key figures of a run: name -> text. From its summary if that is up to date, else from its record."""
    summary = run.summary if run.finished else {}
    steps, losses = run.known("val", "loss")
    best = int(losses.argmin()) if len(losses) else None
    last_train = run.latest("train")
    speed, trained = _last(run, "tokens_per_second"), _last(run, "loss")
    seconds = number(summary.get("seconds", last_train.get("seconds")))
    return {
        "state": str(run_state.read(run.path)),
        "best validation loss": "–" if best is None else f"{exact(losses[best].item())} at step {int(steps[best]):,}",
        "last validation loss": exact(run.points("val", "loss")[-1][1] if len(losses) else None),
        "last training loss": exact(trained),
        "steps": exact(run.last_step),
        "epochs": exact(summary.get("epochs", last_train.get("epoch"))),
        run.unit: exact(summary.get("tokens", last_train.get("tokens"))),
        "training time": duration(seconds),
        f"{run.unit} per second": exact(summary.get("tokens_per_second", speed)),
        "parameters": exact(run.summary.get("parameters")),
        "memory": _mib(summary.get("memory_mib", last_train.get("memory_mib"))),
        "processes": exact(run.summary.get("processes")),
        "device": exact(run.summary.get("device")),
    }


def _last(run: Run, name: str) -> float | None:
    """The last number of a field of the training records."""
    _, values = run.known("train", name)
    return values[-1].item() if len(values) else None


def _mib(value: Any) -> str:
    return "–" if number(value) is None else f"{exact(float(value))} MiB"


def overviews(runs: list[Run]) -> Table:
    """The key figures of several runs, one run per row."""
    columns = _in_tokens(runs)
    names = list(dict.fromkeys(name for each in columns.values() for name in each))
    return Table(["run", *names], [[label, *each.values()] for label, each in columns.items()])


def side_by_side(runs: list[Run]) -> Table:
    """The key figures of several runs, one run per column; figures that none of them has are left out."""
    table = _transposed(_in_tokens(runs))
    return Table(table.head, [row for row in table.rows if set(row[1:]) != {exact(None)}])


def _in_tokens(runs: list[Run]) -> dict[str, dict[str, str]]:
    """The ``overview`` of each run by its label. The unit differs between tasks: here all are tokens."""
    return {
        run.label: {name.replace(run.unit, "tokens", 1): text for name, text in overview(run).items()} for run in runs
    }


def tests(runs: list[Run]) -> Table:
    """The final test metrics of each run that has them; the latest, if a resumed run has several."""
    columns = {}
    for run in runs:
        records = [record for record in run.of_kind("test") if isinstance(record.get("figures"), dict)]
        if records:
            columns[run.label] = {"of the model of step": records[-1].get("of_step"), **records[-1]["figures"]}
    return _transposed(columns)


def made_with(runs: list[Run]) -> Table:
    """Device, package versions, commit and seed of each run."""
    columns = {}
    for run in runs:
        versions = run.summary.get("versions")
        columns[run.label] = {
            "directory": str(run.path),
            "device": run.summary.get("device"),
            "processes": run.summary.get("processes"),
            "threads of each": run.summary.get("threads"),
            **(versions if isinstance(versions, dict) else {}),
            "commit": run.summary.get("git_commit"),
            "seed": run.config.get("seed"),
        }
    return _transposed(columns)


def differences(runs: list[Run]) -> Table | None:
    """The settings that differ between these runs; a missing setting is a dash.

    Runs without a configuration are left out; None where fewer than two have one.
    """
    settings = {run.label: run.settings() for run in runs if run.config}
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
    return _transposed(
        {label: {name: setting(each[name]) for name in differing if name in each} for label, each in settings.items()}
    )


def setting(value: Any) -> str:
    """A setting formatted approximately as in YAML."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _transposed(columns: dict[str, dict[str, Any]]) -> Table:
    """A table with one column per run and one row per name."""
    names = list(dict.fromkeys(name for each in columns.values() for name in each))
    return Table(["", *columns], [[name, *(exact(each.get(name)) for each in columns.values())] for name in names])
