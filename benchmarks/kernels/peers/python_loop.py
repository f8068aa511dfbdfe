"""The equations of a cell as a loop in PyTorch, which is what one writes without a kernel.

What can be is outside the loop: the product of all inputs, both biases, expressions of parameters alone. A step is one
``addmm`` and the cell's own operations; autograd does the rest. The loop takes ``gates[t]``, as most are written, whose
gradient is that of all T steps each time; peers/unbound_loop.py has the remedy.

B: batch, H: hidden size, G: gates, K: heads, D: units of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import linear, logsigmoid

import prnn
from benchmarks.kernels.peers.base import Contender, Problem, eager

Add = Callable[[Tensor, Tensor], Tensor]  # (gates [B,G*H], h [B,H]) -> gates + the recurrent product
Loop = Callable[[Iterable[Tensor], Add, dict[str, Tensor], Tensor], Iterator[Tensor]]


def build(problem: Problem) -> Contender:
    return contender(problem, lambda gates: (gates[t] for t in range(len(gates))))


def contender(problem: Problem, steps: Callable[[Tensor], Iterable[Tensor]]) -> Contender:
    """``steps``: the gates [T,B,G*H] of all inputs -> those of each step."""
    leaves = problem.leaves()
    return eager(problem, leaves, forward_of(problem, leaves, steps))


def forward_of(
    problem: Problem, leaves: dict[str, Tensor], steps: Callable[[Tensor], Iterable[Tensor]]
) -> Callable[[Tensor], Tensor]:
    """x -> output, on these weights."""
    case = problem.case
    loop = LOOPS[case.cell]

    def forward(x: Tensor) -> Tensor:
        bias = leaves["bias_ih_l0"]
        if case.cell != "python_gru":  # whose reset gate acts on the recurrent bias too
            bias = bias + leaves["bias_hh_l0"]
        gates = steps(linear(x, leaves["weight_ih_l0"], bias))
        zeros = x.new_zeros(case.B, case.H)
        return torch.stack(list(loop(gates, _product(leaves["weight_hh_l0"], case.heads), leaves, zeros)))

    return forward


def _product(weight: Tensor, heads: int) -> Add:
    if heads == 1:
        transposed = weight.t()
        return lambda gates, h: torch.addmm(gates, h, transposed)
    rows, D = weight.shape
    G = rows // (heads * D)
    blocks = weight.view(G, heads, D, D).permute(1, 3, 0, 2).reshape(heads, D, G * D)

    def add(gates: Tensor, h: Tensor) -> Tensor:
        product = torch.bmm(h.view(-1, heads, D).transpose(0, 1), blocks)  # [K,B,G*D]
        return gates + product.view(heads, -1, G, D).permute(1, 2, 0, 3).reshape(-1, rows)

    return add


def _leaky(gates: Iterable[Tensor], add: Add, p: dict[str, Tensor], h: Tensor) -> Iterator[Tensor]:
    alpha = torch.sigmoid(p["alpha_logit_l0"])
    keep = 1 - alpha
    for gx in gates:
        h = keep * h + alpha * torch.tanh(add(gx, h))
        yield h


def _lif(gates: Iterable[Tensor], add: Add, p: dict[str, Tensor], h: Tensor) -> Iterator[Tensor]:
    beta, threshold, v = p["beta_l0"].clamp(0, 1), p["threshold_l0"], h
    for gx in gates:
        v = beta * v + add(gx, h) - threshold * h.detach()
        h = prnn.spike(v - threshold, slope=25.0)
        yield h


def _alif(gates: Iterable[Tensor], add: Add, p: dict[str, Tensor], h: Tensor) -> Iterator[Tensor]:
    alpha, rho, beta, theta = (p[f"{name}_l0"] for name in ("alpha", "rho", "beta", "threshold"))
    take, step, v, b = 1 - alpha, 1 - rho, h, h
    threshold = theta + beta * b
    for gx in gates:
        v = alpha * v + take * add(gx, h) - threshold * h
        b = rho * b + step * h
        threshold = theta + beta * b
        h = prnn.spike((v - threshold) / threshold, slope=1.0, shape="triangle")
        yield h


def _slstm(gates: Iterable[Tensor], add: Add, p: dict[str, Tensor], h: Tensor) -> Iterator[Tensor]:
    c, n, m = h, h, None
    for gx in gates:
        i, f, z, o = add(gx, h).chunk(4, 1)
        if m is None:  # the first step: n is 0
            m, keep = i, torch.zeros_like(i)
        else:
            previous = logsigmoid(f) + m
            m = torch.maximum(previous, i)
            keep = torch.exp(previous - m)
        take = torch.exp(i - m)
        c, n = keep * c + take * torch.tanh(z), keep * n + take
        h = torch.sigmoid(o) * c / n
        yield h


def _ligru(gates: Iterable[Tensor], add: Add, p: dict[str, Tensor], h: Tensor) -> Iterator[Tensor]:
    for gx in gates:
        z, n = add(gx, h).chunk(2, 1)
        z, n = torch.sigmoid(z), torch.relu(n)
        h = n + z * (h - n)
        yield h


def _gru(gates: Iterable[Tensor], add: Add, p: dict[str, Tensor], h: Tensor) -> Iterator[Tensor]:
    for gx in gates:
        (rx, zx, nx), (rh, zh, nh) = gx.chunk(3, 1), add(p["bias_hh_l0"], h).chunk(3, 1)
        r, z = torch.sigmoid(rx + rh), torch.sigmoid(zx + zh)
        n = torch.tanh(nx + r * nh)
        h = n + z * (h - n)
        yield h


LOOPS: dict[str, Loop] = {
    "leaky": _leaky, "lif": _lif, "alif": _alif, "slstm": _slstm, "ligru": _ligru, "python_gru": _gru
}  # fmt: skip
