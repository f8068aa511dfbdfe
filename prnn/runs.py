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
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prnn import extras

extras.require("prnn-runs")

from prnn.config import key_value, suggest
from prnn.data.corpora import expanded
from prnn.error_messages import binary, run_command
from prnn.errors import UserError
from prnn.manage import details, following, listing, pruning, text
from prnn.manage.listing import Entry
from prnn.terminal import put, say
from prnn.training import run_dir, run_names
from prnn.training.observe import run_state

_UNITS = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_MEANINGS = {
    "run": "the run, or several with commas between them; a folder stands for the runs in it [show, tail: latest]",
    "dir": "the folder that holds the runs [runs]",
    "task": "only runs of this task, or of these, with commas between them",
    "state": f"only runs in this state, or in these: {', '.join(run_state.STATES)}",
    "older": "only runs that nothing was written to for so long, such as 12h, 7d or 2w",
    "sort": f"{', '.join(listing.ORDERS)}: the newest, the best or the largest first [age]",
    "reverse": "true: the other way round [false]",
    "limit": "at most so many runs [all]",
    "format": "table, json or csv [table]",
    "keep": "how many checkpoints to keep besides the best one, the newest of them [1]",
    "whole_runs": "true: remove whole runs, chosen by run, task, state or older [false]",
    "yes": "true: do not ask [false]",
    "lines": "how many lines of the log so far [20]",
}
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

    verb: str = "ls"
    run: tuple[str, ...] = ()
    dir: Path = run_dir.RUNS
    task: tuple[str, ...] = ()
    state: tuple[str, ...] = ()
    older: float | None = None
    sort: str = "age"
    reverse: bool = False
    limit: int | None = None
    format: str = "table"
    keep: int = 1
    whole_runs: bool = False
    yes: bool = False
    lines: int = 20


def parse(arguments: Iterable[str]) -> Settings:
    """Parse a verb, if there is one, and KEY=VALUE arguments. Raises ``UserError``."""
    settings, seen = Settings(), set[str]()
    words = list(arguments)
    if words and "=" not in words[0]:
        settings.verb = words.pop(0)
        if settings.verb not in _OF_VERBS:
            raise UserError(
                f"{settings.verb!r} must be one of {', '.join(_OF_VERBS)}{suggest(settings.verb, _OF_VERBS)}"
            )
    for word in words:
        key, value = key_value(word, _MEANINGS, "prnn-runs", "run=latest")
        if key not in _OF_VERBS[settings.verb]:
            verbs = ", ".join(verb for verb, keys in _OF_VERBS.items() if key in keys)
            raise UserError(f"{key} is not for prnn-runs {settings.verb}: it is for {verbs}.")
        if key in seen and key != "run":
            raise UserError(f"{key} is given twice: only run may be given more than once.")
        if not value:
            raise UserError(f"{key}= is empty: give it a value, or leave it out.")
        seen.add(key)
        parsed = _PARSERS[key](key, value)
        setattr(settings, key, settings.run + parsed if key == "run" else parsed)
    if settings.whole_runs and not seen & {"run", "task", "state", "older"}:
        raise UserError("whole_runs=true removes all files of runs: choose them with run=, task=, state= or older=.")
    if settings.whole_runs and "keep" in seen:
        raise UserError("whole_runs=true keeps no checkpoint: leave keep out.")
    return settings


def _one_of(*known: str) -> Callable[[str, str], str]:
    def parsed(key: str, value: str) -> str:
        if value not in known:
            raise UserError(f"{key}={value} must be one of {', '.join(known)}.")
        return value

    return parsed


def _some_of(*known: str) -> Callable[[str, str], tuple[str, ...]]:
    def parsed(key: str, value: str) -> tuple[str, ...]:
        words = tuple(value.split(","))
        if known:
            for word in words:
                _one_of(*known)(key, word)
        return words

    return parsed


def _boolean(key: str, value: str) -> bool:
    return _one_of("true", "false")(key, value) == "true"


def _at_least(least: int) -> Callable[[str, str], int]:
    def parsed(key: str, value: str) -> int:
        if not re.fullmatch(r"\d{1,9}", value, re.ASCII) or int(value) < least:
            raise UserError(f"{key}={value} must be an integer of at least {least}.")
        return int(value)

    return parsed


def _duration(key: str, value: str) -> float:
    match = re.fullmatch(r"(\d{1,9}(?:\.\d+)?) ?(s|min|m|h|d|w)", value, re.ASCII)
    if match is None:
        raise UserError(f"{key}={value} must be a number with a unit: s, min, h, d or w, such as 12h or 7d.")
    return float(match[1]) * _UNITS[match[2]]


_PARSERS: dict[str, Callable[[str, str], Any]] = {
    "run": lambda _, value: tuple(run_dir.split(value)),
    "dir": lambda _, value: expanded(value),
    "task": _some_of(),
    "state": _some_of(*run_state.STATES),
    "older": _duration,
    "sort": _one_of(*listing.ORDERS),
    "reverse": _boolean,
    "limit": _at_least(1),
    "format": _one_of("table", "json", "csv"),
    "keep": _at_least(1),
    "whole_runs": _boolean,
    "yes": _boolean,
    "lines": _at_least(0),
}


def _chosen(settings: Settings) -> list[Entry]:
    """The runs that a listing or a removal is about."""
    s = settings
    found = listing.named(s.run, s.dir) if s.run else listing.entries(s.dir)
    return [
        each
        for each in found
        if (not s.task or each.task in s.task)
        and (not s.state or each.state.name in s.state)
        and (s.older is None or each.age >= s.older)
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
    for line in details.lines(_one(settings)):
        put(line)


def _one(settings: Settings) -> Path:
    """The run that is shown or followed."""
    if len(settings.run) > 1:
        raise UserError(f"run={','.join(settings.run)} are several runs: prnn-runs {settings.verb} takes one.")
    name = settings.run[0] if settings.run else run_names.LATEST
    path = run_dir.find(name, settings.dir)
    if not run_names.is_run(path):
        raise UserError(f"run={name} is not a run directory: {path} holds none of the files of a run.")
    return path


def compare(settings: Settings) -> None:
    """Print figures of several runs side by side."""
    if not settings.run:
        raise UserError("run must be given: several runs, as run=A,B, or the folder of a sweep.")
    for line in details.comparison(settings.run, settings.dir, text.terminal_width()):
        put(line)


def tail(settings: Settings) -> None:
    """Print the log of a run as it grows."""
    path = _one(settings)
    for line in following.follow(path, settings.lines):
        put(line)
    say(f"prnn: {run_dir.short_name(path, Path.cwd())}: {run_state.read(path)}", sys.stderr)


def prune(settings: Settings) -> None:
    """Say what would be removed, ask, and remove it."""
    plan = pruning.plan(_chosen(settings), settings.keep, settings.whole_runs)
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
        pruning.tidy(settings.dir, plan.removals)
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
    widest = max(map(len, _MEANINGS))
    lines = [f"  {name:<{widest}}  {meaning}" for name, meaning in _MEANINGS.items()]
    of_verbs = [f"  {verb:<7}  {', '.join(keys)}" for verb, keys in _OF_VERBS.items()]
    return "\n".join([str(__doc__).strip(), "", "Settings:", *lines, "", "Of each command:", *of_verbs])


_VERBS = {"ls": ls, "show": show, "compare": compare, "tail": tail, "prune": prune}


def main(arguments: list[str] | None = None) -> int:
    """0; 2 after a mistake of the user's, reported on stderr; 130 after Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments

    def command() -> None:
        if {"--help", "-h"} & set(arguments):
            put(help_text())
        else:
            settings = parse(arguments)
            _VERBS[settings.verb](settings)

    return run_command(command, "list fewer runs at once, or free some memory", "give another folder with dir=FOLDER")


if __name__ == "__main__":
    sys.exit(main())
