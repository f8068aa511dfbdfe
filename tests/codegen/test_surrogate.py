"""Spikes: the step forward, the formula backward, and the formula's own derivative."""

from __future__ import annotations

import math

import pytest
import torch

from prnn.codegen import Signature, generate, spike
from prnn.codegen.surrogate import SHAPES
from prnn.errors import UserError
from tests.codegen.harness import Library, one_gate

SLOPE = 2.0
FORMULAS = {
    "fast_sigmoid": lambda x: 1 / (1 + SLOPE * abs(x)) ** 2,
    "atan": lambda x: SLOPE / 2 / (1 + (math.pi / 2 * SLOPE * x) ** 2),
    "sigmoid": lambda x: SLOPE * math.exp(-SLOPE * x) / (1 + math.exp(-SLOPE * x)) ** 2,
    "triangle": lambda x: SLOPE * max(0.0, 1 - SLOPE * abs(x)),
    "boxcar": lambda x: SLOPE / 2 if abs(x) < 1 / SLOPE else 0.0,
    "straight_through": lambda x: 1.0,
}
POINTS = (-2.0, -0.6, -0.3, 0.1, 0.4, 1.5)
CELLS = {
    shape: one_gate(lambda x, y, shape=shape: spike(x + y, SLOPE, shape) * x, exact=shape != "atan") for shape in SHAPES
}


@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_derivatives(shape):
    x = torch.tensor([*POINTS, 0.0], dtype=torch.float64, requires_grad=True)
    y = spike(x, SLOPE, shape)
    assert y.tolist() == [0, 0, 0, 1, 1, 1, 0] and y.dtype == x.dtype
    (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    formula, step = FORMULAS[shape], 1e-6
    assert slope[:-1].tolist() == pytest.approx([formula(point) for point in POINTS])
    curvature = torch.zeros_like(x)
    if slope.requires_grad:
        (curvature,) = torch.autograd.grad(slope.sum(), x, allow_unused=True, materialize_grads=True)
    expected = [(formula(point + step) - formula(point - step)) / (2 * step) for point in POINTS]
    assert curvature[:-1].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return Library(CELLS, tmp_path_factory.mktemp("spikes"))


@pytest.mark.parametrize("shape", SHAPES)
def test_in_a_cell(library, shape):
    library.compare(shape)


def test_the_default_is_superspike():
    x = torch.tensor([0.1, -0.1], requires_grad=True)
    spike(x).sum().backward()
    assert x.grad.tolist() == pytest.approx([1 / 3.5**2] * 2)


def test_vmap():
    x = torch.randn(3, 4)
    assert torch.equal(torch.vmap(spike)(x), (x > 0).float())


@pytest.mark.parametrize(("arguments", "sentence"), [
    ((1.0, "step"), "unknown shape 'step' of a surrogate derivative: expected one of fast_sigmoid, atan, sigmoid"),
    ((0.0,), "a surrogate derivative has slope=0.0: expected a positive number"),
    ((math.inf,), "a surrogate derivative has slope=inf: expected a positive number"),
    ((math.nan,), "a surrogate derivative has slope=nan: expected a positive number"),
])  # fmt: skip
def test_wrong_arguments(arguments, sentence):
    def cell(gx, gh, state, p, inputs):
        return {"h": spike(gx[0], *arguments)}

    with pytest.raises(ValueError, match=sentence):
        spike(torch.zeros(2), *arguments)
    with pytest.raises(UserError, match=sentence):
        generate(cell, Signature(1), "Cell")


def test_a_slope_of_a_tensor():
    assert torch.equal(spike(torch.ones(2), torch.tensor(3.0)), torch.ones(2))
    with pytest.raises(ValueError, match="a surrogate derivative has slope=a Tensor: expected a positive number"):
        spike(torch.ones(2), torch.ones(2))


@pytest.mark.parametrize(("x", "given"), [(1.0, "1.0"), (torch.ones(2, dtype=torch.int), "a tensor of torch.int32")])
def test_spikes_of_numbers(x, given):
    with pytest.raises(TypeError, match=f"spike takes a tensor of floating-point numbers, got {given}"):
        spike(x)
