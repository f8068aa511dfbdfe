"""What of a run can be removed without loss of its results, and its removal."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from prnn.error_messages import binary
from prnn.errors import UserError
from prnn.manage.listing import Entry, size
from prnn.manage.text import Table
from prnn.training import checkpoint, run_dir, run_names
from prnn.training.observe import run_state
from prnn.training.run_files import SWEEP_NOTE, TRACES

_RUN = "the whole run"


@dataclass(frozen=True)
class Removal:
    """What is to be removed of one run: kind -> paths."""

    entry: Entry
    paths: dict[str, list[Path]]
    bytes: int

    def __str__(self) -> str:
        return ", ".join(
            kind if kind == _RUN else f"{len(paths)} {kind if len(paths) > 1 else kind[:-1]}"
            for kind, paths in self.paths.items()
        )


@dataclass
class Plan:
    """The removals, and a note about each run that is left alone."""

    removals: list[Removal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(each.bytes for each in self.removals)


def plan(chosen: Iterable[Entry], keep: int, whole_runs: bool, root: Path) -> Plan:
    """What to remove of these runs: whole, or all but their results and ``keep`` checkpoints besides the best.

    Whole runs are removed below the folder ``root`` alone, where no link leads out of it.
    """
    made = Plan()
    for entry in chosen:
        if entry.state.active:
            made.notes.append(f"{entry.name} is left alone: it is {entry.state}")
        elif whole_runs and (entry.path.is_symlink() or not entry.path.resolve().is_relative_to(root.resolve())):
            made.notes.append(f"{entry.name} is left alone: it lies, or a link leads, outside {root}")
        elif whole_runs and not run_names.is_written_by_prnn(entry.path):
            made.notes.append(f"{entry.name} is left alone: it may be another program's folder")
        elif paths := {_RUN: [entry.path]} if whole_runs else _disposable(entry, keep, made.notes):
            made.removals.append(Removal(entry, paths, sum(size(path) for each in paths.values() for path in each)))
    return made


def _disposable(entry: Entry, keep: int, notes: list[str]) -> dict[str, list[Path]]:
    """Checkpoints, traces and temporary files; nothing that a link leads to."""
    path = entry.path
    found = {
        "checkpoints": _checkpoints(entry, keep, notes),
        "traces": sorted((path / TRACES).glob("*.json.gz")),
        "temporary files": sorted({*path.glob(".*.tmp"), *path.glob("*/.*.tmp")} - set(checkpoint.listing(path))),
    }
    taken = set(found["checkpoints"])
    found["temporary files"] = [each for each in found["temporary files"] if each not in taken]
    inside = {kind: [each for each in paths if _is_inside(path, each)] for kind, paths in found.items()}
    return {kind: paths for kind, paths in inside.items() if paths}


def _checkpoints(entry: Entry, keep: int, notes: list[str]) -> list[Path]:
    """The checkpoints to remove, damaged ones included. The newest intact one stays, and all do if the best is unknown.

    All files of the checkpoint that stays are read, where others are to go.
    """
    path, folder = entry.path, checkpoint.folder(entry.path)
    if folder.is_symlink():
        notes.append(f"the checkpoints of {entry.name} stay: {folder} is a link to another place")
        return []
    listed = checkpoint.listing(path)
    spare = [each for each in checkpoint.disposable(path, keep) if each in listed]
    if spare and (folder / checkpoint.BEST).exists() and checkpoint.best_name(path) is None:
        notes.append(f"the checkpoints of {entry.name} stay: {checkpoint.BEST} is damaged, which names the best")
        return []
    newest = (each for each in reversed(listed) if each not in spare)
    if spare and not any(checkpoint.is_intact(each) for each in newest):
        intact = next((each for each in reversed(spare) if checkpoint.is_intact(each)), None)
        if intact is None:
            notes.append(f"the checkpoints of {entry.name} stay: all of them are damaged")
            return []
        spare.remove(intact)
    return [*spare, *sorted(folder.glob("damaged_step_*"))]


def _is_inside(run: Path, path: Path) -> bool:
    return not path.is_symlink() and path.parent.resolve().is_relative_to(run.resolve())


def table(made: Plan) -> Table:
    """What would be freed, for a terminal."""
    rows = [[each.entry.name, str(each.entry.state), str(each), binary(each.bytes)] for each in made.removals]
    return Table(["name", "state", "to be removed", "frees"], rows)


def remove(removal: Removal, keep: int) -> int:
    """Remove what was planned and still can be; the bytes freed.

    Holds the lock of the run meanwhile, so that no job starts to write to it. Raises ``UserError`` if one has begun, or
    if something cannot be removed.
    """
    entry = removal.entry
    last = run_state.heartbeat(entry.path)
    if run_state.read(entry.path).active or not entry.path.is_dir():
        raise UserError(f"{entry.name} is left alone: it has changed meanwhile.")
    lock: run_dir.Lock | None = None
    try:
        lock = run_dir.Lock(entry.path)
        if run_state.heartbeat(entry.path) != last:  # a job on another machine, whose lock is not seen here
            raise UserError(f"{entry.name} is left alone: a job has begun to write to it.")
        if _RUN in removal.paths:
            still = removal.paths
        else:
            still = _disposable(entry, keep, [])
        before = size(entry.path)
        for kind, paths in removal.paths.items():
            for path in paths:
                if path in still.get(kind, []):
                    _remove(path)
        return before - size(entry.path)
    except OSError as error:
        where = error.filename or entry.name
        raise UserError(f"{where} cannot be removed ({error.strerror}): remove it by hand.") from None
    finally:
        if lock is not None:
            lock.release()


def _remove(path: Path) -> None:
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    if path.parent.name == checkpoint.folder("").name and not path.name.startswith("."):
        # Under the name of an unfinished one: half a checkpoint must not be taken for a whole one.
        path = path.rename(path.with_name(f".{path.name}.tmp"))
    shutil.rmtree(path)


def tidy(root: Path, removed: Iterable[Removal]) -> None:
    """After the removal of whole runs: no empty folders, and ``latest`` is the last run started of those that stay."""
    top = root.resolve()
    for each in removed:
        with contextlib.suppress(OSError):
            for folder in each.entry.path.resolve().parents:
                if not folder.is_relative_to(top) or folder == top:
                    break
                if [path.name for path in folder.iterdir()] == [SWEEP_NOTE]:  # of a sweep without jobs
                    (folder / SWEEP_NOTE).unlink()
                folder.rmdir()  # fails where there are others
    link = root / run_names.LATEST
    if link.is_symlink() and not link.exists():
        left = run_names.discover(root)
        if left:
            run_dir.link_latest(max(left.values(), key=lambda path: (run_names.started(path), path.name)), root)
        else:
            link.unlink(missing_ok=True)
