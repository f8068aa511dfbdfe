"""Report on runs: as a self-contained HTML page, or by replaying the record to W&B or TensorBoard.

    python -m prnn.report run=latest
    python -m prnn.report run=21-40-05,22-16-31 out=comparison.html      two runs, by parts of their names
    python -m prnn.report run=runs/multirun/2026-11-23_21-40-05          all the jobs of a sweep
    python -m prnn.report run=latest watch=true                          the page while runs are in progress
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
from dataclasses import dataclass
from pathlib import Path

from prnn import extras

extras.require("prnn-report")

from prnn import command_settings
from prnn.command_settings import setting
from prnn.data.paths import expanded
from prnn.error_messages import run_command
from prnn.errors import UserError
from prnn.reporting import page, replay, wandb_objects, wandb_spec, watch
from prnn.reporting.runs import Run, load_all
from prnn.terminal import put, say
from prnn.training.observe.record_reader import damage

PAGE = "report.html"
_FORMS = ("page", "tensorboard", "wandb", "spec", "workspace", "report")
_OF_FORMS = {
    "out": ("page", "spec"),
    "watch": ("page",),
    "port": ("page",),
    "project": _FORMS[2:],
    "entity": _FORMS[2:],
}


@dataclass
class Settings:
    """The settings of ``prnn-report``."""

    run: list[str] = setting(  # noqa: RUF009
        [], "a run, latest, or a folder of runs; repeat run= for several"
    )
    to: str = setting("page", "the output format, one of those above", _FORMS)
    out: str | None = setting(
        None, f"to=page: its file [RUN/{PAGE}; for several runs, {PAGE}]; to=spec: its file [standard output]"
    )
    watch: bool = setting(False, "serve the page to this machine's browsers, and keep it up to date, until Ctrl-C")
    port: int | None = setting(None, "watch=true: the port of the page [a free one]")
    project: str | None = setting(None, "to=wandb, spec, workspace, report: the W&B project [the run's logger.project]")
    entity: str | None = setting(None, "likewise the W&B team or user [the run's logger.entity]")


def parse(arguments: Iterable[str]) -> Settings:
    """Parse KEY=VALUE arguments; ``run`` may be repeated. Raises ``UserError``."""
    settings = command_settings.parse(Settings, arguments, "prnn-report", "run=latest")
    for name in ("run", "out", "project", "entity"):
        if getattr(settings, name) == "" or (name == "run" and "" in settings.run):
            raise UserError(f"{name}= is empty: give it a value, or leave it out.")
    if not settings.run:
        raise UserError("run must be given: a run directory, or run=latest.")
    for key, forms in _OF_FORMS.items():
        if command_settings.changed(settings, [key]) is not None and settings.to not in forms:
            raise UserError(f"{key} is not for to={settings.to}: it is for to={', '.join(forms)}.")
    if settings.port is not None and not 1 <= settings.port <= 65535:
        raise UserError(f"port={settings.port} must be a whole number from 1 to 65535.")
    if settings.port is not None and not settings.watch:
        raise UserError("port is for watch=true: without it, no page is served.")
    if settings.out is not None and settings.watch:
        raise UserError("out is not for watch=true, which serves the page and writes no file.")
    return settings


def run(settings: Settings) -> None:
    """Create the report and print its location; with ``watch``, serve it."""
    if settings.watch:
        watch.serve(settings.run, settings.port or 0, _serving)
        return
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


def _serving(url: str) -> None:
    put(url)
    say("prnn: the page is served until Ctrl-C.", sys.stderr)


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
    return command_settings.help_text(__doc__, Settings)


def main(arguments: list[str] | None = None) -> int:
    """0; 2 after a mistake of the user's, reported on stderr; 130 after Ctrl-C."""
    remedies = "report fewer runs at once, or free some memory", "set another file with out=FILE"
    return run_command(arguments, help_text, lambda words: run(parse(words)), *remedies)


if __name__ == "__main__":
    sys.exit(main())
