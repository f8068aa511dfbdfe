"""A GEMM per step, captured in a CUDA graph: without launch latency, but the weights are re-read at every step."""

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
        work()  # keep the first call's allocations out of the graph
    torch.cuda.current_stream().wait_stream(side)
    module.zero_grad(set_to_none=True)
    x.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = work()

    def run() -> Tensor:
        # Each replay overwrites the gradients: they were None at capture.
        graph.replay()
        torch.cuda.synchronize()
        return output

    return Contender(run, lambda: {"output": run().clone()} | gradients_of(module, x))
