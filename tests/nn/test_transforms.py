"""Layers under vmap, forward-mode differentiation and torch.jit.trace, on each backend."""

from __future__ import annotations

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch.autograd.functional import jacobian
from torch.func import functional_call, grad, jvp, vmap

import prnn
from prnn import ops

CELLS = {"rnn": prnn.RNN, "gru": prnn.GRU, "lstm": prnn.LSTM}
BACKENDS = [None, "torch", "reference"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", CELLS)
def test_dual_tensors_have_the_tangents_of_jvp(cell, backend):
    layer = CELLS[cell](3, 5, bidirectional=True)
    x, direction = torch.randn(2, 4, 2, 3)
    weights = dict(layer.named_parameters())
    along = {name: torch.randn_like(weight) for name, weight in weights.items()}

    def outputs(x, weights):
        return functional_call(layer, weights, (x,), {"lengths": torch.tensor([4, 2])})[0]

    with ops.backend("reference"):
        _, expected = jvp(outputs, (x, weights), (direction, along))
    with ops.backend(backend), forward_ad.dual_level():
        dual = {name: forward_ad.make_dual(weight, along[name]) for name, weight in weights.items()}
        tangent = forward_ad.unpack_dual(outputs(forward_ad.make_dual(x, direction), dual)).tangent
    torch.testing.assert_close(tangent, expected, rtol=1e-5, atol=1e-6)
    with ops.backend(backend):
        forward, reverse = (
            jacobian(lambda x: outputs(x, weights), x, vectorize=True, strategy=f"{mode}-mode")
            for mode in ("forward", "reverse")
        )
    torch.testing.assert_close(forward, reverse, rtol=1e-5, atol=1e-6)
    assert reverse.abs().max() > 0.01


# Of one step, some of these are torch's own function, which has no rule for vmap.
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize(("cell", "hidden_size"), [("rnn", 6), ("rnn", 600), ("gru", 600), ("lstm", 6)])
def test_vmap_is_a_loop_over_samples_for_outputs_and_gradients(cell, hidden_size, steps):
    layer = CELLS[cell](4, hidden_size)
    xs = torch.randn(3, steps, 1, 4)
    torch.testing.assert_close(vmap(lambda x: layer(x)[0])(xs), torch.stack([layer(x)[0] for x in xs]))

    def loss(weights, x):
        return functional_call(layer, weights, (x,))[0].square().sum()

    weights = {name: weight.detach() for name, weight in layer.named_parameters()}
    batched = vmap(grad(loss), (None, 0))(weights, xs)
    for i, x in enumerate(xs):
        torch.testing.assert_close({name: each[i] for name, each in batched.items()}, grad(loss)(weights, x))


def test_vmap_over_lengths():
    layer, lengths = prnn.GRU(4, 6), torch.tensor([[5, 1], [0, 3]])
    xs = torch.randn(2, 5, 2, 4)
    batched = vmap(lambda x, lengths: layer(x, lengths=lengths)[0])(xs, lengths)
    for each, x, of in zip(batched, xs, lengths, strict=True):
        torch.testing.assert_close(each, layer(x, lengths=of)[0])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("cell", CELLS)
def test_a_traced_layer_computes_the_same(tmp_path, cell, steps, backend, dtype):
    layer = CELLS[cell](3, 5, num_layers=2, dtype=dtype)
    x = torch.randn(steps, 2, 3, dtype=dtype)
    with ops.backend(backend):
        traced = torch.jit.trace(layer, (x,), check_trace=False)
        traced.save(tmp_path / "layer.pt")
        again = torch.jit.load(tmp_path / "layer.pt")
        x = torch.randn_like(x).requires_grad_()
        for module in (traced, again):
            torch.testing.assert_close(module(x), layer(x))
            torch.testing.assert_close(
                torch.autograd.grad(module(x)[0].sum(), x), torch.autograd.grad(layer(x)[0].sum(), x)
            )
