"""Selection of the checkpoint to resume or sample from: the newest or the best valid one."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

from prnn.errors import UserError
from prnn.training.checkpoint import schema, sharded, whole
from prnn.training.checkpoint.content import Checkpoint
from prnn.training.checkpoint.directory import (
    BEST,
    FORMAT,
    MANIFEST,
    SHARDED,
    STATE,
    WEIGHTS,
    Damaged,
    best_name,
    folder,
    listing,
    name_of,
    parse_manifest,
    step_of,
)

_log = logging.getLogger(__name__)


def read(run_dir: Path | str, which: str = "last") -> Checkpoint:
    """Load and verify the ``last`` or ``best`` checkpoint of a run.

    A damaged or missing one is skipped with a warning, in favour of the newest valid one. ``UserError`` if there is
    none.
    """
    candidates = listing(run_dir)[::-1]
    problems = []
    if which == "best":
        best = best_name(run_dir)
        candidates.sort(key=lambda path: name_of(step_of(path)) != best)  # stable: the best, then newest to oldest
        if best is None:
            problems.append(f"{BEST} is missing or cannot be read: the best checkpoint is not known")
        elif candidates and name_of(step_of(candidates[0])) != best:
            problems.append(f"the best checkpoint, {best}, is missing")
    elif which != "last":
        raise UserError(f"a checkpoint is either last or best, not {which}.")
    if not candidates:
        with contextlib.suppress(FileNotFoundError):
            _require_readable(folder(run_dir))
        raise UserError(f"{run_dir} holds no checkpoint (looked for {folder(run_dir)}/step_*).")
    for path in candidates:
        try:
            loaded = open_checkpoint(path)
        except Damaged as damage:
            problems.append(f"checkpoint {path.name}: {damage}")
            continue
        for problem in problems:
            _log.warning("%s; using %s instead", problem, path.name)
        return loaded
    raise UserError(f"every checkpoint in {folder(run_dir)} is damaged ({'; '.join(problems)}).")


def _require_readable(path: Path) -> None:
    """Raise ``UserError`` for an unreadable folder, which looks empty to ``listing``."""
    try:
        next(path.iterdir(), None)
    except (PermissionError, NotADirectoryError) as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None


def open_checkpoint(path: Path) -> Checkpoint:
    """Load one checkpoint directory; raises ``Damaged``. Nothing in it is executed."""
    manifest = _manifest(path)
    return (sharded if manifest["format"] == SHARDED else whole).open_checkpoint(path, manifest)


def _manifest(path: Path) -> dict[str, Any]:
    """The verified manifest of a checkpoint's directory; raises ``Damaged``."""
    manifest = parse_manifest(path)
    kind = manifest.get("format", FORMAT)
    if kind not in (FORMAT, SHARDED):
        raise UserError(f"{path} has checkpoint format {kind}, this version of prnn reads {FORMAT} and {SHARDED}.")
    if (problem := schema.manifest_fault(manifest, kind == SHARDED)) is not None:
        raise Damaged(f"{MANIFEST} has unexpected content ({problem})")
    for name in (WEIGHTS, STATE) if kind == FORMAT else (STATE,):
        if name not in manifest["sha256"]:
            raise Damaged(f"{MANIFEST} has no sha256 of {name}")
    if manifest["step"] != step_of(path):
        raise Damaged(f"{MANIFEST} is of step {manifest['step']}: the directory name does not match")
    return manifest
