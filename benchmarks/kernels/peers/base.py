"""The interface of a peer: its problem and its contender.

T: time steps, B: batch, I: input size, H: hidden size, D: directions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.kernels.cases import Case


class Absent(Exception):
    """This peer does not take part; the reason: not installed, or the case is not supported."""


@dataclass(frozen=True)
class Problem:
    """One case with its tensors: the same for all contenders, which copy what they change.

    x [T,B,I]; grad_output [T,B,D*H], the gradient of the output; lengths [B] or None; ``weights``:
    torch.nn's state_dict. ``train``: forward+backward, else forward alone, without gradients.
    """

    case: Case
    train: bool
    threads: int
    x: Tensor
    grad_output: Tensor
    lengths: Tensor | None
    weights: dict[str, Tensor]

    @classmethod
    def of(cls, case: Case, train: bool, threads: int, device: str = "cpu") -> Problem:
        torch.manual_seed(0)
        weights = make_module(nn, case).state_dict()
        x = torch.randn(case.T, case.B, case.I)
        grad_output = torch.randn(case.T, case.B, case.D * case.H)
        lengths = None
        if case.lengths:
            lengths = torch.randint(1, case.T + 1, (case.B,))
            lengths[0] = case.T  # torch.nn's output is then T steps long
        dtype = getattr(torch, case.dtype)
        x, grad_output = x.to(device, dtype), grad_output.to(device, dtype)
        weights = {name: weight.to(device, dtype) for name, weight in weights.items()}
        return cls(case, train, threads, x, grad_output, lengths, weights)


@dataclass(frozen=True)
class Contender:
    """``run`` does the whole work once and returns when it is done. ``tensors`` does it once and returns the output
    and, in training, every gradient under its parameter's name (the input's under "x").
    """

    run: Callable[[], object]
    tensors: Callable[[], dict[str, Tensor]]
    note: str = ""


def make_module(package: object, case: Case) -> nn.Module:
    """``torch.nn``'s or ``prnn``'s module for a case."""
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
