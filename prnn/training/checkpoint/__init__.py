"""Checkpoints on disk: atomic and checksummed, so that a crash, a full disk or a flipped bit never costs the last one.

A checkpoint is a directory ``RUN/checkpoints/step_00000500`` with

    model.safetensors   the weights, readable by anything that reads safetensors
    state.pt            optimizer, RNG states, carried state, data position: what exact resume needs
    manifest.json       format, step, versions, configuration, task state, and the sha256 of all three

It is written under a temporary name, with every file and directory fsynced, and then renamed, which is atomic. With
``trainer.checkpoint_format=sharded`` it holds other files: see ``sharded.py``.
``RUN/checkpoints/best.json`` names the checkpoint with the lowest validation loss.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from prnn.training.checkpoint.directory import (
    BEST,
    FORMAT,
    MANIFEST,
    STATE,
    WEIGHTS,
    Damaged,
    SaveFailed,
    best_name,
    damaged,
    disposable,
    first_line,
    folder,
    holds_none,
    is_intact,
    last_step,
    listing,
    mark_best,
    name_of,
    not_written,
    prune,
    set_aside,
    step_of,
)

if TYPE_CHECKING:
    from prnn.training.checkpoint.content import Checkpoint, check_weights, differences, load_weights
    from prnn.training.checkpoint.reading import open_checkpoint, read
    from prnn.training.checkpoint.whole import save

__all__ = [
    "BEST", "FORMAT", "MANIFEST", "STATE", "WEIGHTS", "Checkpoint", "Damaged", "SaveFailed", "best_name",
    "check_weights", "damaged", "differences", "disposable", "first_line", "folder", "holds_none", "is_intact",
    "last_step", "listing", "load_weights", "mark_best", "name_of", "not_written", "open_checkpoint", "prune", "read",
    "save", "set_aside", "step_of",
]  # fmt: skip
_HOMES = dict.fromkeys(("Checkpoint", "check_weights", "differences", "load_weights"), "content")
_HOMES |= dict.fromkeys(("open_checkpoint", "read"), "reading") | {"save": "whole"}


def __getattr__(name: str) -> Any:
    """What needs torch on first use: a command that only lists checkpoints need not import it."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
