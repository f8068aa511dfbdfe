"""Device and precision of a forward pass."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from prnn.task import Batch

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The autocast context of every forward pass for ``trainer.precision``."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, PRECISIONS[precision])


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on ``device``."""
    if device.type == "cpu":
        return batch
    return replace(batch, tensors={name: value.to(device, non_blocking=True) for name, value in batch.tensors.items()})
