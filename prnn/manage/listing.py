"""The runs under a folder with their key figures, without reading whole records."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prnn.error_messages import binary
from prnn.errors import UserError
from prnn.manage import text
from prnn.manage.text import Table
from prnn.reporting import words
from prnn.reporting.numbers import exact
from prnn.training import checkpoint, disk, run_dir, run_names
from prnn.training.observe import run_state
from prnn.training.observe.record_reader import Records, last_record, number, read_object
from prnn.training.observe.run_state import State
from prnn.training.run_files import CONFIG, METRICS, SUMMARY

# In a configuration as OmegaConf writes it: a parser of YAML takes 30 ms.
_TASK = re.compile(rb"^task:\n(?:  .*\n)*?  name: (\S+)$", re.MULTILINE)
_LEVEL = re.compile(rb"^data:\n(?:  .*\n)*?  level: (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Entry:
    """One run. Figures that are not known are None; ``age`` is the time in seconds since it was last written to."""

    name: str
    path: Path
    task: str
    state: State
    loss: float | None  # the best validation loss
    steps: int
    seconds: float | None  # of training
    speed: float | None  # units per second
    unit: str
    size: int  # bytes
    age: float


# Sort keys; figures that are not known come last.
_ORDERS: dict[str, Callable[[Entry], Any]] = {
    "age": lambda entry: entry.age,
    "loss": lambda entry: entry.loss,
    "name": lambda entry: entry.name,
    "size": lambda entry: -entry.size,
    "speed": lambda entry: None if entry.speed is None else -entry.speed,
    "steps": lambda entry: -entry.steps,
}
ORDERS = tuple(_ORDERS)


def entries(root: Path) -> list[Entry]:
    """All runs under ``root``. Raises ``UserError`` if it cannot be read."""
    try:
        next(root.iterdir(), None)
    except FileNotFoundError:
        raise UserError(f"there is no folder {root}: give the folder of your runs, as dir=PATH.") from None
    except OSError as error:
        raise UserError(f"{root} cannot be read ({error.strerror}): give the folder of the runs with dir=.") from None
    return _entries(run_names.discover(root).values())


def named(names: Iterable[str], root: Path) -> list[Entry]:
    """The runs of these names, and those in the folders of these names. Raises ``UserError``."""
    paths: dict[Path, None] = {}
    for name in names:
        path = run_dir.find(name, root, folders=True)
        inside = [path] if run_names.is_run(path) else run_names.discover(path).values()
        if not inside:
            raise UserError(f"run={name} is not a run directory, nor a folder of some.")
        paths |= dict.fromkeys(inside)
    return _entries(paths)


def _entries(paths: Iterable[Path]) -> list[Entry]:
    cwd = Path.cwd()
    return [entry(path, run_dir.short_name(path, cwd)) for path in paths]


def entry(path: Path, name: str) -> Entry:
    """The figures of one run directory."""
    summary, last, state = read_object(path / SUMMARY), last_record(path / METRICS, "train"), run_state.read(path)
    recorded = (summary.get("steps"), last.get("step"), checkpoint.last_step(path))
    steps = max(int(number(each) or 0) for each in recorded)
    if (number(summary.get("steps")) or 0) < steps:  # resumed after it was written
        summary = {"unit": summary.get("unit")}
    task, level = _noted(path)
    return Entry(
        name,
        path,
        task or "–",
        state,
        _best_loss(path, summary),
        steps,
        number(summary.get("seconds", last.get("seconds"))),
        number(summary.get("tokens_per_second", last.get("tokens_per_second"))),
        str(summary.get("unit") or words.unit(task, level)),
        size(path),
        max(0.0, time.time() - run_names.last_written(path)),
    )


def _noted(path: Path) -> tuple[str, str]:
    """``task.name`` and ``data.level`` of a run; empty where they are not known."""
    try:
        config = disk.read_file(path / CONFIG)
    except OSError:
        return "", ""
    task, level = (found[1] if (found := each.search(config)) else b"" for each in (_TASK, _LEVEL))
    return task.decode(errors="replace"), level.decode(errors="replace")


def _best_loss(path: Path, summary: dict[str, Any]) -> float | None:
    """From the summary, the note of the best checkpoint, or the record: the first of them that has it."""
    known = number(summary.get("best_val_loss"))
    if known is None:
        known = number(read_object(checkpoint.folder(path) / checkpoint.BEST).get("loss"))
    if known is None:
        known = min(_validations(path / METRICS), default=None)
    return known


def _validations(path: Path) -> Iterable[float]:
    try:
        losses = [number(record.get("loss")) for record in Records(path, "val")]
    except OSError:
        return []
    return [loss for loss in losses if loss is not None]


def size(path: Path) -> int:
    """The bytes of all files in a folder, or of one file; links are not followed."""
    total, folders = 0, []
    try:
        if not path.is_dir() or path.is_symlink():
            return path.lstat().st_size
        with os.scandir(path) as inside:
            for each in inside:
                if each.is_dir(follow_symlinks=False):
                    folders.append(Path(each.path))
                else:
                    total += each.stat(follow_symlinks=False).st_size
    except OSError:  # removed meanwhile
        pass
    return total + sum(map(size, folders))


def ordered(found: Iterable[Entry], by: str, reverse: bool) -> list[Entry]:
    """Sorted: ``age`` from the newest on, ``loss`` from the lowest, ``name`` from A, the others from the largest."""
    key = _ORDERS[by]
    known = sorted((each for each in found if key(each) is not None), key=key, reverse=reverse)
    return [*known, *(each for each in found if key(each) is None)]


def table(found: Iterable[Entry]) -> Table:
    """For a terminal."""
    head = ["name", "task", "state", "best loss", "steps", "speed", "size", "age"]
    rows = [
        [
            each.name,
            each.task,
            str(each.state),
            text.loss(each.loss),
            exact(each.steps),
            "–" if each.speed is None else f"{each.speed:,.0f} {each.unit}/s",
            binary(each.size),
            run_names.age(each.age),
        ]
        for each in found
    ]
    return Table(head, rows)


FIELDS = (
    "name", "path", "task", "state", "detail", "best_val_loss", "steps", "seconds", "speed", "unit", "bytes",
    "age_seconds",
)  # fmt: skip


def plain(each: Entry) -> dict[str, Any]:
    """For JSON and CSV: numbers are not rounded for the eye, and units are in the names."""
    values = (
        each.name, str(each.path.resolve()), each.task, each.state.name, each.state.detail, each.loss, each.steps,
        each.seconds, each.speed, each.unit, each.size, round(each.age, 1),
    )  # fmt: skip
    return dict(zip(FIELDS, values, strict=True))
