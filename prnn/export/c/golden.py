"""golden.bin, the file that ``parts/replay.c`` documents."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from prnn.errors import UserError
from prnn.export.program import Case


def golden(cases: Sequence[Case], output_size: int, state_floats: int, whole: bool) -> bytes:
    """The bytes of the file; ``whole``: the model has no step, and takes no resets."""
    parts = [b"PRNN", struct.pack("<i", len(cases))]
    for case in cases:
        if case.resets is not None and whole:
            raise UserError("a case has resets, and the model a layer that runs backwards: expected cases without them")
        T, B = case.input.shape[:2]
        sizes = (T, B, case.input[0, 0].numel() if T * B else 0, output_size, state_floats, case.resets is not None)
        parts.append(struct.pack("<6i", *sizes))
        parts.append(_bytes(case.input, "<f4" if case.input.is_floating_point() else "<i4"))
        parts += [] if case.resets is None else [_bytes(case.resets, "u1")]
        parts.append(_bytes(_joined(case.states, B), "<f4"))
        parts += [_bytes(case.output, "<f8"), _bytes(_joined(case.final, B), "<f8")]
    return b"".join(parts)


def _joined(states: Sequence[Tensor], B: int) -> Tensor:
    """States [B,*] as [B,S]."""
    return torch.cat([state.reshape(B, -1) for state in states], dim=1) if states else torch.empty(B, 0)


def _bytes(tensor: Tensor, kind: str) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().astype(np.dtype(kind)).tobytes()
