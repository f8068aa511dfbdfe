"""A cell's function compiled by torch.compile, called step by step after the product of all inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.kernels.peers.base import Contender, Problem, eager
from benchmarks.kernels.peers.equations import Equations


def build(problem: Problem) -> Contender:
    leaves = problem.leaves()
    equations = Equations(problem, leaves)
    step = torch.compile(equations.step)

    def forward(x: Tensor) -> Tensor:
        state, outputs = equations.zero_state(x), []
        for gates in equations.gates(x).unbind(0):
            state, output = step(state, gates)
            outputs.append(output)
        return torch.stack(outputs)

    return eager(problem, leaves, forward)
