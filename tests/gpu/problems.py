"""Layers to compute and what is right of them: the equations in double precision, on the CPU, at the operands as the
dtype rounds them.

Shapes: T time steps, B batch, I input size, H hidden size, G gates; D directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from prnn.cell_table import CELLS
from prnn.ops import Weights, reference
from prnn.ops.operands import Operands
from tests.gpu.compare import Results
from tests.gpu.targets import KINDS, Target

OPTIONS = ("plain", "lengths", "resets", "reverse", "everything")
INPUT_SIZE = 5
# A result has at least so many elements, over all draws of a problem together, but there are no more draws than that.
ELEMENTS, MOST_DRAWS = 1000, 512
WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class Case(NamedTuple):
    """One layer: its cell, the kind of arithmetic, T, B, H and what is asked of it; in one direction or both."""

    cell: str
    kind: str
    size: tuple[int, int, int]
    options: str
    both: bool = False

    @property
    def endings(self) -> tuple[str, ...]:
        """Of the names of each direction's weights."""
        return ("", "_reverse") if self.both else ("",)

    @property
    def reverse(self) -> bool:
        return self.options in ("reverse", "everything")

    @property
    def draws(self) -> int:
        _, B, H = self.size
        return max(1, min(MOST_DRAWS, -(-ELEMENTS // (B * H))))


@dataclass(frozen=True)
class Problem:
    """A case's operands, on the CPU in the case's dtype, and the gradients that come in."""

    case: Case
    # x [T,B,I]; h0, c0 [D,B,H], c0 in float32; the weights, those of the second direction ending in "_reverse".
    leaves: Results
    steps: Results  # lengths and resets, where the case has them
    incoming: list[Tensor]  # of output [T,B,D*H], h_n and c_n [D,B,H]


def draw(case: Case, number: int = 0) -> Problem:
    """The ``number``-th drawing of a case."""
    (T, B, H), I, D = case.size, INPUT_SIZE, len(case.endings)
    dtype, spec = KINDS[case.kind], CELLS[case.cell]
    generator = torch.Generator().manual_seed(number * 1_000_003 + T * 1000 + B * 10 + H)

    def some(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

    rows = spec.gates * H
    leaves = {"x": some(T, B, I)}
    for ending in case.endings:
        drawn = some(rows, I), some(rows, H, scale=0.7 * H**-0.5), some(rows), some(rows)
        leaves |= {name + ending: weight for name, weight in zip(WEIGHTS, drawn, strict=True)}
    leaves["h0"] = some(D, B, H)
    if spec.has_c:
        leaves["c0"] = some(D, B, H).float()
    steps = {}
    if case.options in ("lengths", "everything"):
        steps["lengths"] = torch.randint(0, T + 1, (B,), generator=generator)
    if case.options in ("resets", "everything"):
        steps["resets"] = torch.rand((T, B), generator=generator) < 0.2
    incoming = [some(T, B, D * H), some(D, B, H), *([some(D, B, H).float()] if spec.has_c else [])]
    if "lengths" in steps:
        incoming[0][torch.arange(T).unsqueeze(-1) >= steps["lengths"]] = 0
    return Problem(case, leaves, steps, incoming)


def found(problem: Problem, target: Target, regime: str | None) -> Results:
    """What the target makes of it: the outputs, and the gradients of all operands, by name."""
    case, device = problem.case, target.device
    leaves = {name: leaf.to(device).detach().requires_grad_() for name, leaf in problem.leaves.items()}
    weights = [[leaves[name + ending] for name in WEIGHTS] for ending in case.endings]
    x, h0, c0 = leaves["x"], leaves["h0"], leaves.get("c0")
    options = {name: value.to(device) for name, value in problem.steps.items()}
    with target.forced(regime, case.kind):
        if case.both:
            state = [part for part in (h0, c0) if part is not None]
            output, last = target.directions(x, [Weights(*own) for own in weights], state, case.cell, **options)
            ends = output, *last
        else:
            c = None if c0 is None else c0[0]
            output, *state = target.layer(x, *weights[0], h0[0], c, cell=case.cell, reverse=case.reverse, **options)
            ends = (output, *(None if y is None else y[None] for y in state))
        ends = [end for end in ends if end is not None]
        incoming = [grad.to(device) for grad in problem.incoming]
        return _named(ends, leaves, torch.autograd.grad(ends, list(leaves.values()), incoming))


def right(problems: Sequence[Problem], outputs: Sequence[Tensor] | None = None) -> Results:
    """What the equations make of drawings of one case, stacked. Those of rnn_relu are not differentiable where a gate
    is zero, and a rounding decides on which side of it an element stands: the gradient there is that of the side it has
    in ``outputs``.
    """
    case = problems[0].case

    def one(leaves: Results, incoming: list[Tensor], others: Results) -> Results:
        ends, pull = torch.func.vjp(lambda given: _equations(case, given, others), leaves)
        (grads,) = pull(tuple(incoming))
        return _named(ends, leaves, list(grads.values()))

    # All at once: hundreds of small problems take as long as one.
    leaves = {name: torch.stack([p.leaves[name] for p in problems]).double() for name in problems[0].leaves}
    incoming = [torch.stack(grads).double() for grads in zip(*(p.incoming for p in problems), strict=True)]
    others = {name: torch.stack([p.steps[name] for p in problems]) for name in problems[0].steps}
    if outputs is not None:
        others["output"] = torch.stack([output.detach().cpu() for output in outputs])
    return torch.func.vmap(one)(leaves, incoming, others)


def _equations(case: Case, leaves: Results, others: Results) -> tuple[Tensor, ...]:
    """output [T,B,D*H], h_n, c_n [D,B,H]; c_n where the cell has one."""
    H, spec = case.size[2], CELLS[case.cell]
    ends = []
    lengths, resets = others.get("lengths"), others.get("resets")
    for d, ending in enumerate(case.endings):
        reverse, forward = case.reverse or d == 1, spec.forward
        if "output" in others:
            states = others["output"][..., d * H : (d + 1) * H]
            states = reference.reverse_steps(states, lengths) if reverse else states
            forward = _relu_with_sides(iter(states > 0))
        weights = [leaves[name + ending] for name in WEIGHTS]
        state = [part[d : d + 1] for part in (leaves["h0"], leaves.get("c0")) if part is not None]
        given = Operands.of(leaves["x"], [Weights(*weights)], state, lengths, resets)
        output, *last = reference.layer(given, replace(spec, forward=forward), reverse)[: 2 + spec.has_c]
        ends.append((output, *last))
    outputs, *states = zip(*ends, strict=True)
    return torch.cat(outputs, -1), *(torch.cat(state) for state in states)


def _named(ends: Sequence[Tensor], leaves: Results, grads: Sequence[Tensor]) -> Results:
    gradients = {f"grad_{name}": grad for name, grad in zip(leaves, grads, strict=True)}
    return dict(zip(("output", "h_n", "c_n"), ends, strict=False)) | gradients


def _relu_with_sides(sides: Iterator[Tensor]) -> Callable[..., tuple[Tensor, None, tuple[()]]]:
    """The cell rnn_relu, whose gradient passes at each step where ``sides`` [B,H] says so."""

    def forward(gates_x: Tensor, gates_h: Tensor, h_prev: Tensor, c_prev: None) -> tuple[Tensor, None, tuple[()]]:
        gate = gates_x + gates_h
        passing = torch.where(next(sides), gate, 0)
        return passing + (torch.relu(gate) - passing).detach(), None, ()

    return forward
