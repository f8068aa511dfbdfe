"""Expressions of parameters alone: what is hoisted, its values and its gradients."""

from __future__ import annotations

import pytest
import torch

from prnn.codegen import Signature, generate

EXPRESSIONS = {
    "sigmoid": lambda p: torch.sigmoid(p.a),
    "clamp": lambda p: p.a.clamp(0, 1),
    "operators": lambda p: (1 - p.a) * p.b / 2 + p.b**2,
    "reflected": lambda p: 2 ** (3 - p.a / (1 + p.b * p.b)),
    "function": lambda p: torch.nn.functional.softplus(p.a, beta=2.0),
    "across units": lambda p: torch.softmax(p.a, 0) * p.b.sum(),
    "one number": lambda p: p.a.mean(),
    "detached": lambda p: p.a.detach() * p.b,
    "constants": lambda p: torch.exp(-torch.tensor(0.5) / p.a.abs()) * torch.ones(()),
    "several results": lambda p: p.a.sort()[0] + torch.stack((p.a, p.b)).unbind(0)[1],
    "a mask": lambda p: torch.where(p.a > 0, p.b, p.a),
    "the parameter": lambda p: p.a,
    "views": lambda p: p.a.view(-1, 1).expand(-1, 2)[:, 1].reshape(1, -1)[0],
}


@pytest.mark.parametrize("shape", [5, 1])
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_values_and_gradients(name, shape):
    expression = EXPRESSIONS[name]

    def cell(gx, gh, state, p, inputs):
        return {"h": torch.tanh(gx[0] + gh[0]) * expression(p)}

    emitted, prologue = generate(cell, Signature(1, params=("a", "b")), "Cell")
    assert emitted.params == len(prologue.names) == len(set(prologue.names)) == 1
    torch.manual_seed(0)
    params = {key: torch.randn(shape, dtype=torch.float64, requires_grad=True) for key in "ab"}
    (derived,) = prologue.evaluate(params)
    named = type("Params", (), params)
    wanted = expression(named)
    assert torch.equal(derived, wanted)
    grad = torch.randn_like(wanted)
    leaves = list(params.values())
    found, expected = (
        torch.autograd.grad(value, leaves, grad, allow_unused=True, materialize_grads=True)
        for value in (derived, wanted)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def generated(cell, *names, **fields):
    emitted, prologue = generate(cell, Signature(1, params=names, **fields), "Cell")
    return emitted, prologue.names


def test_a_parameter_and_what_is_made_of_it():
    def cell(gx, gh, state, p, inputs):
        return {"h": torch.sigmoid(p.tau) * gx[0] + p.tau * gh[0]}

    emitted, names = generated(cell, "tau")
    assert names == ("tau", "sigmoid_tau")
    assert "sigmoid_of" not in emitted.text


def test_an_expression_that_is_used_twice_is_one_parameter():
    def cell(gx, gh, state, p, inputs):
        a = torch.sigmoid(p.tau)
        return {"h": a * gx[0] + a * state.h + gh[0] * a}

    emitted, names = generated(cell, "tau")
    assert names == ("sigmoid_tau",)
    assert "const V a = params[0];" in emitted.text


def test_names_that_are_taken_are_numbered():
    def cell(gx, gh, state, p, inputs):
        return {"h": torch.exp(p.a) * gx[0] + torch.exp(p.a * 1) * gh[0] + p.exp_a * torch.exp(p.a * p.a)}

    names = generated(cell, "a", "exp_a")[1]
    assert names == ("exp_a_2", "exp_mul_a", "mul_exp_a")


def test_what_meets_the_rest_is_not_hoisted():
    def cell(gx, gh, state, p, inputs):
        return {"h": torch.sigmoid(p.tau * gx[0])}

    emitted, names = generated(cell, "tau")
    assert names == ("tau",) and "sigmoid_of" in emitted.text


def test_only_what_the_result_needs():
    def cell(gx, gh, state, p, inputs):
        torch.exp(p.b)
        return {"h": p.a * gx[0]}

    assert generated(cell, "a", "b")[1] == ("a",)


def test_numbers_alone_are_no_parameter():
    def cell(gx, gh, state, p, inputs):
        half = torch.tensor(0.25) * 2
        return {"h": gx[0] * half + torch.exp(p.a * half)}

    emitted, names = generated(cell, "a")
    assert names == ("exp_mul_a",) and "0.5f" in emitted.text


def test_a_number_that_is_changed_in_place():
    def cell(gx, gh, state, p, inputs):
        two = torch.zeros(())
        two += 2
        return {"h": gx[0] * (p.a * two)}

    emitted, names = generated(cell, "a")
    assert names == ("a",) and "2.0f" in emitted.text


def test_an_expression_that_is_returned():
    def cell(gx, gh, state, p, inputs):
        return {"h": torch.sigmoid(p.tau).expand(gx[0].shape)}

    emitted, prologue = generate(cell, Signature(1, params=("tau",)), "Cell")
    assert emitted.params == 1 and "sigmoid_of" not in emitted.text
    assert prologue.evaluate({"tau": torch.zeros(7)})[0].tolist() == [0.5] * 7


def test_nothing_is_hoisted_without_gradients():
    def cell(gx, gh, state, p, inputs):
        with torch.no_grad():
            a = torch.sigmoid(p.tau)
        return {"h": gx[0] * a + gh[0]}

    emitted, names = generated(cell, "tau")
    assert names == ("tau",) and "sigmoid_of(tau)" in emitted.text
    assert "grad_params[0] = constant_of<V>(0.0f)" in emitted.text


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, tau):
        a = torch.exp(tau)
        ctx.save_for_backward(x, a)
        return x * a

    @staticmethod
    def backward(ctx, grad):
        x, a = ctx.saved_tensors
        return grad * a, grad * x * a * 0.5


def test_nothing_is_hoisted_in_a_function():
    def cell(gx, gh, state, p, inputs):
        return {"h": Scaled.apply(gx[0] + gh[0], p.tau)}

    emitted, _ = generated(cell, "tau")
    assert emitted.params == 1 and "exp_of(" in emitted.text
