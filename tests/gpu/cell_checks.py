"""What the kernels of cells written in Python must do on a GPU: every ready cell, in each regime, against its equations
in float64. ``python -m benchmarks.gpu_check`` runs them as its part `cells`; tests/cuda_emulation has the same on an
emulated GPU.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import prnn
from prnn import cells
from tests.gpu.compare import Figures, Wrong
from tests.gpu.targets import CUDA, DoesNotFit

T, B, I, H = 9, 5, 3, 80
SPIKING = ("lif", "alif")  # of which a spike may differ by rounding: in 16 bits many do
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 6e-2}  # of a tensor's norm


def results(layer: prnn.Recurrent, x: Tensor, given: dict[str, Any]) -> dict[str, Tensor]:
    """The output, the final state, and all gradients of a loss that sees them."""
    wanted = dict(layer.named_parameters()) | {"x": x.detach().requires_grad_()}
    output, final = layer(wanted["x"], **given)
    loss = (output.double() * torch.linspace(-1, 1, output.numel(), device=x.device).view_as(output)).sum()
    loss = loss + sum((state.double() ** 2).sum() for state in final.values())
    trained = {name: tensor for name, tensor in wanted.items() if tensor.requires_grad}
    grads = torch.autograd.grad(loss, list(trained.values()))
    named = zip(trained, grads, strict=True)
    return {"output": output, **{f"final {name}": state for name, state in final.items()}} | {
        f"grad {name}": grad for name, grad in named
    }


def a_cell_is_its_equations(name: str, dtype: torch.dtype, regime: str | None, device: str = "cuda") -> Figures:
    """Also twice the same bits; lengths, resets and both directions are in it."""
    torch.manual_seed(len(name))
    cell = getattr(cells, name)
    heads = 4 if name == "slstm" and regime != "cluster" else 1
    layer = prnn.Recurrent(cell, I, H, bidirectional=True, heads=heads).to(device, dtype)
    x = torch.randn(T, B, I).to(device, dtype)
    given: dict[str, Any] = {
        "lengths": torch.tensor([T, T, 3, 0, 8], device=device), "resets": torch.rand(T, B).to(device) < 0.2,
        "inputs": {each: torch.rand(T, B, H).to(device) for each in cell.signature.inputs},
    }  # fmt: skip
    if device == "cuda":
        explained = prnn.explain(layer, x)
        if "fit into no regime" in explained:
            raise DoesNotFit(explained.splitlines()[1].strip())
    with CUDA.forced(regime) if device == "cuda" else prnn.backend(None):
        found, again = (results(layer, x, given) for _ in range(2))
    double = copy.deepcopy(layer).double()
    of_double = given | {"inputs": {each: value.double() for each, value in given["inputs"].items()}}
    right = results(double, x.double(), of_double)
    errors = {}
    for what, expected in right.items():
        mine = found[what]
        if not torch.equal(mine, again[what]):
            raise Wrong(f"{what}: another run gave other bits")
        errors[what] = ((mine.double() - expected).norm() / expected.norm().clamp(min=1e-6)).item()
    worst = max(errors, key=lambda what: errors[what])
    figures: Figures = {"of": worst, "error": errors[worst], "bound": BOUNDS[dtype]}
    if not errors[worst] < BOUNDS[dtype]:
        raise Wrong(f"{worst} is off by {errors[worst]:.2g} of its norm", figures)
    return figures


def regimes(name: str) -> tuple[str | None, ...]:
    """Those that a cell has: without a product there is none to choose."""
    return CUDA.regimes if getattr(cells, name).signature.recurrent == "dense" else (None,)


CHECKS: dict[str, Callable[[], Figures]] = {
    f"{name} float32 {regime or 'no product'}": partial(a_cell_is_its_equations, name, torch.float32, regime)
    for name in cells.__all__
    for regime in regimes(name)
} | {
    f"{name} bfloat16": partial(a_cell_is_its_equations, name, torch.bfloat16, None)
    for name in cells.__all__
    if name not in SPIKING
}
