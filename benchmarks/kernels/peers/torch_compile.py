"""torch.compile of a Python loop over the steps: the usual way to write a cell that torch.nn lacks.

The loop is unrolled, so the compile time is proportional to T, with minutes beyond ``LONGEST`` steps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels.peers.base import Absent, Contender, Problem, require_plain

LONGEST = 64


def build(problem: Problem) -> Contender:
    require_plain(problem)
    case = problem.case
    if case.T > LONGEST:
        raise Absent(f"n/a: an unrolled loop of more than {LONGEST} steps takes minutes to compile")
    weights = {name: weight.clone().requires_grad_(problem.train) for name, weight in problem.weights.items()}
    x = problem.x.clone().requires_grad_(problem.train and case.input_requires_grad)

    def loop(x: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
        gates_x = F.linear(x, w_ih, b_ih)
        h = x.new_zeros(case.B, case.H)
        c = h
        outputs = []
        for t in range(case.T):
            h, c = _step(case.cell, gates_x[t], F.linear(h, w_hh, b_hh), h, c)
            outputs.append(h)
        return torch.stack(outputs)

    torch.compiler.reset()  # the recompile limit is per function, and earlier cases used this function too
    compiled = torch.compile(loop, fullgraph=True, dynamic=False)

    def run() -> Tensor:
        if not problem.train:
            with torch.no_grad():
                return compiled(x, *weights.values())
        x.grad = None
        for weight in weights.values():
            weight.grad = None
        output = compiled(x, *weights.values())
        output.backward(problem.grad_output)
        return output

    def tensors() -> dict[str, Tensor]:
        results = {"output": run().detach().clone()}
        if problem.train:
            results |= {name: weight.grad.clone() for name, weight in weights.items()}
            results |= {"x": x.grad.clone()} if x.grad is not None else {}
        return results

    run()  # compiles; fails here where there is no C++ compiler
    return Contender(run, tensors)


def _step(cell: str, gx: Tensor, gh: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One step: gx, gh [B,G*H] from input and state, h and c [B,H] -> the new h and c."""
    if cell == "rnn_tanh":
        return torch.tanh(gx + gh), c
    if cell == "rnn_relu":
        return torch.relu(gx + gh), c
    if cell == "gru":
        rx, zx, nx = gx.chunk(3, 1)
        rh, zh, nh = gh.chunk(3, 1)
        r, z = torch.sigmoid(rx + rh), torch.sigmoid(zx + zh)
        n = torch.tanh(nx + r * nh)
        return n + z * (h - n), c
    i, f, g, o = (gx + gh).chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c
