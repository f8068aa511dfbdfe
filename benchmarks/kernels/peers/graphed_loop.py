"""The loop of peers/unbound_loop.py, captured in a CUDA graph: without launch latency, but a kernel for each operation
of each step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from benchmarks.kernels.peers import python_loop
from benchmarks.kernels.peers.base import Absent, Contender, Problem


def build(problem: Problem) -> Contender:
    leaves = problem.leaves()
    forward = python_loop.forward_of(problem, leaves, lambda gates: gates.unbind(0))
    return replayed(problem, leaves, forward)


def replayed(problem: Problem, leaves: Mapping[str, Tensor], forward: Callable[[Tensor], Tensor]) -> Contender:
    """``forward`` of x and its backward pass as a graph."""
    if problem.x.device.type != "cuda":
        raise Absent("on a GPU only")
    x = problem.x.clone().requires_grad_(problem.train and problem.case.input_requires_grad)

    def work() -> Tensor:
        with torch.set_grad_enabled(problem.train):
            output = forward(x)
            if problem.train:
                output.backward(problem.grad_output)
        return output.detach()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()  # keep the first call's allocations out of the graph
    torch.cuda.current_stream().wait_stream(side)
    for leaf in (x, *leaves.values()):
        leaf.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = work()

    def run() -> Tensor:
        # Each replay overwrites the gradients: they were None at capture.
        graph.replay()
        torch.cuda.synchronize()
        return output

    def tensors() -> dict[str, Tensor]:
        results = {"output": run().clone()}
        return results | {name: leaf.grad.clone() for name, leaf in {**leaves, "x": x}.items() if leaf.grad is not None}

    return Contender(run, tensors)
