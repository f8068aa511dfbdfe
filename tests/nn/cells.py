"""Cells in Python that together use all a cell may have, and layers of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import prnn


@prnn.cell(gates=1, states=("h", "v"), params={"beta": 0.5, "threshold": prnn.per_unit(0.4)})
def lif(gx, gh, state, p, inputs):
    v = p.beta.clamp(0, 1) * state.v + gx[0] + gh[0] - state.h * p.threshold
    return {"h": prnn.spike(v - p.threshold, slope=5.0), "v": v}


@prnn.cell(gates=4, states=("h", "c", "n", "m"))
def slstm(gx, gh, state, p, inputs):
    i, f, z, o = (x + h for x, h in zip(gx, gh, strict=True))
    log_f = torch.nn.functional.logsigmoid(f)
    m = torch.maximum(log_f + state.m, i)
    i, f = torch.exp(i - m), torch.exp(log_f + state.m - m)
    c = f * state.c + i * torch.tanh(z)
    n = f * state.n + i
    return {"h": torch.sigmoid(o) * c / n.clamp(min=1e-6), "c": c, "n": n, "m": m}


@prnn.cell(
    gates=1,
    states=("h", "v"),
    params={"tau": prnn.scalar(0.3), "gain": torch.nn.init.normal_},
    inputs=("noise", "keep"),
    output="rate",
)
def rate(gx, gh, state, p, inputs):
    alpha = torch.sigmoid(p.tau)
    v = (1 - alpha) * state.v + alpha * (gx[0] + gh[0]) + inputs.noise
    v = torch.where(inputs.keep > 0.5, state.v, v)
    return {"h": torch.tanh(v) * p.gain, "v": v, "rate": torch.relu(v) + p.gain}


@prnn.cell(gates=3)
def gru(gx, gh, state, p, inputs):
    r = torch.sigmoid(gx[0] + gh[0])
    z = torch.sigmoid(gx[1] + gh[1])
    n = torch.tanh(gx[2] + r * gh[2])
    return {"h": n + z * (state.h - n)}


@prnn.cell(gates=2, states=("h", "c"), params={"unused": 1.0}, output="c")
def state_out(gx, gh, state, p, inputs):
    c = torch.sigmoid(gx[0] + gh[1]) * state.c + torch.tanh(gx[1])
    return {"h": 0.5 * state.h + c, "c": c}


@prnn.cell(gates=1, states=("h", "v"))
def delay(gx, gh, state, p, inputs):
    return {"h": state.v, "v": (gx[0] + gh[0]) * torch.tanh(state.v) * state.v}


@prnn.cell(gates=2, states=("h", "v"))
def gate_out(gx, gh, state, p, inputs):
    return {"h": gx[0], "v": gx[0] * torch.tanh(state.v) + gh[1]}


@prnn.cell(gates=2, states=("h", "a", "b"), params={"beta": 0.5, "gamma": 0.6})
def traces(gx, gh, state, p, inputs):
    a = p.beta * state.a + gx[0] + gh[0]
    b = p.gamma * state.b + gx[1] + gh[1]
    return {"h": 0.3 * a * b, "a": a, "b": b}


@prnn.cell(gates=2, recurrent="diagonal")
def indrnn(gx, gh, state, p, inputs):
    gate = torch.sigmoid(gx[1] + gh[1])
    return {"h": gate * torch.tanh(gx[0] + gh[0]) + (1 - gate) * state.h}


@prnn.cell(gates=1, states=("h", "v"), recurrent="none")
def integrator(gx, gh, state, p, inputs):
    v = 0.9 * state.v + gx[0] + gh[0]
    return {"h": torch.tanh(v), "v": v}


@prnn.cell(gates=2, states=("h", "a", "b"), params={"w": 0.7}, inputs=("noise",), recurrent="diagonal")
def filters(gx, gh, state, p, inputs):
    gate = torch.sigmoid(gx[1] + gh[1])
    a = gate * state.a + torch.tanh(gx[0] + gh[0]) * inputs.noise
    b = p.w * state.b * torch.sigmoid(a)
    return {"h": torch.tanh(a + b) + 0.5 * state.h, "a": a, "b": b + a}


CELLS = {
    cell.__name__: cell
    for cell in (lif, slstm, rate, gru, state_out, delay, gate_out, traces, indrnn, integrator, filters)
}


def make(cell: str, I: int, H: int, **options: Any) -> prnn.Recurrent:
    torch.manual_seed(1)
    layer = prnn.Recurrent(CELLS[cell], I, H, **options)
    with torch.no_grad():
        for parameter in layer.parameters() if cell == "lif" else ():
            parameter.copy_(gridded(parameter))
    return layer


def gridded(x: Tensor) -> Tensor:
    """Multiples of an eighth, whose sums are exact: a spike then depends on no rounding, nor on its order."""
    return (x * 8).round() / 8


def inputs_of(layer: prnn.Recurrent, T: int, B: int) -> dict[str, Tensor]:
    values = {"noise": torch.randn(T, B, layer.hidden_size), "keep": torch.rand(T, B, 1) > 0.7}
    return {name: values[name] for name in layer.cell.signature.inputs}


def results(
    layer: prnn.Recurrent, x: Tensor, state: Any = None, largest: float = 1.0, **given: Any
) -> dict[str, Tensor]:
    """The output, the final state, and the gradients of everything that may have one, of a loss that sees all.

    ``largest``: the gradient of the loss with respect to the first unit's output at the last step.
    """
    wanted: dict[str, Tensor] = dict(layer.named_parameters())
    x = wanted["x"] = x.detach().requires_grad_()
    if state is not None:
        state = {name: tensor.detach().requires_grad_() for name, tensor in state.items()}
        wanted |= {f"initial {name}": tensor for name, tensor in state.items()}
    if given.get("inputs"):
        given["inputs"] = {
            name: tensor.detach().requires_grad_() if tensor.is_floating_point() else tensor
            for name, tensor in given["inputs"].items()
        }
        wanted |= {f"input {name}": tensor for name, tensor in given["inputs"].items() if tensor.requires_grad}
    output, final = layer(x, state, **given)
    factors = torch.linspace(-1, 1, output.numel()).view_as(output)
    factors[-1:, -1:, :1] = largest
    loss = (output.double() * factors).sum()
    loss = loss + sum((tensor.double() ** 2).sum() for tensor in final.values())
    grads = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True, materialize_grads=True)
    named = zip(wanted, grads, strict=True)
    return {"output": output, **{f"final {name}": value for name, value in final.items()}} | {
        f"grad {name}": grad for name, grad in named
    }


def off(computed: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """The largest error, relative to a tensor's norm."""
    assert computed.keys() == right.keys()
    largest = 0.0
    for name, tensor in right.items():
        assert computed[name].shape == tensor.shape and computed[name].dtype == tensor.dtype, name
        assert torch.isfinite(computed[name]).all(), name
        if tensor.numel():
            error = (computed[name].double() - tensor.double()).norm() / tensor.double().norm().clamp(min=1e-3)
            largest = max(largest, error.item())
    return largest


def state_of(layer: prnn.Recurrent, B: int) -> dict[str, Tensor]:
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    return {name: gridded(torch.rand(rows, B, layer.hidden_size)) for name in layer.cell.signature.states}


OPTIONS: list[dict[str, Any]] = [
    {},
    {"lengths": True},
    {"resets": True},
    {"lengths": True, "resets": True, "bidirectional": True, "num_layers": 2},
    {"bias": False, "batch_first": True, "resets": True},
    {"bias": "input", "bidirectional": True},
]


def draw(
    cell: str, T: int, B: int, I: int, H: int, options: dict[str, Any]
) -> tuple[prnn.Recurrent, Tensor, dict[str, Tensor], dict[str, Any]]:
    """A layer with one of ``OPTIONS``, its input and state, and what else it is given; NaN in the padding."""
    module = {name: value for name, value in options.items() if name not in ("lengths", "resets")}
    layer = make(cell, I, H, **module)
    given: dict[str, Any] = {"inputs": inputs_of(layer, T, B)}
    x, state = gridded(torch.randn(T, B, I)), state_of(layer, B)
    if "lengths" in options:
        given["lengths"] = torch.randint(0, T + 1, (B,))
        padding = torch.arange(T).unsqueeze(1) >= given["lengths"]
        x[padding] = torch.nan
        if "noise" in given["inputs"]:
            given["inputs"]["noise"][padding] = torch.nan
    if "resets" in options:
        given["resets"] = torch.rand(T, B) < 0.3
    if options.get("batch_first"):
        x = x.transpose(0, 1)
        given["resets"] = given["resets"].t()
        given["inputs"] = {name: value.transpose(0, 1) for name, value in given["inputs"].items()}
    return layer, x, state, given
