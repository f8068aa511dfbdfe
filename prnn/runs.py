"""List, inspect and prune runs.

    python -m prnn.runs                                  the runs under runs/, the newest first
    python -m prnn.runs ls task=char_lm sort=loss limit=5
    python -m prnn.runs show run=latest                  all about one run, and what to do with it next
    python -m prnn.runs compare run=21-40,22-05          figures side by side, and the settings that differ
    python -m prnn.runs tail run=latest                  the log as it grows, until the run ends
    python -m prnn.runs prune older=7d                   removes old checkpoints, traces and temporary files
    python -m prnn.runs prune whole_runs=true state=empty,failed older=30d

A run is named by its directory, by latest, or by a part of its name that no other run has.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from prnn import extras

extras.require("prnn-runs")

from prnn import command_settings
from prnn.command_settings import setting
from prnn.config import suggest
from prnn.data.paths import expanded
from prnn.error_messages import binary, run_command
from prnn.errors import UserError
from prnn.manage import details, following, listing, pruning, text
from prnn.manage.listing import Entry
from prnn.terminal import put, say
from prnn.training import run_dir, run_names
from prnn.training.observe import run_state

_UNITS = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_CHOOSING = ("dir", "task", "state", "older")
_OF_VERBS = {
    "ls": ("run", *_CHOOSING, "sort", "reverse", "limit", "format"),
    "show": ("run", "dir"),
    "compare": ("run", "dir"),
    "tail": ("run", "dir", "lines"),
    "prune": ("run", *_CHOOSING, "keep", "whole_runs", "yes"),
}


@dataclass
class Settings:
    """The settings of ``prnn-runs``, of which each verb takes some."""

    run: list[str] = setting(  # noqa: RUF009
        [], "the run, or several with commas between them; a folder stands for the runs in it [show, tail: latest]"
    )
    dir: str = setting(str(run_dir.RUNS), "the folder that holds the runs")
    task: str | None = setting(None, "only runs of this task, or of these, with commas between them")
    state: str | None = setting(None, f"only runs in this state, or in these: {', '.join(run_state.STATES)}")
    older: str | None = setting(None, "only runs that nothing was written to for so long, such as 12h, 7d or 2w")
    sort: str = setting("age", f"{', '.join(listing.ORDERS)}: the newest, best or largest first", listing.ORDERS)
    reverse: bool = setting(False, "the other way round")
    limit: int | None = setting(None, "at most so many runs; null: all")
    format: str = setting("table", "table, json or csv", ("table", "json", "csv"))
    keep: int = setting(1, "how many checkpoints to keep besides the best one, the newest of them")
    whole_runs: bool = setting(False, "remove whole runs, chosen by run, task, state or older")
    yes: bool = setting(False, "do not ask")
    lines: int = setting(20, "how many lines of the log so far")


def parse(arguments: Iterable[str]) -> tuple[str, Settings]:
    """A verb, ls if there is none, and the settings. Raises ``UserError``."""
    words = list(arguments)
    verb = words.pop(0) if words and "=" not in words[0] and not words[0].startswith("-") else "ls"
    if verb not in _OF_VERBS:
        raise UserError(f"{verb!r} must be one of {', '.join(_OF_VERBS)}{suggest(verb, _OF_VERBS)}")
    settings = command_settings.parse(Settings, words, "prnn-runs", "run=latest")
    given = [word.partition("=")[0] for word in words]
    for word, key in zip(words, given, strict=True):
        if key not in _OF_VERBS[verb]:
            verbs = ", ".join(each for each, keys in _OF_VERBS.items() if key in keys)
            raise UserError(f"{key} is not for prnn-runs {verb}: it is for {verbs}.")
        if word.endswith("="):
            raise UserError(f"{key}= is empty: give it a value, or leave it out.")
    for name, least in (("limit", 1), ("keep", 1), ("lines", 0)):
        value = getattr(settings, name)
        if value is not None and not least <= value < 1e9:
            raise UserError(f"{name}={value} must be an integer of at least {least}.")
    for each in _parts(settings.state):
        if each not in run_state.STATES:
            raise UserError(f"state={each} must be one of {', '.join(run_state.STATES)}.")
    _seconds(settings.older)
    if settings.whole_runs and not {"run", "task", "state", "older"} & {*given}:
        raise UserError("whole_runs=true removes all files of runs: choose them with run=, task=, state= or older=.")
    if settings.whole_runs and "keep" in given:
        raise UserError("whole_runs=true keeps no checkpoint: leave keep out.")
    return verb, settings


def _parts(value: str | None) -> list[str]:
    return [] if value is None else value.split(",")


def _seconds(older: str | None) -> float:
    """A duration, such as 7d, in seconds; 0 for None. Raises ``UserError``."""
    if older is None:
        return 0.0
    match = re.fullmatch(r"(\d{1,9}(?:\.\d+)?) ?(s|min|m|h|d|w)", older, re.ASCII)
    if match is None:
        raise UserError(f"older={older} must be a number with a unit: s, min, h, d or w, such as 12h or 7d.")
    return float(match[1]) * _UNITS[match[2]]


def _root(settings: Settings) -> Path:
    return expanded(settings.dir)


def _named(settings: Settings) -> list[str]:
    return [name for given in settings.run for name in run_dir.split(given)]


def _chosen(settings: Settings) -> list[Entry]:
    """The runs that a listing or a removal is about."""
    tasks, states, age = _parts(settings.task), _parts(settings.state), _seconds(settings.older)
    names, root = _named(settings), _root(settings)
    return [
        each
        for each in (listing.named(names, root) if names else listing.entries(root))
        if (not tasks or each.task in tasks) and (not states or each.state.name in states) and each.age >= age
    ]


def ls(settings: Settings) -> None:
    """Print the runs, one to a line."""
    found = listing.ordered(_chosen(settings), settings.sort, settings.reverse)[: settings.limit]
    if settings.format == "json":
        put(json.dumps([listing.plain(each) for each in found], indent=1))
    elif settings.format == "csv":
        _csv(found)
    elif found:
        right = ("best loss", "steps", "speed", "size", "age")
        table = listing.table(found)
        for line in text.lines(table, text.terminal_width(), right, "state", ("task", "size", "speed", "steps")):
            put(line)
    else:
        say(f"prnn: there are no such runs in {settings.dir}.", sys.stderr)


class _Lines:
    """A file for the csv module that prints."""

    def write(self, line: str) -> None:
        put(line, end="")


def _csv(found: list[Entry]) -> None:
    writer = csv.DictWriter(_Lines(), listing.FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(listing.plain, found))


def show(settings: Settings) -> None:
    """Print all about one run."""
    for line in details.lines(_one(settings, "show")):
        put(line)


def _one(settings: Settings, verb: str) -> Path:
    """The run that is shown or followed."""
    names = _named(settings) or [run_names.LATEST]
    if len(names) > 1:
        raise UserError(f"run={','.join(names)} are several runs: prnn-runs {verb} takes one.")
    [name] = names
    path = run_dir.find(name, _root(settings))
    if not run_names.is_run(path):
        raise UserError(f"run={name} is not a run directory: {path} holds none of the files of a run.")
    return path


def compare(settings: Settings) -> None:
    """Print figures of several runs side by side."""
    if not settings.run:
        raise UserError("run must be given: several runs, as run=A,B, or the folder of a sweep.")
    for line in details.comparison(_named(settings), _root(settings), text.terminal_width()):
        put(line)


def tail(settings: Settings) -> None:
    """Print the log of a run as it grows."""
    path = _one(settings, "tail")
    for line in following.follow(path, settings.lines):
        put(line)
    say(f"prnn: {run_dir.short_name(path, Path.cwd())}: {run_state.read(path)}", sys.stderr)


def prune(settings: Settings) -> None:
    """Say what would be removed, ask, and remove it."""
    plan = pruning.plan(_chosen(settings), settings.keep, settings.whole_runs, _root(settings))
    for note in plan.notes:
        say(f"prnn: {note}.", sys.stderr)
    if not plan.removals:
        put("nothing to remove")
        return
    for line in text.lines(pruning.table(plan), text.terminal_width(), ("frees",), "to be removed", ("state",)):
        put(line)
    count = len(plan.removals)
    if not settings.yes and not _agreed(f"{binary(plan.bytes)} of {count} run{'s' if count > 1 else ''}"):
        put("nothing was removed")
        return
    freed, problems = 0, []
    for removal in plan.removals:
        try:
            freed += pruning.remove(removal, settings.keep)
        except UserError as problem:
            problems.append(problem)
            say(f"prnn: {problem}", sys.stderr)
    if settings.whole_runs:
        pruning.tidy(_root(settings), plan.removals)
    put(f"freed {binary(freed)}")
    if problems:
        raise UserError(f"{len(problems)} of {count} runs could not be pruned: see above.")


def _agreed(what: str) -> bool:
    """Whether the user wants to remove ``what``. Raises ``UserError`` where nobody can be asked."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UserError(f"nothing was removed, as nobody can be asked here: yes=true removes {what}.")
    put(f"remove {what}? [y/N] ", end="")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def help_text() -> str:
    """The text of --help."""
    of_verbs = [f"  {verb:<7}  {', '.join(keys)}" for verb, keys in _OF_VERBS.items()]
    return command_settings.help_text(__doc__, Settings, "\n".join(["Of each command:", *of_verbs]))


_VERBS = {"ls": ls, "show": show, "compare": compare, "tail": tail, "prune": prune}


def _run(arguments: list[str]) -> None:
    verb, settings = parse(arguments)
    _VERBS[verb](settings)


def main(arguments: list[str] | None = None) -> int:
    """0; 2 after a mistake of the user's, reported on stderr; 130 after Ctrl-C."""
    remedies = "list fewer runs at once, or free some memory", "give another folder with dir=FOLDER"
    return run_command(arguments, help_text, _run, *remedies)


if __name__ == "__main__":
    sys.exit(main())
