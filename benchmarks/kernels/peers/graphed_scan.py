"""torch's ``scan`` over the steps of a cell, a prototype, in a CUDA graph where it can be captured."""

from __future__ import annotations

from torch import Tensor

from benchmarks.kernels.peers.base import Absent, Contender, Problem
from benchmarks.kernels.peers.equations import Equations
from benchmarks.kernels.peers.graphed_loop import replayed


def build(problem: Problem) -> Contender:
    try:
        from torch._higher_order_ops.scan import scan
    except ImportError as error:
        raise Absent(f"this torch has no scan ({error})") from error
    leaves = problem.leaves()
    equations = Equations(problem, leaves)

    def step(state: tuple[Tensor, ...], gates: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        state, output = equations.step(state, gates)
        return state, output.clone()  # no output may be an alias

    def forward(x: Tensor) -> Tensor:
        return scan(step, equations.zero_state(x), equations.gates(x), dim=0)[1]

    return replayed(problem, leaves, forward)
