"""Whole cells: results and gradients, and how few values they save."""

from __future__ import annotations

import pytest
import torch

from prnn.codegen import Signature, spike
from tests.codegen.harness import Cell, Library

CELLS: dict[str, Cell] = {}


def cell(gates=1, states=("h",), params=(), inputs=(), output="h", **options):
    """Enters a cell function into CELLS."""

    def register(function):
        CELLS[function.__name__] = Cell(function, Signature(gates, states, params, inputs, output), **options)
        return function

    return register


class Fast(torch.autograd.Function):
    """A spike of the user's, in the new style."""

    @staticmethod
    def forward(x):
        return (x > 0).to(x.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad / (1 + 25.0 * x.abs()) ** 2


class OldStyle(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bound):
        ctx.save_for_backward(x, bound)
        ctx.slope = 0.5
        return torch.where(x > bound, x * x, torch.zeros_like(x))

    @staticmethod
    def backward(ctx, grad):
        x, bound = ctx.saved_tensors
        passed = grad.clone()
        passed[x < bound] = 0
        return passed * ctx.slope, -grad * bound


@cell(params=("tau",), saved=2)
def leaky_tanh(gx, gh, state, p, inputs):
    a = torch.sigmoid(p.tau)
    return {"h": (1 - a) * state.h + a * torch.tanh(gx[0] + gh[0])}


@cell(states=("h", "v"), params=("tau",), saved=2)
def leaky_relu_rate(gx, gh, state, p, inputs):
    a = torch.sigmoid(p.tau)
    v = (1 - a) * state.v + a * (gx[0] + gh[0])
    return {"h": torch.relu(v), "v": v}


@cell(gates=2, saved=2)
def ligru(gx, gh, state, p, inputs):
    z = torch.sigmoid(gx[0] + gh[0])
    a = torch.relu(gx[1] + gh[1])
    return {"h": z * state.h + (1 - z) * a}


@cell(gates=2)
def mgu(gx, gh, state, p, inputs):
    f = torch.sigmoid(gx[0] + gh[0])
    n = torch.tanh(gx[1] + f * gh[1])
    return {"h": (1 - f) * state.h + f * n}


@cell(gates=4, states=("h", "c"), params=("wi", "wf", "wo"), saved=6)
def peephole(gx, gh, state, p, inputs):
    i = torch.sigmoid(gx[0] + gh[0] + p.wi * state.c)
    f = torch.sigmoid(gx[1] + gh[1] + p.wf * state.c)
    g = torch.tanh(gx[2] + gh[2])
    c = f * state.c + i * g
    o = torch.sigmoid(gx[3] + gh[3] + p.wo * c)
    return {"h": o * torch.tanh(c), "c": c}


@cell(states=("h", "z"), params=("gamma", "eps"), saved=2)
def cornn(gx, gh, state, p, inputs):
    z = state.z + 0.05 * (torch.tanh(gx[0] + gh[0]) - p.gamma * state.h - p.eps * state.z)
    return {"h": state.h + 0.05 * z, "z": z}


@cell(states=("h", "v"), params=("beta", "thr"), saved=1)
def lif(gx, gh, state, p, inputs):
    beta = p.beta.clamp(0, 1)
    v = beta * state.v + gx[0] + gh[0] - state.h * p.thr
    return {"h": Fast.apply(v - p.thr), "v": v}


@cell(states=("h", "v"), params=("beta", "thr"), saved=1, exact=False)
def lif_spike(gx, gh, state, p, inputs):
    v = p.beta.clamp(0, 1) * state.v + gx[0] + gh[0] - state.h * p.thr
    return {"h": spike(v - p.thr, 4.0, "atan"), "v": v}


@cell(states=("h", "v"), params=("beta", "thr"), saved=2)
def lif_where(gx, gh, state, p, inputs):
    beta = p.beta.clamp(0, 1)
    v = beta * state.v + gx[0] + gh[0] - state.h * p.thr
    u = v - p.thr
    soft = u / (1 + 25.0 * u.abs())
    return {"h": soft + ((u > 0).to(u.dtype) - soft).detach(), "v": v}


@cell(states=("h", "v", "a"), params=("beta", "rho", "thr"), saved=3)
def alif(gx, gh, state, p, inputs):
    beta, rho = torch.sigmoid(p.beta), torch.sigmoid(p.rho)
    a = rho * state.a + (1 - rho) * state.h
    thr = p.thr + 1.8 * a
    v = beta * state.v + (1 - beta) * (gx[0] + gh[0]) - state.h * thr
    return {"h": Fast.apply(v - thr), "v": v, "a": a}


@cell(gates=4, states=("h", "c", "n", "m"), saved=11)
def slstm(gx, gh, state, p, inputs):
    i, f, z, o = (gx[k] + gh[k] for k in range(4))
    lf = torch.nn.functional.logsigmoid(f)
    m = torch.maximum(lf + state.m, i)
    ii, ff = torch.exp(i - m), torch.exp(lf + state.m - m)
    c = ff * state.c + ii * torch.tanh(z)
    n = ff * state.n + ii
    return {"h": torch.sigmoid(o) * c / torch.clamp(n, min=1e-6), "c": c, "n": n, "m": m}


@cell(gates=3, inputs=("gamma",))
def grud(gx, gh, state, p, inputs):
    r = torch.sigmoid(gx[0] + gh[0])
    z = torch.sigmoid(gx[1] + gh[1])
    n = torch.tanh(gx[2] + r * gh[2])
    return {"h": inputs.gamma * ((1 - z) * n + z * state.h)}


@cell(gates=2, params=("w", "b"), inputs=("delta",))
def grud_inner(gx, gh, state, p, inputs):
    g = torch.exp(-torch.relu(p.w * inputs.delta + p.b))
    z = torch.sigmoid(gx[0] + gh[0])
    n = torch.tanh(gx[1] + gh[1])
    return {"h": (1 - z) * n + z * (g * state.h)}


@cell(inputs=("keep",))
def zoneout(gx, gh, state, p, inputs):
    return {"h": torch.where(inputs.keep > 0.5, state.h, torch.tanh(gx[0] + gh[0]))}


@cell(states=("h", "v"), params=("beta",), output="y")
def output_of_its_own(gx, gh, state, p, inputs):
    v = p.beta * state.v + torch.tanh(gx[0] + gh[0])
    return {"h": torch.relu(v), "v": v, "y": torch.sin(v) * state.h}


@cell(output="y")
def output_that_is_h(gx, gh, state, p, inputs):
    h = torch.tanh(gx[0] + gh[0])
    return {"h": h, "y": h}


@cell(states=("h", "v", "w"), output="w")
def output_of_another_state(gx, gh, state, p, inputs):
    v = torch.tanh(state.v + gx[0] + gh[0])
    return {"h": v * state.w, "v": v, "w": state.w + v * state.h}


@cell(params=("a",), inputs=("x", "keep"))
def inputs_with_gradients(gx, gh, state, p, inputs):
    return {"h": torch.sigmoid(inputs.x * p.a + gx[0] * gh[0]) * inputs.keep + state.h * inputs.x**2}


@cell(params=("bound",), states=("h", "v"))
def old_style_function(gx, gh, state, p, inputs):
    v = state.v * 0.5 + gx[0] - gh[0]
    return {"h": OldStyle.apply(v, p.bound.expand_as(v)), "v": v}


class Mixed(torch.autograd.Function):
    """Takes parameters and what was made of them, and saves both."""

    @staticmethod
    def forward(ctx, x, tau, rho):
        y = torch.exp(tau) * rho
        ctx.save_for_backward(x, y, rho)
        return x * y

    @staticmethod
    def backward(ctx, grad):
        x, y, rho = ctx.saved_tensors
        return grad * y, (grad * x * y).sum(0), (grad * x * y / rho).sum(0, keepdim=True).view_as(rho)


@cell(params=("tau", "rho"), low=0.5)
def function_of_parameters(gx, gh, state, p, inputs):
    return {"h": Mixed.apply(gx[0] * gh[0], p.tau, torch.sigmoid(p.rho)) + p.tau}


@cell(params=("a", "b"))
def masks_of_parameters(gx, gh, state, p, inputs):
    mask = (p.a > 0) ^ (p.b > 0.5)
    return {"h": torch.where(mask & (gx[0] > 0), p.a * gh[0], state.h) + mask * gx[0]}


@cell(params=("tau",))
def parameter_without_gradient(gx, gh, state, p, inputs):
    with torch.no_grad():
        a = torch.sigmoid(p.tau)
    return {"h": a * (gx[0] + gh[0]) + p.tau.detach().expand(gx[0].shape) * state.h}


@cell(gates=4, exact=False)
def activations(gx, gh, state, p, inputs):
    F = torch.nn.functional
    a, b, c, d = (x + h for x, h in zip(gx, gh, strict=True))
    mixed = torch.where((a > b) & ~(c < d) | (a.abs() > 1), F.silu(b), F.softplus(c))
    return {"h": F.relu(a) * F.elu(b) + F.gelu(c) * state.h - mixed}


@cell(params=("low", "width"))
def clamp_with_parameters(gx, gh, state, p, inputs):
    high = p.low + torch.nn.functional.softplus(p.width)
    return {"h": torch.clamp(gx[0] + gh[0] + 0.5 * state.h, p.low, high)}


@cell(params=("tau",))
def hoisted_and_raw(gx, gh, state, p, inputs):
    return {"h": torch.sigmoid(p.tau) * state.h + p.tau * torch.tanh(gx[0] + gh[0] + p.tau)}


@cell(states=("h", "v"))
def passes_a_state_through(gx, gh, state, p, inputs):
    return {"h": torch.tanh(gx[0] + gh[0]) * state.v, "v": state.v}


@cell(states=("h", "v"))
def swaps_its_states(gx, gh, state, p, inputs):
    return {"h": state.v, "v": state.h + torch.tanh(gx[0] + gh[0])}


@cell(states=("h", "θ", "φ"))
def swaps_states_without_ascii_names(gx, gh, state, p, inputs):
    return {"h": gx[0] + gh[0], "θ": state.φ, "φ": state.θ}


@cell(states=("h", "v", "w"))
def rotates_its_states(gx, gh, state, p, inputs):
    return {"h": torch.tanh(gx[0] + gh[0] + state.w), "v": state.w * state.v, "w": state.v}


@cell(states=("h", "v"))
def ignores_its_previous_state(gx, gh, state, p, inputs):
    v = gx[0] * gh[0]
    return {"h": torch.tanh(v), "v": v}


@cell(gates=3)
def ignores_a_gate(gx, gh, state, p, inputs):
    return {"h": torch.tanh(gx[0] + gh[0]) + gx[2] * state.h}


@cell()
def ignores_gates_h(gx, gh, state, p, inputs):
    return {"h": torch.tanh(gx[0]) * 0.5}


@cell(params=("b", "unused"))
def is_a_parameter(gx, gh, state, p, inputs):
    return {"h": p.b.expand_as(state.h)}


@cell(states=("h", "n"))
def is_a_constant(gx, gh, state, p, inputs):
    return {"h": torch.ones_like(state.h), "n": torch.zeros_like(state.h)}


@cell(states=("h", "long", "V", "t1", "saved"), params=("errno", "t1", "lambda_", "θ"))
def names_of_cpp(gx, gh, state, p, inputs):
    t2 = torch.tanh(gx[0] + gh[0]) * p.t1
    double = t2 * state.long + p.errno * p.lambda_
    h_prev = double * state.V + p.θ
    return {"h": h_prev * state.h, "long": t2 * double, "V": h_prev, "t1": t2 * state.t1, "saved": state.saved * 2}


@cell(gates=2)
def in_place(gx, gh, state, p, inputs):
    x = gx[0] + gh[0]
    x.mul_(2).tanh_()
    y = torch.zeros_like(x)
    y += gx[1] * x
    y[gh[1] > 0] = 1.5
    return {"h": y * state.h}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return Library(CELLS, tmp_path_factory.mktemp("cells"))


@pytest.mark.parametrize("name", CELLS)
def test_results_and_gradients(library, name):
    library.compare(name)


@pytest.mark.parametrize("name", [name for name, cell in CELLS.items() if cell.saved is not None])
def test_saved_values(name):
    assert CELLS[name].emitted.saved <= CELLS[name].saved


def test_states_that_backward_reads_are_saved_once():
    assert "at[] = {0}" in CELLS["lif"].emitted.text
    assert CELLS["is_a_constant"].emitted.saved == 0


def test_unused_parameters_are_not_in_the_struct():
    emitted, prologue = CELLS["is_a_parameter"].generated
    assert emitted.params == 1 and prologue.names == ("b",)


def test_the_text_is_deterministic_and_has_the_users_names():
    first, again = (Cell(CELLS["alif"].function, CELLS["alif"].signature).emitted.text for _ in range(2))
    assert first == again
    for name in ("beta", "rho", "thr", "v_prev", "grad_v"):
        assert f" {name}" in first
    assert "# " not in first and "test_cells.py:" in first
