"""Layers that run in one call, at the same time where that is faster: the bits of each in a call of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import prnn
from prnn import native, ops
from tests.nn.cells import inputs_of, make

pytestmark = pytest.mark.skipif(not native.status()[0], reason=f"native library: {native.status()[1]}")

KINDS = {"rnn_relu": ("RNN", {"nonlinearity": "relu"}), "gru": ("GRU", {}), "lstm": ("LSTM", {})}
CALLS = 10  # the first follow the cost model, then each way is tried


def build(kind: str, *sizes: int, **options: Any) -> torch.nn.Module:
    name, extra = KINDS[kind]
    return getattr(prnn, name)(*sizes, **extra, **options)


@contextmanager
def together(monkeypatch: pytest.MonkeyPatch, wanted: bool) -> Iterator[list[bool]]:
    """Layers in one call as ``prnn.ops.layers`` decides, or each in a call of its own; gives the decisions."""
    names = ops.layers.__globals__
    decide, decided = names["run_together"], []

    def decision(*arguments: Any) -> bool:
        decided.append(wanted and decide(*arguments))
        return decided[-1]

    with monkeypatch.context() as patch:
        patch.setitem(names, "run_together", decision)
        yield decided


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def same_as_one_by_one(
    monkeypatch: pytest.MonkeyPatch, call: Callable[[], list[Tensor | None]], calls: int = 1
) -> None:
    """``call`` gives the same bits both ways, and does take one call for all layers."""
    with together(monkeypatch, False):
        expected = call()
    with together(monkeypatch, True) as decided:
        for _ in range(calls):
            for number, (found, right) in enumerate(zip(call(), expected, strict=True)):
                assert (found is None) == (right is None), number
                assert right is None or torch.equal(found, right), number
    assert decided and all(decided)


def leaves(module: torch.nn.Module, *more: Tensor) -> list[Tensor]:
    return [each for each in (*more, *module.parameters()) if each.requires_grad]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("layers", "T", "B", "I", "H"),
    [(2, 100, 1, 5, 17), (3, 70, 15, 3, 3), (2, 33, 2, 1, 1), (4, 50, 1, 2, 100), (2, 3, 3, 4, 6), (2, 300, 4, 7, 30)],
)
def test_bits_are_those_of_single_layers(monkeypatch, threads, kind, layers, T, B, I, H):
    module = build(kind, I, H, num_layers=layers, bias=H != 17)
    x = torch.randn(B, T, I).transpose(0, 1).requires_grad_()
    grad, grad_h = torch.randn(T, B, H), torch.randn(layers, B, H)

    def call() -> list[Tensor | None]:
        output, state = module(x)
        h_n = state[0] if isinstance(state, tuple) else state
        loss = (output * grad).sum() + (h_n * grad_h).sum()
        return [output, h_n, *torch.autograd.grad(loss, leaves(module, x))]

    same_as_one_by_one(monkeypatch, call, CALLS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lengths_resets_and_a_state(monkeypatch, threads, dtype):
    T, B, H = 60, 5, 12
    module = prnn.LSTM(7, H, num_layers=3, batch_first=True).to(dtype)
    x, grad = torch.randn(B, T, 7).to(dtype).requires_grad_(), torch.randn(B, T, H).to(dtype)
    lengths, resets = [60, 1, 0, 33, 48], torch.rand(B, T) < 0.1
    state = tuple(torch.randn(3, B, H).to(dtype).requires_grad_() for _ in range(2))
    padded = x.detach().clone()
    for sample, length in enumerate(lengths):
        padded[sample, length:] = torch.nan
    padded.requires_grad_()

    def call() -> list[Tensor | None]:
        output, (h_n, c_n) = module(padded, state, lengths=lengths, resets=resets)
        loss = (output * grad).sum() + h_n.sum() + 2 * c_n.sum()
        return [output, h_n, c_n, *torch.autograd.grad(loss, leaves(module, padded, *state))]

    same_as_one_by_one(monkeypatch, call, CALLS)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_torch(compare, kind):
    theirs, ours = compare.pair(kind, 5, 20, num_layers=3)
    x, state = torch.randn(90, 2, 5), compare.state(ours, 2)
    expected = compare.everything(theirs, x, state)
    for _ in range(CALLS):
        compare.equal(compare.everything(ours, x, state), expected, 2e-5)


FROZEN = {
    "the first layer": lambda name: "_l0" in name,
    "the layer between": lambda name: "_l1" in name,
    "the last layer": lambda name: "_l2" in name,
    "the biases": lambda name: "bias" in name,
    "all but a bias": lambda name: name != "bias_hh_l1",
    "every layer": lambda name: True,
}


@pytest.mark.parametrize("frozen", FROZEN)
@pytest.mark.parametrize("with_x", [False, True])
@pytest.mark.parametrize("of", ["output", "h_0", "h_1", "h_2"])
def test_what_needs_no_gradient(monkeypatch, frozen, with_x, of):
    with_x |= frozen == "every layer"
    module, x = prnn.GRU(5, 8, num_layers=3), torch.randn(40, 2, 5, requires_grad=with_x)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not FROZEN[frozen](name))

    def call() -> list[Tensor | None]:
        output, h_n = module(x)
        loss = output.square().sum() if of == "output" else h_n[int(of[-1])].square().sum()
        return list(torch.autograd.grad(loss, leaves(module, x), allow_unused=True))

    same_as_one_by_one(monkeypatch, call)


def test_without_gradients(monkeypatch):
    module = prnn.RNN(5, 8, num_layers=2).requires_grad_(False)
    x, resets = torch.randn(40, 2, 5), torch.rand(40, 2) < 0.1
    same_as_one_by_one(monkeypatch, lambda: list(module(x, resets=resets)), CALLS)
    with torch.no_grad():
        module.requires_grad_()
        same_as_one_by_one(monkeypatch, lambda: list(module(x, resets=resets)))


@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives(kind):
    """Of the gradient penalty, through both layers, against the equations under autograd."""
    module = build(kind if kind != "rnn_relu" else "gru", 3, 5, num_layers=2)
    x, v = torch.randn(20, 2, 3, requires_grad=True), torch.randn(20, 2, 3)

    def penalty() -> list[Tensor]:
        output, state = module(x)
        h_n = state[0] if isinstance(state, tuple) else state
        (grad,) = torch.autograd.grad(output.square().sum() + h_n[0].sin().sum(), x, create_graph=True)
        return [output, *torch.autograd.grad((grad * v).sum(), leaves(module, x), retain_graph=True)]

    with ops.backend("reference"):
        expected = penalty()
    for _ in range(3):
        torch.testing.assert_close(penalty(), expected, rtol=1e-4, atol=1e-5)


def test_derivatives_of_the_third_order():
    module = prnn.RNN(2, 3, num_layers=2)
    x = torch.randn(6, 1, 2, requires_grad=True)

    def third() -> Tensor:
        value = module(x)[0].pow(3).sum()
        for _ in range(3):
            (grad,) = torch.autograd.grad(value, x, create_graph=True)
            value = grad.square().sum()
        return grad

    with ops.backend("reference"):
        expected = third()
    torch.testing.assert_close(third(), expected, rtol=1e-4, atol=1e-5)


def test_batched_gradients_hooks_and_changes_in_place(monkeypatch):
    module, x = prnn.GRU(4, 6, num_layers=2), torch.randn(40, 2, 4, requires_grad=True)
    grads = torch.randn(3, 40, 2, 6)

    def batched() -> list[Tensor | None]:
        return list(torch.autograd.grad(module(x)[0], leaves(module, x), grads, is_grads_batched=True))

    with together(monkeypatch, False):
        expected = batched()
    torch.testing.assert_close(batched(), expected)

    def changed() -> list[Tensor | None]:
        output, _ = module(x)
        output.mul_(2)
        return list(torch.autograd.grad((output * grads[0]).sum(), leaves(module, x)))

    same_as_one_by_one(monkeypatch, changed)

    def hooked() -> list[Tensor | None]:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
            output, _ = module(x)
        return list(torch.autograd.grad(output.sum(), leaves(module, x)))

    same_as_one_by_one(monkeypatch, hooked)


@pytest.mark.parametrize("name", ["lif", "traces", "filters", "state_out"])
def test_cells_written_in_python(monkeypatch, threads, name):
    module = make(name, 3, 6, num_layers=3)
    x = torch.randn(40, 2, 3, requires_grad=True)
    inputs = inputs_of(module, 40, 2)

    def call() -> list[Tensor | None]:
        output, state = module(x, inputs=inputs) if inputs else module(x)
        loss = output.square().sum() + sum(each.sum() for each in state.values())
        return [output, *state.values(), *torch.autograd.grad(loss, leaves(module, x))]

    same_as_one_by_one(monkeypatch, call, 3)


def test_what_is_left_to_single_layers(monkeypatch):
    """Dropout, two directions, a projection, large batches, and operands that do not fit."""
    with together(monkeypatch, True) as decided:
        x = torch.randn(20, 2, 5, requires_grad=True)
        prnn.GRU(5, 6, num_layers=2, bidirectional=True)(x)
        prnn.LSTM(5, 6, num_layers=2, proj_size=3)(x)
        prnn.GRU(5, 6, num_layers=2)(torch.randn(20, 16, 5))
        prnn.GRU(5, 6)(x)
        assert not any(decided)
        decided.clear()
        prnn.GRU(5, 6, num_layers=2, dropout=0.5)(x)
        assert not decided
        module = prnn.GRU(5, 6, num_layers=2)
        module.weight_hh_l1 = torch.nn.Parameter(torch.zeros(18, 5))
        with pytest.raises(ValueError, match="weight_hh"):
            module(x)
        assert decided == [True]


def test_explain_says_so():
    x, together = torch.randn(20, 2, 5), "the layers run in one call"
    module = prnn.GRU(5, 6, num_layers=2, dropout=0.5)
    assert together not in prnn.explain(module, x)
    assert together in prnn.explain(module.eval(), x)
    assert together not in prnn.explain(prnn.GRU(5, 6), x)
    with torch.autocast("cpu", torch.bfloat16):
        assert together not in prnn.explain(module, x)
    with ops.backend("torch"):
        assert together not in prnn.explain(module, x)


def test_the_native_operators_check_what_the_kernels_would_run_into():
    x, h0, cell = torch.zeros(3, 2, 4), torch.zeros(1, 2, 4), native.cell_id("gru")
    weight = torch.zeros(12, 4)
    of = [weight, weight, None, None, None, h0, *[None] * 9]
    forward, backward = torch.ops.prnn_native.layers_forward, torch.ops.prnn_native.layers_backward
    found = forward([x, *of, None, *of], cell, True)
    assert len(found) == 10 and found[5].shape == (3, 2, 4)
    for given, message in (
        ([x, *of, None], "no list of the operands"),
        ([None, *of], "are required"),
        ([x, *of[:10], weight, weight, *of[12:]], "one direction"),
        ([x, *of, None, torch.zeros(12, 3), *of[1:]], "does not fit"),
    ):
        with pytest.raises(RuntimeError, match=message):
            forward(given, cell, True)
    grads, needs = [None] * 6, (True, True, False, False)
    kept = [found[0], found[3], found[4], *found[5:6], *found[8:10]]
    operands = [x, *of, found[0], *of]
    assert backward(grads, operands, kept, cell, *needs)[0].shape == x.shape
    for arguments, message in (
        ((grads[:5], operands, kept), "no list of the operands"),
        ((grads, operands, kept[:5]), "no list of the operands"),
        ((grads, [x, *of, None, *of], kept), "takes x"),
        ((grads, operands, [*kept[:3], None, *kept[4:]]), "needs what a forward pass"),
    ):
        with pytest.raises(RuntimeError, match=message):
            backward(*arguments, cell, *needs)
