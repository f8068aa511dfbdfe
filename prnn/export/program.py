"""A model on one frame of one stream, and the cases that a replay of an export compares with.

Shapes: T frames, B streams.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class State(NamedTuple):
    """A state's ``name``, an identifier such as "h" or "v_1", and its value before the first frame [.., B=1, ..]."""

    name: str
    initial: Tensor


@dataclass(frozen=True)
class Step:
    """A model on one frame of one stream, its state explicit.

    ``program``: (input, *states) -> (output, *new states), T = 1 and B = 1, float32, in evaluation mode. ``input`` and
    ``output`` are their names.
    """

    program: torch.export.ExportedProgram
    input: str
    output: str
    states: tuple[State, ...]


@dataclass(frozen=True)
class Case:
    """What a replay of an export compares with; frames along dimension 0.

    ``input`` [T,B,*] is float32 or int64. ``resets`` [T,B]: true where the state of a stream is set to its initial
    value before the frame. ``states`` [B,*] are the initial ones of each stream; ``output`` [T,B,*] and ``final`` [B,*]
    are in float64, by the training code.
    """

    input: Tensor
    resets: Tensor | None
    states: tuple[Tensor, ...]
    output: Tensor
    final: tuple[Tensor, ...]
