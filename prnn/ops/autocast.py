"""Autocast: a layer casts its operands explicitly and disables autocast, which would cast float32 accumulators too."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def autocast_enabled(x: Tensor) -> bool:
    """Whether autocast is enabled for x's device; torch raises for device types without autocast, such as "meta"."""
    if x.is_cpu:  # fast path: querying the device type and its autocast state takes 8 us of a call
        return torch.is_autocast_enabled("cpu")
    if x.is_cuda:  # torch.compile of torch 2.11 does not trace the query below
        return torch.is_autocast_enabled("cuda")
    return torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type)


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The dtype ``layer`` computes x in: the autocast dtype where autocast applies (never to float64), else x's."""
    cast = autocast_enabled(x) and x.is_floating_point() and x.dtype != torch.float64
    return torch.get_autocast_dtype(x.device.type) if cast else x.dtype


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A context manager that disables autocast; free where it is disabled already."""
    return torch.autocast(x.device.type, enabled=False) if autocast_enabled(x) else nullcontext()
