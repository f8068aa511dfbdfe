"""The ready cells: kernels against the Python loop, against their papers' equations, and against other packages.

Shapes: T steps, B batch, I input size, H hidden size, G gates.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prnn
from benchmarks.kernels.peers import snntorch_rleaky, speechbrain_ligru, xlstm_vanilla
from prnn import cells, native
from prnn.codegen.definition import CellDefinition
from tests.nn.cells import gridded
from tests.nn.test_user_cell import off, results

pytestmark = pytest.mark.skipif(not native.status()[0], reason=f"native library: {native.status()[1]}")

CELLS: dict[str, CellDefinition] = {name: getattr(cells, name) for name in cells.__all__}
T, B, I, H = 6, 3, 5, 17
# Of spiking cells: sums of eighths with these are exact, so that a spike depends on no rounding.
SPIKING = {
    "lif": {"beta": 0.5, "threshold": 0.5},
    "alif": {"alpha": 0.5, "rho": 0.5, "beta": 1.0, "threshold": 0.25},
}


def make(name: str, **options: Any) -> prnn.Recurrent:
    """A layer with gradients of all parameters, those of the cell too, at values other than zero."""
    torch.manual_seed(1)
    layer = prnn.Recurrent(CELLS[name], I, H, **options)
    with torch.no_grad():
        for kind, parameter in layer.named_parameters():
            parameter.requires_grad_(True)
            if kind.startswith(("peephole", "alpha_logit")):
                parameter.uniform_(-1, 1)
            if name in SPIKING:
                parameter.copy_(gridded(parameter))
        for kind, value in SPIKING.get(name, {}).items():
            getattr(layer, f"{kind}_l0").fill_(value)
    return layer


def given(name: str) -> dict[str, Tensor]:
    """x [T,B,I], and the per-step inputs [T,B,H]: masks, rates, decays and noise alike are from 0 to 1."""
    torch.manual_seed(2)
    x = gridded(2 * torch.randn(T, B, I))
    return {"x": x, "inputs": {each: torch.rand(T, B, H) for each in CELLS[name].signature.inputs}}


def state_of(name: str) -> dict[str, Tensor]:
    """Positive, as the normaliser n of sLSTM must be."""
    torch.manual_seed(3)
    return {each: gridded(torch.rand(1, B, H)) + 0.125 for each in CELLS[name].signature.states}


@pytest.mark.parametrize("name", CELLS)
def test_kernels_against_the_python_loop(name: str) -> None:
    layer, state, values = make(name), state_of(name), given(name)
    values |= {"lengths": torch.tensor([6, 0, 4]), "resets": torch.rand(T, B) < 0.3}
    with prnn.backend("cpu"):
        computed = results(layer, state=state, **values)
    with prnn.backend("reference"):
        right = results(layer, state=state, **values)
    assert off(computed, right) < 2e-5
    if name in SPIKING:
        assert 0.05 < computed["output"].mean() < 0.8
        assert torch.equal(computed["output"], right["output"])


# The papers' equations, for one step. ``a(k, h)`` is the sum of gate k's products and biases, ``s`` the states,
# ``p`` the parameters, ``u`` the per-step inputs; the result is the output and the new states.
Paper = Callable[..., tuple[Tensor, dict[str, Tensor]]]


def leaky(a: Any, s: Any, p: Any, u: Any) -> Any:
    rate = 1 / (1 + torch.exp(-p["alpha_logit"]))
    h = torch.lerp(s["h"], torch.tanh(a(0, s["h"])), rate.expand_as(s["h"]))
    return h, {"h": h}


def ctrnn(a: Any, s: Any, p: Any, u: Any) -> Any:
    v = s["v"] + p["alpha"] * (-s["v"] + a(0, s["h"])) + u["noise"]
    rate = v * (v > 0)
    return rate, {"h": rate, "v": v}


def cornn(a: Any, s: Any, p: Any, u: Any) -> Any:
    y, z, dt = s["h"], s["z"], p["dt"]
    z = z + dt * torch.tanh(a(0, y)) - dt * p["gamma"] * y - dt * p["epsilon"] * z
    y = y + dt * z
    return y, {"h": y, "z": z}


def antisymmetric(a: Any, s: Any, p: Any, u: Any) -> Any:
    h = s["h"] + p["epsilon"] * torch.tanh(a(0, s["h"]) - p["gamma"] * s["h"] @ torch.eye(H))
    return h, {"h": h}


class Heaviside(torch.autograd.Function):
    """The step function with a given derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, derivative: Tensor) -> Tensor:
        ctx.save_for_backward(derivative)
        return torch.heaviside(x, torch.zeros(()))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad * ctx.saved_tensors[0], None


def indrnn(a: Any, s: Any, p: Any, u: Any) -> Any:
    h = torch.relu(a(0, s["h"]))
    return h, {"h": h}


def lif(a: Any, s: Any, p: Any, u: Any) -> Any:
    v = p["beta"] * s["v"] + a(0, s["h"])
    v = v - p["threshold"] * s["h"].detach()
    x = v - p["threshold"]
    spikes = Heaviside.apply(x, (1 + 25 * x.abs()).pow(-2).detach())
    return spikes, {"h": spikes, "v": v}


def alif(a: Any, s: Any, p: Any, u: Any) -> Any:
    z, b = s["h"], s["b"]
    v = p["alpha"] * s["v"] + (1 - p["alpha"]) * a(0, z) - (p["threshold"] + p["beta"] * b) * z
    b = p["rho"] * b + (1 - p["rho"]) * z
    B_t = p["threshold"] + p["beta"] * b
    normalised = v / B_t - 1
    # The sign is that of v - B, which is exact.
    x = normalised + (torch.sign(v - B_t) - normalised).detach()
    z = Heaviside.apply(x, (1 - normalised.abs()).clamp(min=0).detach())
    return z, {"h": z, "v": v, "b": b}


def mgu(a: Any, s: Any, p: Any, u: Any) -> Any:
    f = torch.sigmoid(a(0, s["h"]))
    n = torch.tanh(a.x(1) + f * a.h(1, s["h"]))
    h = s["h"] - f * s["h"] + f * n
    return h, {"h": h}


def ligru(a: Any, s: Any, p: Any, u: Any) -> Any:
    z = torch.sigmoid(a(0, s["h"]))
    h = z * s["h"] + (1 - z) * a(1, s["h"]).clamp(min=0)
    return h, {"h": h}


def peephole_lstm(a: Any, s: Any, p: Any, u: Any) -> Any:
    h, c = s["h"], s["c"]
    i, f = (torch.sigmoid(a(k, h) + c @ torch.diag(p[f"peephole_{gate}"])) for k, gate in ((0, "i"), (1, "f")))
    c = torch.addcmul(f * c, i, torch.tanh(a(2, h)))
    h = torch.sigmoid(a(3, h) + c @ torch.diag(p["peephole_o"])) * torch.tanh(c)
    return h, {"h": h, "c": c}


def cifg_lstm(a: Any, s: Any, p: Any, u: Any) -> Any:
    i = torch.sigmoid(a(0, s["h"]))
    c = torch.lerp(s["c"], torch.tanh(a(1, s["h"])), i)
    h = torch.sigmoid(a(2, s["h"])) * torch.tanh(c)
    return h, {"h": h, "c": c}


def slstm(a: Any, s: Any, p: Any, u: Any) -> Any:
    log_i, log_f = a(0, s["h"]), -torch.log1p(torch.exp(-a(1, s["h"])))
    m = torch.where(s["n"] > 0, torch.stack([log_f + s["m"], log_i]).amax(0), log_i)
    # From the states without a stabiliser, c exp(m) and n exp(m), and back.
    c, n = s["c"] * torch.exp(s["m"]), s["n"] * torch.exp(s["m"])
    c = torch.exp(log_f) * c + torch.exp(log_i) * torch.tanh(a(2, s["h"]))
    n = torch.exp(log_f) * n + torch.exp(log_i)
    h = torch.sigmoid(a(3, s["h"])) * (c / n)
    return h, {"h": h, "c": c * torch.exp(-m), "n": n * torch.exp(-m), "m": m}


def zoneout_lstm(a: Any, s: Any, p: Any, u: Any) -> Any:
    i, f, o = (torch.sigmoid(a(k, s["h"])) for k in (0, 1, 3))
    c = f * s["c"] + i * torch.tanh(a(2, s["h"]))
    h = torch.lerp(o * torch.tanh(c), s["h"], u["zoneout_h"])
    return h, {"h": h, "c": torch.lerp(c, s["c"], u["zoneout_c"])}


def gru(a: Any, h: Tensor) -> Tensor:
    r, z = torch.sigmoid(a(0, h)), torch.sigmoid(a(1, h))
    return torch.lerp(torch.tanh(a.x(2) + r * a.h(2, h)), h, z)


def zoneout_gru(a: Any, s: Any, p: Any, u: Any) -> Any:
    h = torch.lerp(gru(a, s["h"]), s["h"], u["zoneout"])
    return h, {"h": h}


def grud_decay(a: Any, s: Any, p: Any, u: Any) -> Any:
    y = gru(a, s["h"])
    return y, {"h": y * u["next_decay"]}


PAPERS: dict[str, Paper] = {
    each.__name__: each
    for each in (
        leaky, ctrnn, cornn, antisymmetric, indrnn, lif, alif, mgu, ligru, peephole_lstm, cifg_lstm, slstm,
        zoneout_lstm, zoneout_gru, grud_decay,
    )
}  # fmt: skip


class Products:
    """The products of one step: gate k's share of the input, of the recurrence, and their sum."""

    def __init__(self, p: dict[str, Tensor], x: Tensor) -> None:
        self.p, self.input = p, x

    def x(self, gate: int) -> Tensor:
        return self.input @ self._rows("weight_ih", gate).t() + self._rows("bias_ih", gate)

    def h(self, gate: int, h: Tensor) -> Tensor:
        weight = self._rows("weight_hh", gate)  # a vector of a diagonal recurrence
        return (h * weight if weight.dim() == 1 else h @ weight.t()) + self._rows("bias_hh", gate)

    def __call__(self, gate: int, h: Tensor) -> Tensor:
        return self.x(gate) + self.h(gate, h)

    def _rows(self, kind: str, gate: int) -> Tensor:
        return self.p[kind][gate * H : (gate + 1) * H]


class PaperLayer(nn.Module):
    """A layer's parameters, run with a paper's equations."""

    def __init__(self, name: str, layer: prnn.Recurrent) -> None:
        super().__init__()
        self.step, self.states = PAPERS[name], layer.cell.signature.states
        for kind, parameter in layer.named_parameters():
            self.register_parameter(kind, nn.Parameter(parameter.detach().clone()))

    def forward(self, x: Tensor, state: dict[str, Tensor] | None, inputs: dict[str, Tensor]) -> Any:
        if state is None:
            state = {name: torch.zeros(1, B, H) for name in self.states}
        p = {kind.removesuffix("_l0"): parameter for kind, parameter in self.named_parameters()}
        states, outputs = {name: tensor[0] for name, tensor in state.items()}, []
        for t in range(len(x)):
            at_step = {name: tensor[t] for name, tensor in inputs.items()}
            output, states = self.step(Products(p, x[t]), states, p, at_step)
            outputs.append(output)
        return torch.stack(outputs), {name: states[name].unsqueeze(0) for name in state}


@pytest.mark.parametrize("name", CELLS)
def test_against_the_equations_of_the_paper(name: str) -> None:
    layer, values = make(name), given(name)
    for state in (state_of(name), None):
        with prnn.backend("cpu"):
            computed = results(layer, state=state, **values)
        right = results(PaperLayer(name, layer), state=state, **values)
        assert off(computed, right) < 2e-5
        if name in SPIKING:
            assert torch.equal(computed["output"], right["output"])


def test_a_decay_a_step_ahead_is_that_of_gru_d() -> None:
    """GRU-D as the paper has it: the state is decayed, then given to the GRU."""
    layer, x, decay = make("grud_decay"), torch.randn(T, B, I), torch.rand(T, B, H)
    output, final = layer(x, inputs={"next_decay": torch.cat([decay[1:], torch.ones(1, B, H)])})
    cell, h = nn.GRUCell(I, H), torch.zeros(B, H)
    cell.load_state_dict({kind.removesuffix("_l0"): value for kind, value in layer.state_dict().items()})
    for t in range(T):
        h = cell(x[t], decay[t] * h)
        torch.testing.assert_close(output[t], h)
    torch.testing.assert_close(final["h"][0], h)


@pytest.mark.parametrize(
    ("name", "builtin"), [("peephole_lstm", nn.LSTM), ("zoneout_lstm", nn.LSTM), ("zoneout_gru", nn.GRU)]
)
def test_without_its_addition_it_is_torchs(name: str, builtin: Any) -> None:
    layer, theirs = prnn.Recurrent(CELLS[name], I, H), builtin(I, H)
    theirs.load_state_dict({kind: v for kind, v in layer.state_dict().items() if not kind.startswith("peephole")})
    x = torch.randn(T, B, I)
    inputs = {each: torch.zeros(1) for each in layer.cell.signature.inputs}
    torch.testing.assert_close(layer(x, inputs=inputs)[0], theirs(x)[0])


def test_slstm_does_not_overflow() -> None:
    layer = make("slstm")
    output, final = layer(1000 * torch.randn(T, B, I))
    output.sum().backward()
    assert output.abs().max() <= 1 and (final["n"] >= 1).all()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


# Examples: run, and for the parametrizations also looked at.
def example(name: str) -> dict[str, Any]:
    """What the example in the cell's docstring leaves behind."""
    text = inspect.getdoc(cells if name == "cells" else CELLS[name])
    assert text is not None
    names: dict[str, Any] = {"torch": torch, "prnn": prnn, "cells": cells}
    exec(textwrap.dedent(text.split("Example::\n")[1]), names)
    return names


@pytest.mark.parametrize("name", ["cells", *CELLS])
def test_the_examples_run(name: str) -> None:
    text = inspect.getdoc(cells if name == "cells" else CELLS[name]) or ""
    if name != "cells":
        assert re.search(r"Source: .*\d{4}", text, re.DOTALL)
        assert all(word in text for word in ("States: ", "Parameters: ", "Inputs: "))
    left = example(name)
    with prnn.backend("cpu"):
        left["layer"].compile_native()
    assert all(tensor.isfinite().all() for tensor in left["final"].values())


def test_dales_law_holds_in_training() -> None:
    left = example("ctrnn")
    layer, sign = left["layer"], left["sign"]
    optimizer = torch.optim.SGD(layer.parameters(), lr=10.0)
    before = layer.weight_hh_l0.detach().clone()
    left["rates"].square().mean().backward()
    optimizer.step()
    weight = layer.weight_hh_l0
    assert not torch.equal(weight, before)
    assert (weight[:, sign > 0] >= 0).all() and (weight[:, sign < 0] <= 0).all()
    layer.requires_grad_(True)
    x, noise = torch.randn(T, B, 8), torch.randn(T, B, 50)
    with prnn.backend("cpu"):
        computed = results(layer, x, inputs={"noise": noise})
    with prnn.backend("reference"):
        assert off(computed, results(layer, x, inputs={"noise": noise})) < 2e-5


# Other packages, as benchmarks.kernels has them.
def leaves_of(layer: prnn.Recurrent) -> dict[str, Tensor]:
    """Copies of all parameters, with gradients."""
    return {name: parameter.detach().clone().requires_grad_() for name, parameter in layer.named_parameters()}


def test_lif_is_snntorchs_rleaky() -> None:
    pytest.importorskip("snntorch")
    layer, x = make("lif"), given("lif")["x"].requires_grad_()
    forward, leaves = snntorch_rleaky.layer(leaves_of(layer))
    expected = forward(x)
    with prnn.backend("cpu"):
        output, _ = layer(x)
    assert torch.equal(output, expected) and 0.05 < output.mean() < 0.8
    compare_gradients(output, layer, expected, leaves, x)


@pytest.mark.parametrize("heads", [1, 3])
def test_slstm_is_that_of_the_xlstm_package(heads: int) -> None:
    pytest.importorskip("xlstm.blocks.slstm.src.vanilla")
    torch.manual_seed(1)
    layer, x = prnn.Recurrent(cells.slstm, I, 18, heads=heads), given("slstm")["x"].requires_grad_()
    leaves = leaves_of(layer)
    with prnn.backend("cpu"):
        output, _ = layer(x)
    compare_gradients(output, layer, xlstm_vanilla.layer(leaves)(x), leaves, x)


def test_ligru_is_speechbrains_without_normalisation() -> None:
    pytest.importorskip("speechbrain.nnet.RNN")
    layer, x = make("ligru"), given("ligru")["x"].requires_grad_()
    leaves = leaves_of(layer)
    with prnn.backend("cpu"):
        output, _ = layer(x)
    compare_gradients(output, layer, speechbrain_ligru.layer(leaves, B)(x), leaves, x)


def compare_gradients(
    output: Tensor, layer: prnn.Recurrent, expected: Tensor, leaves: dict[str, Tensor], x: Tensor
) -> None:
    """Outputs, and the gradients of x and of every parameter, theirs under our names."""
    weight = torch.linspace(-1, 1, output.numel()).view_as(output)
    names = ["x", *leaves]
    ours = torch.autograd.grad((output * weight).sum(), [x, *(layer.get_parameter(name) for name in leaves)])
    theirs = torch.autograd.grad((expected * weight).sum(), [x, *leaves.values()])
    named = {"output": output, **dict(zip(names, ours, strict=True))}
    error = off(named, {"output": expected, **dict(zip(names, theirs, strict=True))})
    print(f"largest relative difference: {error:.1e}")
    assert len(names) == 1 + len(list(layer.parameters())) and error < 2e-5
