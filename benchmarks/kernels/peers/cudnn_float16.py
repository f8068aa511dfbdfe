"""torch.nn in float16 for a case in bfloat16: the only dtype for which PyTorch uses cuDNN's persistent LSTM."""

from __future__ import annotations

import dataclasses

import torch

from benchmarks.kernels.peers import torch_nn
from benchmarks.kernels.peers.base import Absent, Contender, Problem


def build(problem: Problem) -> Contender:
    if problem.case.dtype != "bfloat16" or problem.x.device.type != "cuda":
        raise Absent("beside bfloat16 on a GPU only")
    other = dataclasses.replace(
        problem,
        case=dataclasses.replace(problem.case, dtype="float16"),
        x=problem.x.half(),
        grad_output=problem.grad_output.half(),
        weights={name: weight.half() for name, weight in problem.weights.items()},
    )
    half = torch_nn.build(other)
    return Contender(half.run, lambda: {name: t.to(torch.bfloat16) for name, t in half.tensors().items()})
