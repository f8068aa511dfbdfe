"""The interface of a peer: its problem and its contender.

T: time steps, B: batch, I: input size, H: hidden size, D: directions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import prnn
from benchmarks.kernels import spikes
from benchmarks.kernels.cases import Case
from benchmarks.kernels.python_gru import python_gru
from prnn import cells


class Absent(Exception):
    """This peer does not take part; the reason: not installed, or the case is not supported."""


@dataclass(frozen=True)
class Problem:
    """One case with its tensors: the same for all contenders, which copy what they change.

    x [T,B,I]; grad_output [T,B,D*H], the gradient of the output; lengths [B] or None; ``weights``: torch.nn's
    state_dict, or that of prnn.Recurrent, in which only those named in ``trained`` get gradients. ``train``:
    forward+backward, else forward alone, without gradients. ``note``: what was chosen about the input.
    """

    case: Case
    train: bool
    threads: int
    x: Tensor
    grad_output: Tensor
    lengths: Tensor | None
    weights: dict[str, Tensor]
    trained: tuple[str, ...]
    note: str = ""

    @classmethod
    def of(cls, case: Case, train: bool, threads: int, device: str = "cpu") -> Problem:
        torch.manual_seed(0)
        module, note = make_module(prnn if case.in_python else nn, case), ""
        if case.cell in spikes.CELLS:
            x, note = spikes.clear_input(module, case)
        else:
            x = torch.randn(case.T, case.B, case.I)
        grad_output = torch.randn(case.T, case.B, case.D * case.H)
        lengths = None
        if case.lengths:
            lengths = torch.randint(1, case.T + 1, (case.B,))
            lengths[0] = case.T  # torch.nn's output is then T steps long
        dtype = getattr(torch, case.dtype)
        x, grad_output = x.to(device, dtype), grad_output.to(device, dtype)
        weights = {name: weight.to(device, dtype) for name, weight in module.state_dict().items()}
        trained = tuple(name for name, weight in module.named_parameters() if weight.requires_grad)
        return cls(case, train, threads, x, grad_output, lengths, weights, trained, note)

    def leaves(self) -> dict[str, Tensor]:
        """Copies of the weights, with gradients for those that are trained."""
        return {n: w.clone().requires_grad_(self.train and n in self.trained) for n, w in self.weights.items()}


@dataclass(frozen=True)
class Contender:
    """``run`` does the whole work once and returns when it is done. ``tensors`` does it once and returns the output
    and, in training, every gradient under its parameter's name (the input's under "x"). ``timed``: False if it only
    says what is right. ``compared``: False if it has other equations, so that its numbers say nothing.
    """

    run: Callable[[], object]
    tensors: Callable[[], dict[str, Tensor]]
    note: str = ""
    timed: bool = True
    compared: bool = True


def eager(
    problem: Problem,
    parameters: Mapping[str, Tensor],
    forward: Callable[[Tensor], Tensor],
    note: str = "",
    **flags: bool,
) -> Contender:
    """A contender that is called as a torch module: ``forward`` of x, then the output's ``backward``."""
    case = problem.case
    x = problem.x.clone().requires_grad_(problem.train and case.input_requires_grad)
    on_gpu = x.device.type == "cuda"

    def run() -> Tensor:
        if problem.train:
            x.grad = None
            for parameter in parameters.values():
                parameter.grad = None
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
        named = {**parameters, "x": x}
        return results | {name: leaf.grad.clone() for name, leaf in named.items() if leaf.grad is not None}

    return Contender(run, tensors, note, **flags)


def make_module(package: object, case: Case) -> nn.Module:
    """``torch.nn``'s or ``prnn``'s module for a case; of a cell written in Python, prnn's alone."""
    if case.in_python:
        cell = python_gru if case.cell == "python_gru" else getattr(cells, case.cell)
        return package.Recurrent(cell, case.I, case.H, heads=case.heads)  # type: ignore[attr-defined]
    if case.cell.startswith("rnn"):
        make, options = package.RNN, {"nonlinearity": case.cell.removeprefix("rnn_")}  # type: ignore[attr-defined]
    else:
        make, options = getattr(package, case.cell.upper()), {}
    return make(case.I, case.H, case.layers, bidirectional=case.bidirectional, **options)


def require_plain(problem: Problem) -> None:
    """Raise ``Absent`` unless the case is one layer, one direction, float32, on the CPU."""
    case = problem.case
    if not case.plain:
        raise Absent("one layer in one direction without lengths only")
    if case.dtype != "float32":
        raise Absent("float32 only")
    if problem.x.device.type != "cpu":
        raise Absent("on the CPU only")
