"""``trainer.checkpoint_format=file``: rank 0 writes the whole checkpoint synchronously."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from prnn.error_messages import is_out_of_memory
from prnn.training.checkpoint.content import Checkpoint
from prnn.training.checkpoint.directory import (
    STATE,
    WEIGHTS,
    Damaged,
    begin,
    complete,
    discard,
    first_line,
    not_written,
)
from prnn.training.disk import read_file, write_synced


def save(
    run_dir: Path, step: int, model_state: dict[str, Tensor], state: dict[str, Any], manifest: dict[str, Any]
) -> Path:
    """Write the checkpoint of ``step`` and return its directory.

    Raises ``SaveFailed`` when the disk is full or not writable, after removing the unfinished checkpoint.
    """
    # Serialised in memory first: when they write files, both libraries report a full disk as their own exceptions.
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


def open_checkpoint(path: Path, manifest: dict[str, Any]) -> Checkpoint:
    """Verify and load both files of the directory; raises ``Damaged``."""
    contents = {}
    for name in (WEIGHTS, STATE):
        try:
            contents[name] = read_file(path / name)
        except OSError as error:
            raise Damaged(f"{name} cannot be read ({error.strerror})") from error
        if hashlib.sha256(contents[name]).hexdigest() != manifest["sha256"][name]:
            raise Damaged(f"{name} is corrupt (its sha256 differs from the manifest's)")
    try:
        model_state = safetensors.torch.load(contents[WEIGHTS])
        state = torch.load(io.BytesIO(contents[STATE]), map_location="cpu", weights_only=True)
    except Exception as error:  # both libraries raise their own exception types
        if is_out_of_memory(error):
            raise
        raise Damaged(f"it cannot be decoded ({first_line(error)})") from error
    return Checkpoint(path, manifest, model_state, state)
