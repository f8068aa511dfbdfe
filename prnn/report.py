"""Report on runs: as a self-contained HTML page, or by replaying the record to W&B or TensorBoard.

    python -m prnn.report run=latest
    python -m prnn.report run=21-40-05,22-16-31 out=comparison.html      two runs, by parts of their names
    python -m prnn.report run=runs/multirun/2026-11-23_21-40-05          all the jobs of a sweep
    python -m prnn.report run=latest to=tensorboard

to= is one of

    page         an HTML page without network access
    tensorboard  the record as event files, under RUN/tensorboard
    wandb        the record as a run of Weights & Biases, offline unless you are logged in
    spec         the specification of a W&B workspace or report of these runs, as JSON
    workspace    that workspace, created in W&B
    report       that report, created in W&B
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from prnn import extras

extras.require("prnn-report")

from prnn.config import key_value
from prnn.data.corpora import expanded
from prnn.error_messages import run_command
from prnn.errors import UserError
from prnn.reporting import page, replay, wandb_objects, wandb_spec
from prnn.reporting.runs import Run, load_all
from prnn.terminal import put, say
from prnn.training.observe.record_reader import damage

PAGE = "report.html"
_FORMS = ("page", "tensorboard", "wandb", "spec", "workspace", "report")
_MEANINGS = {
    "run": "a run directory, latest, a part of a run's name, or a folder of runs; several: run=A,B, or repeat run=",
    "to": "the output format, one of those above [page]",
    "out": f"to=page: its file [RUN/{PAGE}; for several runs, {PAGE}]; to=spec: its file [standard output]",
    "project": "to=wandb, spec, workspace, report: the W&B project [the run's logger.project]",
    "entity": "likewise the W&B team or user [the run's logger.entity]",
}
_OF_FORMS = {"out": ("page", "spec"), "project": _FORMS[2:], "entity": _FORMS[2:]}


@dataclass
class Settings:
    """The settings of ``prnn-report``."""

    run: list[str] = field(default_factory=list)
    to: str = "page"
    out: str | None = None
    project: str | None = None
    entity: str | None = None


def parse(arguments: Iterable[str]) -> Settings:
    """Parse KEY=VALUE arguments; ``run`` may be repeated. Raises ``UserError``."""
    settings = Settings()
    seen: set[str] = set()
    for argument in arguments:
        key, value = key_value(argument, _MEANINGS, "prnn-report", "run=latest")
        if not value:
            raise UserError(f"{key}= is empty: give it a value, or leave it out.")
        if key == "run":
            settings.run.append(value)
            continue
        if key in seen:
            raise UserError(f"{key} is given twice: only run may be given more than once.")
        seen.add(key)
        setattr(settings, key, value)
    if not settings.run:
        raise UserError("run must be given: a run directory, or run=latest.")
    if settings.to not in _FORMS:
        raise UserError(f"to={settings.to} must be one of {', '.join(_FORMS)}.")
    for key in seen & set(_OF_FORMS):
        if settings.to not in _OF_FORMS[key]:
            raise UserError(f"{key} is not for to={settings.to}: it is for to={', '.join(_OF_FORMS[key])}.")
    return settings


def run(settings: Settings) -> None:
    """Create the report and print its location."""
    runs = load_all(settings.run)
    for each in runs:
        if each.damaged:
            say(f"prnn: {damage(each.damaged, each.records.path)}", sys.stderr)
    if settings.to == "page":
        put(str(_page(runs, settings.out)))
    elif settings.to == "spec":
        _spec(runs, settings)
    elif settings.to in ("workspace", "report"):
        push = wandb_objects.push_workspace if settings.to == "workspace" else wandb_objects.push_report
        put(push(wandb_spec.spec(runs, settings.project, settings.entity)))
    else:
        for each in runs:
            if settings.to == "wandb":
                put(replay.to_wandb(each, settings.project, settings.entity))
            else:
                put(replay.to_tensorboard(each))


def _page(runs: list[Run], out: str | None) -> Path:
    path = expanded(out) if out else runs[0].path / PAGE if len(runs) == 1 else Path(PAGE)
    page.write(runs, path)
    return path


def _spec(runs: list[Run], settings: Settings) -> None:
    text = json.dumps(wandb_spec.spec(runs, settings.project, settings.entity), indent=1)
    if settings.out is None:
        put(text)
        return
    path = expanded(settings.out)
    path.write_text(text + "\n", encoding="utf-8")
    put(str(path))


def help_text() -> str:
    """The text of --help."""
    lines = [f"  {name:<8} {meaning}" for name, meaning in _MEANINGS.items()]
    return "\n".join([str(__doc__).strip(), "", "Settings:", *lines])


def main(arguments: list[str] | None = None) -> int:
    """0; 2 after a mistake of the user's, reported on stderr; 130 after Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments

    def command() -> None:
        if {"--help", "-h"} & set(arguments):
            put(help_text())
        else:
            run(parse(arguments))

    return run_command(command, "report fewer runs at once, or free some memory", "set another file with out=FILE")


if __name__ == "__main__":
    sys.exit(main())
