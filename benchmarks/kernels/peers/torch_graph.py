"""A GEMM per step, captured in a CUDA graph: without launch latency, but the weights are re-read at every step."""

from __future__ import annotations

from benchmarks.kernels.peers.base import Contender, Problem
from benchmarks.kernels.peers.graphed_loop import replayed
from benchmarks.kernels.peers.torch_steps import loop, module_and_loop


def build(problem: Problem) -> Contender:
    module, _ = module_and_loop(problem)
    return replayed(problem, dict(module.named_parameters()), lambda x: loop(problem, module, x))
