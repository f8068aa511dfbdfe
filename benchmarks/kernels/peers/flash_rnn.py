"""FlashRNN's fused LSTM (Poeppel et al., 2024), if the package `flashrnn` is installed.

Its gates i, f, z, o are torch's i, f, g, o; its input is the projected input, and the time includes that projection.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.kernels.peers.base import Absent, Contender, Problem


def build(problem: Problem) -> Contender:
    case = problem.case
    if not case.plain or case.cell != "lstm" or problem.x.device.type != "cuda":
        raise Absent("one plain LSTM layer on a GPU only")
    try:
        from flashrnn import flashrnn
    except ImportError as error:
        raise Absent("not installed (pip install flashrnn)") from error
    T, B, H = case.T, case.B, case.H
    weights = {name: w.clone().requires_grad_(problem.train) for name, w in problem.weights.items()}
    x = problem.x.clone().requires_grad_(problem.train)

    def forward() -> Tensor:
        gates = torch.nn.functional.linear(x, weights["weight_ih_l0"], weights["bias_ih_l0"])
        gates = gates.transpose(0, 1).reshape(B, T, 4, 1, H)
        recurrent = weights["weight_hh_l0"].reshape(4, 1, H, H)
        bias = weights["bias_hh_l0"].reshape(4, 1, H)
        states, _ = flashrnn(gates, recurrent, bias, function="lstm", backend="cuda_fused", dtype=case.dtype)
        return states[0].reshape(B, T, H).transpose(0, 1)

    def run() -> Tensor:
        for tensor in (x, *weights.values()):
            tensor.grad = None
        with torch.set_grad_enabled(problem.train):
            output = forward()
            if problem.train:
                output.backward(problem.grad_output)
        torch.cuda.synchronize()
        return output.detach()

    def tensors() -> dict[str, Tensor]:
        results = {"output": run().clone()}
        if problem.train:
            results |= {name: weight.grad.clone() for name, weight in weights.items()} | {"x": x.grad.clone()}
        return results

    return Contender(run, tensors)
