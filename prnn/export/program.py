"""What every format is written from: a model with its state as arguments, and what a replay compares with.

Letters: T frames, B streams.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from torch.export import ExportedProgram


class State(NamedTuple):
    """One tensor of a model's state: an identifier, its value before the first frame, of one stream, and the dimension
    that is the streams'.
    """

    name: str
    initial: Tensor
    dim: int = 1

    @property
    def given(self) -> str:
        """Its name as an input: "h0"."""
        return f"{self.name}_0" if self.name[-1].isdigit() else f"{self.name}0"

    @property
    def final(self) -> str:
        """Its name as an output: "h_n"."""
        return f"{self.name}_n"


@dataclass(frozen=True)
class Step:
    """A model on one frame of one stream: T = B = 1, float32."""

    program: ExportedProgram  # (input, *states) -> (output, *new states)
    states: tuple[State, ...]


@dataclass(frozen=True)
class Case:
    """What a replay compares with: from the training code in float64, and in float32. In the layouts of the model; for
    C with frames along dimension 0 and streams along 1, of states along 0. ``resets`` set a stream's state to its
    initial value before a frame.
    """

    input: Tensor
    resets: Tensor | None  # [T,B] booleans
    states: tuple[Tensor, ...]  # before the first frame
    output: Tensor  # float64
    final: tuple[Tensor, ...]  # float64
    output_single: Tensor | None = None
    final_single: tuple[Tensor, ...] = ()
