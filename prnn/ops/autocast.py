"""Autocast: a layer casts its operands by hand and switches it off, since it would cast what accumulates in float32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

_NOTHING = nullcontext()


def autocast_enabled(x: Tensor) -> bool:
    """Whether autocast is on where x is; it knows nothing of some devices, such as "meta", and says so by an error."""
    if x.is_cpu:  # the shortest way: asking for the name of the device and about it takes 8 us of a call
        return torch.is_autocast_enabled("cpu")
    if x.is_cuda:  # torch.compile of torch 2.11 does not trace the question below
        return torch.is_autocast_enabled("cuda")
    return torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type)


def autocast_dtype(x: Tensor) -> torch.dtype:
    """What ``layer`` computes x in: autocast's dtype where it is on and touches x's (never float64), else its own."""
    cast = autocast_enabled(x) and x.is_floating_point() and x.dtype != torch.float64
    return torch.get_autocast_dtype(x.device.type) if cast else x.dtype


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A block without it, at no cost where it is off."""
    return torch.autocast(x.device.type, enabled=False) if autocast_enabled(x) else _NOTHING
