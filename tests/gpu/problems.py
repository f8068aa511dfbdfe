"""Layers to compute and what is right of them: the equations in double precision, on the CPU, at the operands as the
dtype rounds them.

Shapes: T time steps, B batch, I input size, H hidden size, G gates; D directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor

from prnn.ops import cells, composite
from tests.gpu.targets import KINDS, Target

OPTIONS = ("plain", "lengths", "resets", "reverse", "everything")
INPUT_SIZE = 5
# A result has at least so many elements, over all draws of a problem together, but there are no more draws than that.
ELEMENTS, MOST_DRAWS = 1000, 512
Results = dict[str, Tensor]


class Case(NamedTuple):
    """One layer: its cell, the kind of arithmetic, T, B, H and what is asked of it; in one direction or both."""

    cell: str
    kind: str
    size: tuple[int, int, int]
    options: str
    both: bool = False

    @property
    def draws(self) -> int:
        _, B, H = self.size
        return max(1, min(MOST_DRAWS, -(-ELEMENTS // (B * H))))


@dataclass(frozen=True)
class Problem:
    """A case's operands, on the CPU in the case's dtype, and the gradients that come in."""

    case: Case
    x: Tensor  # [T,B,I]
    weights: list[list[Tensor]]  # of each direction weight_ih, weight_hh, bias_ih, bias_hh
    h0: Tensor  # [D,B,H]
    c0: Tensor | None  # [D,B,H], float32
    lengths: Tensor | None
    resets: Tensor | None
    incoming: list[Tensor]  # of output [T,B,D*H], h_n and c_n [D,B,H]

    @property
    def reverse(self) -> bool:
        return self.case.options in ("reverse", "everything")


def draw(case: Case, number: int = 0) -> Problem:
    """The ``number``-th drawing of a case."""
    (T, B, H), I, D = case.size, INPUT_SIZE, 2 if case.both else 1
    dtype, spec = KINDS[case.kind], cells.CELLS[case.cell]
    generator = torch.Generator().manual_seed(number * 1_000_003 + T * 1000 + B * 10 + H)

    def some(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

    rows = spec.gates * H
    x = some(T, B, I)
    weights = [[some(rows, I), some(rows, H, scale=0.7 * H**-0.5), some(rows), some(rows)] for _ in range(D)]
    h0 = some(D, B, H)
    c0 = some(D, B, H).float() if spec.has_c else None
    lengths = resets = None
    if case.options in ("lengths", "everything"):
        lengths = torch.randint(0, T + 1, (B,), generator=generator)
    if case.options in ("resets", "everything"):
        resets = torch.rand((T, B), generator=generator) < 0.2
    incoming = [some(T, B, D * H), some(D, B, H), *([some(D, B, H).float()] if spec.has_c else [])]
    if lengths is not None:
        incoming[0][torch.arange(T).unsqueeze(-1) >= lengths] = 0
    return Problem(case, x, weights, h0, c0, lengths, resets, incoming)


# (x, weights of each direction, h0, c0, lengths, resets) -> output [T,B,D*H], h_n [D,B,H], c_n [D,B,H] or None
Run = Callable[..., tuple[Tensor, Tensor, Tensor | None]]


def _evaluate(problem: Problem, run: Run, place: Callable[[Tensor], Tensor]) -> Results:
    """All results by name: the outputs, and the gradients of all operands."""

    def leaf(value: Tensor) -> Tensor:
        return place(value).detach().requires_grad_()

    x, h0, c0 = leaf(problem.x), leaf(problem.h0), None if problem.c0 is None else leaf(problem.c0)
    weights = [[leaf(weight) for weight in own] for own in problem.weights]
    lengths, resets = (None if y is None else y.to(x.device) for y in (problem.lengths, problem.resets))
    ends = [y for y in run(x, weights, h0, c0, lengths, resets) if y is not None]
    leaves = {"grad_x": x, "grad_h0": h0} | ({} if c0 is None else {"grad_c0": c0})
    for own, suffix in zip(weights, ("", "_reverse"), strict=False):
        names = ("grad_weight_ih", "grad_weight_hh", "grad_bias_ih", "grad_bias_hh")
        leaves |= {name + suffix: weight for name, weight in zip(names, own, strict=True)}
    grads = torch.autograd.grad(ends, list(leaves.values()), [place(grad) for grad in problem.incoming])
    return dict(zip(("output", "h_n", "c_n"), ends, strict=False)) | dict(zip(leaves, grads, strict=True))


def found(problem: Problem, target: Target, regime: str | None) -> Results:
    """What the target makes of it."""
    cell = problem.case.cell

    def run(x, weights, h0, c0, lengths, resets):
        given = {"cell": cell, "lengths": lengths, "resets": resets}
        if problem.case.both:
            return target.directions(x, [(*own, None) for own in weights], h0, c0, autocast=False, **given)
        c = None if c0 is None else c0[0]
        output, h_n, c_n = target.layer(x, *weights[0], h0[0], c, reverse=problem.reverse, **given)
        return output, h_n[None], None if c_n is None else c_n[None]

    with target.forced(regime, problem.case.kind):
        return _evaluate(problem, run, lambda value: value.to(target.device))


def right(problem: Problem, output: Tensor | None = None) -> Results:
    """What the equations make of it. Of rnn_relu they are not differentiable where a gate is zero, and a rounding
    decides on which side of it an element stands: the gradient there is that of the side it has in ``output``.
    """
    case = problem.case
    H = case.size[2]
    spec = cells.CELLS[case.cell]

    def run(x, weights, h0, c0, lengths, resets):
        ends = []
        for d, own in enumerate(weights):
            reverse = problem.reverse or d == 1
            sides = None
            if case.cell == "rnn_relu" and output is not None:
                states = output.detach().cpu()[..., d * H : (d + 1) * H]
                sides = iter((composite.reverse_steps(states, lengths) if reverse else states) > 0)
            forward = spec.forward if sides is None else _relu_with_sides(sides)
            with mock.patch.dict(cells.CELLS, {case.cell: replace(spec, forward=forward)}):
                c = None if c0 is None else c0[d]
                given = {"lengths": lengths, "resets": resets, "reverse": reverse}
                ends.append(composite.layer(x, *own, h0[d], c, cell=case.cell, **given))
        outputs, h_n, c_n = zip(*ends, strict=True)
        return torch.cat(outputs, -1), torch.stack(h_n), None if c0 is None else torch.stack(c_n)

    return _evaluate(problem, run, torch.Tensor.double)


def _relu_with_sides(sides: Iterator[Tensor]) -> cells.Forward:
    """The cell rnn_relu, whose gradient passes at each step where ``sides`` [B,H] says so."""

    def forward(gates_x: Tensor, gates_h: Tensor, h_prev: Tensor, c_prev: None) -> tuple[Tensor, None, None]:
        gate = gates_x + gates_h
        passing = torch.where(next(sides), gate, 0)
        return passing + (torch.relu(gate) - passing).detach(), None, None

    return forward
