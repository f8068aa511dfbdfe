"""Checkpoints on disk: written so that a crash, a full disk or a flipped bit never costs the previous one.

A checkpoint is a directory ``RUN/checkpoints/step_00000500`` with

    model.safetensors   the weights, readable by anything that reads safetensors
    state.pt            optimizer, random numbers, carried state, data position: what exact resume needs
    manifest.json       format, step, versions, configuration, task state, and the sha256 of all three

It is written under a temporary name, every file and directory synced, and then renamed, which is atomic. With
``trainer.checkpoint_format=sharded`` it holds other files: see ``sharded.py``.
``RUN/checkpoints/best.json`` names the checkpoint with the lowest validation loss.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from prnn.errors import UserError
from prnn.training.checkpoint import schema
from prnn.training.disk import read_file, replace, sync_directory, write_synced
from prnn.training.mistakes import ran_out_of_memory
from prnn.training.observe.record_reader import read_object

FORMAT, SHARDED = 1, 2  # written by rank 0, as here; by all ranks, as in sharded.py
WEIGHTS, STATE, MANIFEST, BEST = "model.safetensors", "state.pt", "manifest.json", "best.json"
_ASIDE = ".old.tmp"  # ends the name of a checkpoint that is being replaced by another of its step
_NAME = re.compile(rf"step_(\d{{8,}})|\.step_(\d{{8,}}){re.escape(_ASIDE)}")
_log = logging.getLogger(__name__)


class Damaged(Exception):
    """This checkpoint cannot be used; the message says which file and why."""


class SaveFailed(UserError):
    """The checkpoint could not be written; the ones before it are as they were."""


def damaged(path: Path, problem: str) -> UserError:
    """The sentence about a checkpoint whose files are as they were written, and not what they should be."""
    return UserError(f"the checkpoint {path} is damaged: {problem}.")


def not_written(temporary: Path, step: int, reason: str) -> SaveFailed:
    """The sentence about a checkpoint that was to become of ``temporary``."""
    return SaveFailed(
        f"the checkpoint of step {step} could not be written to {temporary.parent} ({reason}); "
        "earlier checkpoints are untouched: free space there, or set run_dir to another disk."
    )


@dataclass
class Checkpoint:
    """A checkpoint in memory. ``manifest["config"]`` and ``manifest["task"]`` rebuild the task and its model."""

    path: Path
    manifest: dict[str, Any]
    model_state: Mapping[str, Tensor]
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.manifest["step"])


def folder(run_dir: Path | str) -> Path:
    """Where a run keeps its checkpoints."""
    return Path(run_dir) / "checkpoints"


def listing(run_dir: Path | str) -> list[Path]:
    """The checkpoints of a run, oldest first, damaged ones included.

    One that a crash has left aside, with nothing in its place, is read where it is; ``prune`` puts it back.
    """
    paths = [*folder(run_dir).glob(f".step_*{_ASIDE}"), *folder(run_dir).glob("step_*")]  # of a step, the last counts
    found = {step_of(path): path for path in paths if _NAME.fullmatch(path.name) and path.is_dir()}
    return [found[step] for step in sorted(found)]


def step_of(path: Path) -> int:
    """The step of a checkpoint's directory."""
    match = _NAME.fullmatch(path.name)
    assert match is not None, path
    return int(match[1] or match[2])


def name_of(step: int) -> str:
    """The name of the directory of the checkpoint of ``step``."""
    return f"step_{step:08d}"


def save(
    run_dir: Path, step: int, model_state: dict[str, Tensor], state: dict[str, Any], manifest: dict[str, Any]
) -> Path:
    """Write the checkpoint of ``step`` and return its directory.

    Raises ``SaveFailed`` when the disk is full or not writable, after removing what was begun.
    """
    # Serialised in memory first: both libraries report a full disk as errors of their own when they write the file.
    # clone() because safetensors refuses tensors that share memory (tied weights).
    weights = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model_state.items()}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    files = {WEIGHTS: safetensors.torch.save(weights), STATE: buffer.getvalue()}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    temporary = begin(run_dir, step)
    try:
        for name, content in files.items():
            write_synced(temporary / name, content)
        return complete(temporary, step, manifest, digests)
    except OSError as error:
        discard(temporary)
        raise not_written(temporary, step, error.strerror or str(error)) from error


def begin(run_dir: Path, step: int) -> Path:
    """An empty directory to write the checkpoint of ``step`` to. A run directory that is gone is not made anew."""
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
    """Add the manifest to the files that are written, with their sha256s, and give the directory its name."""
    manifest = {"format": layout, "step": step, **manifest, "sha256": digests}
    manifest = json.loads(json.dumps(manifest))  # as it will be read back, for the checksum
    write_synced(temporary / MANIFEST, json.dumps({**manifest, "checksum": _checksum(manifest)}, indent=1).encode())
    sync_directory(temporary)
    final = temporary.with_name(name_of(step))
    _put_in_place(temporary, final)
    return final


def discard(temporary: Path) -> None:
    """Remove what was begun."""
    shutil.rmtree(temporary, ignore_errors=True)


def holds_none(run_dir: Path | str) -> bool:
    """Whether a run has no checkpoint, but perhaps an unfinished one. False as well where that cannot be known: its
    folder is a link that leads nowhere, say.
    """
    place = folder(run_dir)
    if not place.is_dir():
        return not os.path.lexists(place)
    names = [path.name for path in place.iterdir()]
    return all(name.endswith(".tmp") and not name.endswith(_ASIDE) for name in names)


def _put_in_place(temporary: Path, final: Path) -> None:
    """Rename ``temporary`` to ``final``; a checkpoint that stands there is removed only when this is done.

    It is this very step, saved again after its validation, or by a resumed run that had nothing left to do.
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
    """Give a checkpoint that was put aside its place again, if it is empty; ``listing`` knows one that stays aside."""
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


def prune(run_dir: Path, keep: int) -> None:
    """Remove all but the ``keep`` newest checkpoints and the best one, and what an interrupted save left behind."""
    best = best_name(run_dir)
    for path in listing(run_dir):
        if path.name.endswith(_ASIDE):
            _put_back(path)
    paths = listing(run_dir)
    for path in paths[: max(0, len(paths) - max(1, keep))]:
        if name_of(step_of(path)) != best:
            shutil.rmtree(path, ignore_errors=True)
    for leftover in set(folder(run_dir).glob(".step_*.tmp")) - set(paths):
        shutil.rmtree(leftover, ignore_errors=True)


def set_aside(run_dir: Path, step: int) -> None:
    """Rename the checkpoints after ``step``: damaged ones, which must not pass for the newest of a resumed run."""
    for path in listing(run_dir):
        if step_of(path) > step:
            target = path.with_name(f"damaged_{name_of(step_of(path))}")
            shutil.rmtree(target, ignore_errors=True)
            path.rename(target)


def read(run_dir: Path | str, which: str = "last") -> Checkpoint:
    """Load and verify the ``last`` or ``best`` checkpoint of a run.

    A damaged or missing one is passed over with a warning, for the newest that is whole. ``UserError`` if there is
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
    """A folder that cannot be read looks empty to ``listing``."""
    try:
        next(path.iterdir(), None)
    except (PermissionError, NotADirectoryError) as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None


def open_checkpoint(path: Path) -> Checkpoint:
    """Load one checkpoint directory; raises ``Damaged``. Nothing in it is executed."""
    manifest = _read_manifest(path)
    if manifest["format"] == SHARDED:
        from prnn.training.checkpoint import sharded  # which stands on this file

        return sharded.open_checkpoint(path, manifest)
    contents = {}
    for name in (WEIGHTS, STATE):
        try:
            contents[name] = read_file(path / name)
        except OSError as error:
            raise Damaged(f"{name} cannot be read ({error.strerror})") from error
        if hashlib.sha256(contents[name]).hexdigest() != manifest["sha256"][name]:
            raise Damaged(f"{name} is not as it was written (its sha256 differs from the manifest's)")
    try:
        model_state = safetensors.torch.load(contents[WEIGHTS])
        state = torch.load(io.BytesIO(contents[STATE]), map_location="cpu", weights_only=True)
    except Exception as error:  # both libraries raise errors of their own
        if ran_out_of_memory(error):
            raise
        raise Damaged(f"it cannot be decoded ({first_line(error)})") from error
    return Checkpoint(path, manifest, model_state, state)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(read_file(path / MANIFEST))
        checksum = manifest.pop("checksum")
        same = checksum == _checksum(manifest)
    except OSError as error:
        raise Damaged(f"{MANIFEST} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise Damaged(f"{MANIFEST} is not as it was written") from error
    if not same:
        raise Damaged(f"{MANIFEST} is not as it was written (its checksum differs)")
    kind = manifest.get("format", FORMAT)
    if kind not in (FORMAT, SHARDED):
        raise UserError(f"{path} has checkpoint format {kind}, this version of prnn reads {FORMAT} and {SHARDED}.")
    if (problem := schema.manifest_fault(manifest, kind == SHARDED)) is not None:
        raise Damaged(f"{MANIFEST} is not what it should be ({problem})")
    for name in (WEIGHTS, STATE) if kind == FORMAT else (STATE,):
        if name not in manifest["sha256"]:
            raise Damaged(f"{MANIFEST} has no sha256 of {name}")
    if manifest["step"] != step_of(path):
        raise Damaged(f"{MANIFEST} is of step {manifest['step']}: another checkpoint under this name")
    return manifest


def _checksum(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def first_line(error: BaseException) -> str:
    """What went wrong, for a sentence: the system's word for it, the message's first line, or the error's name."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)


def load_weights(model: torch.nn.Module, loaded: Checkpoint, config: dict[str, Any]) -> None:
    """Put the weights into ``model``. Raises ``UserError`` as ``check_weights`` does."""
    weights = dict(loaded.model_state)
    check_weights(model, loaded, config, weights)
    model.load_state_dict(weights)


def check_weights(
    model: torch.nn.Module, loaded: Checkpoint, config: dict[str, Any], weights: Mapping[str, Tensor] | None = None
) -> None:
    """Raise ``UserError`` where the weights do not fit ``model``, with the settings of ``config`` that differ."""
    weights = loaded.model_state if weights is None else weights
    problem = schema.weights_fault(weights, model.state_dict(), "weights")
    if problem is not None:
        changed = differences(loaded.manifest["config"], config, ("model", "task", "data"))
        listed = ", ".join(f"{key}={old} (this job asks for {new})" for key, old, new in changed)
        if changed:
            raise UserError(f"the checkpoint {loaded.path} does not fit this model: it has {listed}.")
        raise damaged(loaded.path, problem)


def differences(old: dict[str, Any], new: dict[str, Any], sections: tuple[str, ...]) -> list[tuple[str, Any, Any]]:
    """The settings of ``sections`` that differ: dotted key, old value, new value."""
    found = []
    for section in sections:
        before, after = old.get(section) or {}, new.get(section) or {}
        for key in sorted(set(before) | set(after)):
            if before.get(key) != after.get(key):
                found.append((f"{section}.{key}", before.get(key), after.get(key)))
    return found
