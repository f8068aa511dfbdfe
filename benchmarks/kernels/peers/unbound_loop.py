"""The loop of peers/python_loop.py over ``gates.unbind(0)``: the gradient of each step is that of the step alone."""

from __future__ import annotations

from benchmarks.kernels.peers import python_loop
from benchmarks.kernels.peers.base import Contender, Problem


def build(problem: Problem) -> Contender:
    return python_loop.contender(problem, lambda gates: gates.unbind(0))
