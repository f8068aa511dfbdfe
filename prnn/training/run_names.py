"""Names of runs: the runs under a root folder, and the one run that a part of its name stands for."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from prnn.errors import UserError
from prnn.training.run_files import BEAT, CHECKPOINTS, HEARTBEAT, LOCK, LOG, METRICS, NOTE, NOTES, OVERRIDES, SUMMARY

LATEST = "latest"  # the link to the last run started
_DEPTH = 4  # of a run under its root: <task>/<start time>, multirun/<start time>/<job>, perhaps in two parts
_MARKS = {METRICS, NOTES, LOCK, CHECKPOINTS, HEARTBEAT, NOTE, SUMMARY, LOG}
_STARTED = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(-\d+)?")
_MOST_LISTED = 5


def discover(root: Path) -> dict[str, Path]:
    """The runs under ``root``: name -> directory, the name being the path from ``root``.

    Directories that a job has claimed and left empty count too. ``latest`` is left out, and so are other links to what
    is under ``root`` anyway.
    """
    return {path.relative_to(root).as_posix(): path for path in _runs(root, root, _DEPTH)}


def _runs(root: Path, folder: Path, depth: int) -> Iterator[Path]:
    for entry in sorted(_entries(folder), key=lambda entry: entry.name):
        path = Path(entry.path)
        if entry.name.startswith(".") or not _is_directory(entry):
            continue
        if entry.is_symlink() and (entry.name == LATEST or path.resolve().is_relative_to(root.resolve())):
            continue
        if is_run(path):
            yield path
        elif depth > 1:
            yield from _runs(root, path, depth - 1)


def is_run(path: Path) -> bool:
    """Whether a directory is a run's: it holds some of a run's files, or is empty and named after a start time."""
    names = {entry.name for entry in _entries(path)}
    return bool(names & _MARKS) or (not names and bool(_STARTED.fullmatch(path.name)))


def is_written_by_prnn(path: Path) -> bool:
    """Whether a directory is a run's beyond doubt, or empty: another program's folder may hold ``checkpoints`` too."""
    own = (METRICS, OVERRIDES, NOTE, BEAT)
    return not _entries(path) or any((path / name).is_file() for name in own)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:  # it cannot be read, or has just been removed
        return []


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def matching(part: str, root: Path) -> Path | None:
    """The one run under ``root`` whose name contains ``part``; None if there is none.

    A whole name, or the end of one from a slash on, wins over the names that merely contain it. Raises ``UserError``
    if there are several.
    """
    if Path(part).is_absolute():
        return None
    part = part.removeprefix(f"{root}/").strip("/")
    names = discover(root)
    if part in names:
        return names[part]
    found = [name for name in names if part and f"/{name}".endswith(f"/{part}")]
    found = found or [name for name in names if part and part in name]
    if len(found) > 1:
        raise _ambiguous(part, sorted((names[name] for name in found), key=last_written, reverse=True), root)
    return names[found[0]] if found else None


def _ambiguous(part: str, paths: list[Path], root: Path) -> UserError:
    listed = ", ".join(
        f"{path.relative_to(root).as_posix()} ({ago(time.time() - last_written(path))})"
        for path in paths[:_MOST_LISTED]
    )
    more = f" and {len(paths) - _MOST_LISTED} more" if len(paths) > _MOST_LISTED else ""
    return UserError(f"{part!r} stands for {len(paths)} runs, {listed}{more}: give more of the name.")


def last_written(path: Path) -> float:
    """The time at which a run was last written to, in seconds since 1970."""
    names = (METRICS, LOG, SUMMARY, BEAT)
    return max(filter(None, (_modified(path / name) for name in names)), default=None) or _modified(path) or 0.0


def _modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def started(path: Path) -> str:
    """The start time in the name of a run, such as 2026-11-23_21-40-05; empty if it has another name."""
    return next((part for part in reversed(path.parts) if _STARTED.fullmatch(part)), "")


def natural(name: str) -> tuple[int, str]:
    """Sort key for the numbered jobs of a sweep: 2 comes before 10."""
    return (int(name) if name.isdecimal() else -1, name)


def ago(seconds: float) -> str:
    """A past time: ``5 min ago``. One in the future, by the clock of another machine, is now."""
    return f"{age(seconds)} ago"


def age(seconds: float) -> str:
    """A length of time in its largest unit: ``5 min``."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(0, int(seconds))} s"
