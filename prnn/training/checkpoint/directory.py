"""Checkpoint directories of a run: listing, atomic creation, pruning. A crash never costs a complete checkpoint.

A checkpoint is written under a temporary name, with every file and directory fsynced, and then renamed atomically.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from prnn.errors import UserError
from prnn.training.disk import read_file, replace, require_file, sync_directory, write_synced
from prnn.training.observe.record_reader import read_object
from prnn.training.run_files import CHECKPOINTS

FORMAT, SHARDED = 1, 2  # written by rank 0; by all ranks
WEIGHTS, STATE, MANIFEST, BEST = "model.safetensors", "state.pt", "manifest.json", "best.json"
_ASIDE = ".old.tmp"  # suffix of a checkpoint that is being replaced by another of the same step
_NAME = re.compile(rf"step_(\d{{8,}})|\.step_(\d{{8,}}){re.escape(_ASIDE)}")


class Damaged(Exception):
    """The checkpoint cannot be used; the message names the file and the reason."""


class SaveFailed(UserError):
    """The checkpoint could not be written; earlier checkpoints are untouched."""


def damaged(path: Path, problem: str) -> UserError:
    """The error for a checkpoint whose files have valid checksums but invalid content."""
    return UserError(f"the checkpoint {path} is damaged: {problem}.")


def not_written(temporary: Path, step: int, reason: str) -> SaveFailed:
    """The error for a checkpoint that could not be written to ``temporary``."""
    return SaveFailed(
        f"the checkpoint of step {step} could not be written to {temporary.parent} ({reason}); "
        "earlier checkpoints are untouched: free space there, or set run_dir to another disk."
    )


def first_line(error: BaseException) -> str:
    """A one-line reason: the system's error string, else the first line of the message, else the error's name."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)


def folder(run_dir: Path | str) -> Path:
    """The checkpoint folder of a run."""
    return Path(run_dir) / CHECKPOINTS


def listing(run_dir: Path | str) -> list[Path]:
    """The checkpoints of a run, oldest first, damaged ones included.

    Includes one that a crash has left renamed, without a successor; ``prune`` restores its name.
    """
    paths = [*folder(run_dir).glob(f".step_*{_ASIDE}"), *folder(run_dir).glob("step_*")]  # the last of a step wins
    by_step = {step_of(path): path for path in paths if _NAME.fullmatch(path.name) and path.is_dir()}
    return [by_step[step] for step in sorted(by_step)]


def last_step(run_dir: Path | str) -> int:
    """The step of the newest checkpoint; 0 without one. A run that was stopped is saved after its last record."""
    return max(map(step_of, listing(run_dir)), default=0)


def step_of(path: Path) -> int:
    """The step of a checkpoint's directory."""
    match = _NAME.fullmatch(path.name)
    assert match is not None, path
    return int(match[1] or match[2])


def name_of(step: int) -> str:
    """The directory name of the checkpoint of ``step``."""
    return f"step_{step:08d}"


def begin(run_dir: Path, step: int) -> Path:
    """Create an empty temporary directory for the checkpoint of ``step``. The run directory must exist."""
    temporary = folder(run_dir) / f".{name_of(step)}.tmp"
    try:
        temporary.parent.mkdir(exist_ok=True)
        sync_directory(run_dir)
        discard(temporary)
        temporary.mkdir()
    except OSError as error:
        raise not_written(temporary, step, error.strerror or str(error)) from error
    return temporary


def complete(
    temporary: Path, step: int, manifest: dict[str, Any], digests: dict[str, str], layout: int = FORMAT
) -> Path:
    """Write the manifest, with the files' sha256s, and rename the directory to its final name."""
    manifest = {"format": layout, "step": step, **manifest, "sha256": digests}
    manifest = json.loads(json.dumps(manifest))  # round-trip, so that the checksum matches what is read back
    write_synced(temporary / MANIFEST, json.dumps({**manifest, "checksum": checksum(manifest)}, indent=1).encode())
    sync_directory(temporary)
    final = temporary.with_name(name_of(step))
    _put_in_place(temporary, final)
    return final


def discard(temporary: Path) -> None:
    """Remove an unfinished checkpoint."""
    shutil.rmtree(temporary, ignore_errors=True)


def holds_none(run_dir: Path | str) -> bool:
    """Whether a run has no checkpoint, except perhaps an unfinished one. False if unknown, as for a folder that is a
    dangling link.
    """
    place = folder(run_dir)
    if not place.is_dir():
        return not os.path.lexists(place)
    names = [path.name for path in place.iterdir()]
    return all(name.endswith(".tmp") and not name.endswith(_ASIDE) for name in names)


def _put_in_place(temporary: Path, final: Path) -> None:
    """Rename ``temporary`` to ``final``; an existing checkpoint there is removed only afterwards.

    That is one of the same step, saved again after its validation, or by a resumed run that had nothing left to do.
    """
    aside = final.with_name(f".{final.name}{_ASIDE}")
    if final.exists():
        shutil.rmtree(aside, ignore_errors=True)
        final.rename(aside)
    try:
        temporary.rename(final)
    except OSError:
        _put_back(aside)
        raise
    sync_directory(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _put_back(aside: Path) -> None:
    """Restore the name of a renamed checkpoint, if it is free; ``listing`` includes one that stays renamed."""
    final = aside.with_name(name_of(step_of(aside)))
    if aside.exists() and not final.exists():
        with contextlib.suppress(OSError):
            aside.rename(final)


def mark_best(run_dir: Path, path: Path, loss: float) -> None:
    """Record that ``path`` has the lowest validation loss."""
    target = folder(run_dir) / BEST
    try:
        replace(target, json.dumps({"name": path.name, "loss": loss}).encode())
    except OSError as error:
        raise SaveFailed(f"{target} could not be written ({error.strerror or error}).") from error


def best_name(run_dir: Path | str) -> str | None:
    """The name of the best checkpoint, or None where there is no readable record of it."""
    name = read_object(folder(run_dir) / BEST).get("name")
    return None if name is None else str(name)


def disposable(run_dir: Path, keep: int) -> list[Path]:
    """All checkpoints but the ``keep`` newest and the best one, and leftovers of interrupted saves."""
    paths, best = listing(run_dir), best_name(run_dir)
    old = [path for path in paths[: max(0, len(paths) - max(1, keep))] if name_of(step_of(path)) != best]
    return [*old, *sorted(set(folder(run_dir).glob(".step_*.tmp")) - set(paths))]


def prune(run_dir: Path, keep: int) -> None:
    """Remove what is ``disposable``."""
    for path in listing(run_dir):
        if path.name.endswith(_ASIDE):
            _put_back(path)
    for path in disposable(run_dir, keep):
        shutil.rmtree(path, ignore_errors=True)


def set_aside(run_dir: Path, step: int) -> None:
    """Rename the checkpoints after ``step``, all damaged: a resumed run must not take them for its newest."""
    for path in listing(run_dir):
        if step_of(path) > step:
            target = path.with_name(f"damaged_{name_of(step_of(path))}")
            shutil.rmtree(target, ignore_errors=True)
            path.rename(target)


def parse_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint's directory, with a valid checksum and unknown content; raises ``Damaged``."""
    try:
        manifest = json.loads(read_file(path / MANIFEST))
        same = manifest.pop("checksum") == checksum(manifest)
    except OSError as error:
        raise Damaged(f"{MANIFEST} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise Damaged(f"{MANIFEST} is corrupt") from error
    if not same:
        raise Damaged(f"{MANIFEST} is corrupt (its checksum differs)")
    return manifest


def is_intact(path: Path) -> bool:
    """Whether the files of a checkpoint are those that were written: all of them are read."""
    try:
        manifest = parse_manifest(path)
        files = manifest["sha256"]
        whole = STATE in files and manifest["step"] == step_of(path)
        return whole and all(digest(path / name)[0] == expected for name, expected in files.items())
    except (Damaged, OSError, KeyError, AttributeError, TypeError, ValueError):
        return False


def digest(path: Path) -> tuple[str, int]:
    """The file's sha256 and size. Raises ``OSError``, also for a pipe or a device."""
    require_file(path)
    found, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
            size += len(part)
    return found.hexdigest(), size


def checksum(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
