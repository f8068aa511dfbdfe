"""The page's tables as texts: how the runs ended, what they were made with, and in what they differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prnn.reporting.runs import Run
from prnn.reporting.ticks import duration, exact
from prnn.training.observe.record_reader import number


@dataclass
class Table:
    """A head of names and rows of texts; the first column names the row."""

    head: list[str]
    rows: list[list[str]]


def overview(run: Run) -> dict[str, str]:
    """How a run went: name -> text. From its summary where that is up to date, else from its record."""
    summary = run.summary if run.finished else {}
    steps, losses = run.known("val", "loss")
    best = int(losses.argmin()) if len(losses) else None
    last_train = run.latest("train")
    speed, trained = _last(run, "tokens_per_second"), _last(run, "loss")
    seconds = number(summary.get("seconds", last_train.get("seconds")))
    return {
        "state": state(run),
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
    """The last number in a field of the training records."""
    _, values = run.known("train", name)
    return values[-1].item() if len(values) else None


def state(run: Run) -> str:
    """How it ended; a run without a summary still runs, or was killed."""
    if run.finished:
        return f"ended by {run.summary.get('stopped_by') or 'itself'}"
    if not run.count:
        return "nothing recorded yet"
    if run.summary:
        return f"goes on since step {exact(run.summary.get('steps'))}"
    return "unfinished"


def _mib(value: Any) -> str:
    return "–" if number(value) is None else f"{exact(float(value))} MiB"


def overviews(runs: list[Run]) -> Table:
    """Several runs, one in each row."""
    rows = []
    for run in runs:
        # The names of the counts differ with the task; beside each other they are all tokens.
        rows.append({name.replace(run.unit, "tokens", 1): text for name, text in overview(run).items()})
    names = list(dict.fromkeys(name for each in rows for name in each))
    return Table(["run", *names], [[run.label, *each.values()] for run, each in zip(runs, rows, strict=True)])


def tests(runs: list[Run]) -> Table:
    """The figures of the final test of each run that had one; the newest, where a resumed run had several."""
    figures = {}
    for run in runs:
        records = [record for record in run.of_kind("test") if isinstance(record.get("figures"), dict)]
        if records:
            figures[run.label] = {"of the model of step": records[-1].get("of_step"), **records[-1]["figures"]}
    return _beside(figures)


def made_with(runs: list[Run]) -> Table:
    """The machine, the versions, the code."""
    facts = {}
    for run in runs:
        versions = run.summary.get("versions")
        facts[run.label] = {
            "directory": str(run.path),
            "device": run.summary.get("device"),
            "processes": run.summary.get("processes"),
            "threads of each": run.summary.get("threads"),
            **(versions if isinstance(versions, dict) else {}),
            "commit": run.summary.get("git_commit"),
            "seed": run.config.get("seed"),
        }
    return _beside(facts)


def differences(runs: list[Run]) -> Table | None:
    """The settings that are not the same in all of these runs; a setting a run lacks is a dash.

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
    return _beside(
        {label: {name: setting(each[name]) for name in differing if name in each} for label, each in settings.items()}
    )


def setting(value: Any) -> str:
    """A setting as it stands in YAML, more or less."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _beside(found: dict[str, dict[str, Any]]) -> Table:
    names = list(dict.fromkeys(name for each in found.values() for name in each))
    return Table(["", *found], [[name, *(exact(each.get(name)) for each in found.values())] for name in names])
