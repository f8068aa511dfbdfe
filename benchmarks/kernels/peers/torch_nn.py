"""torch.nn's modules, and prnn's, which have the same interface."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import prnn
from benchmarks.kernels.peers.base import Contender, Problem, make_module


def build(problem: Problem) -> Contender:
    """torch.nn; samples of different lengths are passed as a PackedSequence, and the time includes packing."""
    module = _module(problem, nn)

    def forward(x: Tensor) -> Tensor:
        if problem.lengths is None:
            return module(x)[0]
        packed = pack_padded_sequence(x, problem.lengths, enforce_sorted=False)
        return pad_packed_sequence(module(packed)[0])[0]

    return _contender(problem, module, forward)


def build_prnn(problem: Problem) -> Contender:
    """prnn; samples of different lengths as ``lengths=``."""
    module = _module(problem, prnn)
    backend = prnn.explain(module, problem.x, lengths=problem.lengths).splitlines()[1].split(": ", 1)[1]
    return _contender(problem, module, lambda x: module(x, lengths=problem.lengths)[0], backend)


def _module(problem: Problem, package: object) -> nn.Module:
    module = make_module(package, problem.case).to(problem.x.device, problem.x.dtype)
    module.load_state_dict(problem.weights)
    return module


def _contender(problem: Problem, module: nn.Module, forward: object, note: str = "") -> Contender:
    case = problem.case
    x = problem.x.clone().requires_grad_(problem.train and case.input_requires_grad)
    on_gpu = x.device.type == "cuda"

    def run() -> Tensor:
        if problem.train:
            module.zero_grad(set_to_none=True)
            x.grad = None
            output = forward(x)
            output.backward(problem.grad_output)
        else:
            with torch.no_grad():
                output = forward(x)
        if on_gpu:
            torch.cuda.synchronize()
        return output

    def tensors() -> dict[str, Tensor]:
        results = {"output": run().detach().clone()}
        if problem.train:
            results |= {name: weight.grad.clone() for name, weight in module.named_parameters()}
            results |= {"x": x.grad.clone()} if x.grad is not None else {}
        return results

    return Contender(run, tensors, note)
