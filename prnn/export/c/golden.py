"""golden.bin, the file that ``parts/replay.c`` documents."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from prnn.errors import UserError
from prnn.export.program import Case


def golden(cases: Sequence[Case], output_size: int, states: Sequence[int], whole: bool) -> bytes:
    """The bytes of the file; ``states``: the floats of each; ``whole``: the model has no step, and takes no resets."""
    parts = [b"PRNN", struct.pack(f"<{2 + len(states)}i", len(cases), len(states), *states)]
    state_floats = sum(states)
    for case in cases:
        if case.resets is not None and whole:
            raise UserError("a case has resets, and the model a layer that runs backwards: expected cases without them")
        T, B = case.input.shape[:2]
        elements = T * B * output_size, B * state_floats
        if (case.output.numel(), sum(each.numel() for each in case.final)) != elements:
            raise UserError(
                f"a case of {T} frames and {B} streams has an output {list(case.output.shape)} and final states "
                f"{[list(each.shape) for each in case.final]}: expected {elements[0]} and {elements[1]} entries"
            )
        sizes = (T, B, case.input[0, 0].numel() if T * B else 0, output_size, state_floats, case.resets is not None)
        parts.append(struct.pack("<6i", *sizes))
        parts.append(_bytes(case.input, "f" if case.input.is_floating_point() else "i"))
        parts += [] if case.resets is None else [_bytes(case.resets, "?")]
        parts.append(_bytes(_joined(case.states, B), "f"))
        parts += [_bytes(case.output, "d"), _bytes(_joined(case.final, B), "d")]
    return b"".join(parts)


def _joined(states: Sequence[Tensor], B: int) -> Tensor:
    """States [B,*] as [B,S]."""
    return torch.cat([state.reshape(B, -1) for state in states], dim=1) if states else torch.empty(B, 0)


def _bytes(tensor: Tensor, kind: str) -> bytes:
    """The elements as little-endian numbers, of a format of ``struct``."""
    elements = tensor.detach().cpu().flatten().tolist()
    return struct.pack(f"<{len(elements)}{kind}", *elements)
