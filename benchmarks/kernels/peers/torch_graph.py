"""A matrix product per step, captured once in a CUDA graph: no launch is waited for, yet the weights are read again and
again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.kernels.peers.base import Absent, Contender, Problem
from benchmarks.kernels.peers.torch_steps import gradients_of, loop, module_and_loop


def build(problem: Problem) -> Contender:
    if problem.x.device.type != "cuda":
        raise Absent("on a GPU only")
    module, x = module_and_loop(problem)

    def work() -> Tensor:
        with torch.set_grad_enabled(problem.train):
            output = loop(problem, module, x)
            if problem.train:
                output.backward(problem.grad_output)
        return output.detach()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()  # what a first call allocates does not belong into the graph
    torch.cuda.current_stream().wait_stream(side)
    module.zero_grad(set_to_none=True)
    x.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = work()

    def run() -> Tensor:
        # Gradients are written anew by each replay: they were None when it was captured.
        graph.replay()
        torch.cuda.synchronize()
        return output

    return Contender(run, lambda: {"output": run().clone()} | gradients_of(module, x))
