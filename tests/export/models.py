"""Models as steps, and their cases in float64."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prnn.export.program import Case, State, Step


class Flat(nn.Module):
    """A model (input, state) -> (output, state) with its states as arguments and results of their own."""

    def __init__(self, model: nn.Module, names: Sequence[str], as_dictionary: bool) -> None:
        super().__init__()
        self.model, self.names, self.as_dictionary = model, tuple(names), as_dictionary

    def forward(self, x: Tensor, *states: Tensor) -> Any:
        given: Any = None
        if self.as_dictionary:
            given = dict(zip(self.names, states, strict=True))
        elif states:
            given = states[0] if len(states) == 1 else states
        result = self.model(x, given) if states else self.model(x)
        if not states:
            return (result,)
        output, state = result
        found = tuple(state[name] for name in self.names) if isinstance(state, Mapping) else state
        return (output, found) if isinstance(found, Tensor) else (output, *found)


class Exported:
    """A model's step, and what makes its cases. ``shapes``: of its states, with B = 1 at ``batch_dim`` 1."""

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        shapes: Mapping[str, Sequence[int]] | None = None,
        as_dictionary: bool = False,
    ) -> None:
        self.x, self.shapes = x, shapes or {}
        self.flat = Flat(model.eval(), list(self.shapes), as_dictionary).eval()
        states = [torch.zeros(*shape) for shape in self.shapes.values()]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            program = torch.export.export(self.flat, (x, *states), strict=False)
        named = tuple(State(name, state) for name, state in zip(self.shapes, states, strict=True))
        self.step = Step(program, named)

    def case(self, T: int, B: int, seed: int = 0, resets: bool = False) -> Case:
        """Random input and states."""
        generator = torch.Generator().manual_seed(seed)
        shape = (T, B, *self.x.shape[2:])
        x = (
            torch.randn(shape, generator=generator)
            if self.x.is_floating_point()
            else torch.randint(self.vocabulary, shape, generator=generator)
        )
        states = [
            self.scale * torch.randn(_with_batch(size, B), generator=generator).clamp(-1, 1)
            for size in self.shapes.values()
        ]
        reset = torch.rand(T, B, generator=generator) < 0.2 if resets else None
        output, final = self._run(x, states, reset)
        rows = tuple(_rows(state) for state in states)
        return Case(x, reset, rows, output, tuple(_rows(state) for state in final))

    vocabulary = 0  # of a model that takes tokens
    scale = 1.0  # of the random states

    def _run(self, x: Tensor, states: Sequence[Tensor], resets: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        wide = copy.deepcopy(self.flat).double()
        x = x.double() if x.is_floating_point() else x
        now = [state.double() for state in states]
        outputs = []
        with torch.no_grad():
            if resets is None:
                output, *now = wide(x, *now)
                return output, now
            for t in range(len(x)):
                now = [state.masked_fill(resets[t].reshape(1, -1, *[1] * (state.dim() - 2)), 0) for state in now]
                output, *now = wide(x[t : t + 1], *now)
                outputs.append(output)
        return torch.cat(outputs), now


def _with_batch(shape: Sequence[int], B: int) -> list[int]:
    return [shape[0], B, *shape[2:]]


def _rows(state: Tensor) -> Tensor:
    """[L*D,B,H] as [B,L*D*H]."""
    return state.transpose(0, 1).flatten(1)
