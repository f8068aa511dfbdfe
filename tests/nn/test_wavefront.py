"""Layers that run in one call, at the same time where that is faster: the bits of each in a call of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import prnn
from prnn import native, ops
from prnn.ops import cpu
from tests.nn.cells import inputs_of, make

pytestmark = pytest.mark.skipif(not native.status()[0], reason=f"native library: {native.status()[1]}")

KINDS = {"rnn_relu": ("RNN", {"nonlinearity": "relu"}), "gru": ("GRU", {}), "lstm": ("LSTM", {})}
CALLS = 10  # the first follow the cost model, then each way is tried


def build(kind: str, *sizes: int, **options: Any) -> torch.nn.Module:
    name, extra = KINDS[kind]
    return getattr(prnn, name)(*sizes, **extra, **options)


@contextmanager
def together(monkeypatch: pytest.MonkeyPatch, wanted: bool) -> Iterator[Counter[str]]:
    """Layers in one call as ``prnn.ops.layers`` decides, or each in a call of its own; counts its decisions and the
    native calls that have succeeded.
    """
    names, counts = ops.layers.__globals__, Counter()
    decide = names["run_together"]

    def decision(*arguments: Any) -> bool:
        decided = wanted and decide(*arguments)
        counts[str(decided)] += 1
        return decided

    def counted(name: str) -> Callable[..., Any]:
        function = getattr(cpu, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            results = function(*arguments, **keywords)
            counts[name] += 1
            return results

        return call

    with monkeypatch.context() as patch:
        patch.setitem(names, "run_together", decision)
        for name in ("layers_forward", "layers_backward"):
            patch.setattr(cpu, name, counted(name))
        yield counts


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def same_as_one_by_one(
    monkeypatch: pytest.MonkeyPatch, call: Callable[[], list[Tensor | None]], calls: int = 1, backward: int = 1
) -> None:
    """``call`` gives the same bits both ways, by one native call for all layers, and ``backward`` backwards."""
    with together(monkeypatch, False):
        expected = call()
    with together(monkeypatch, True) as counts:
        for _ in range(calls):
            for number, (found, right) in enumerate(zip(call(), expected, strict=True)):
                assert (found is None) == (right is None), number
                assert right is None or torch.equal(found, right), number
    assert counts == +Counter({"True": calls, "layers_forward": calls, "layers_backward": calls * backward})


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

    same_as_one_by_one(monkeypatch, call)  # the gradient of h_n is one of each layer's


def test_what_is_saved(monkeypatch):
    """As much as by single layers, also where lower layers are frozen."""
    module, x = prnn.LSTM(5, 8, num_layers=4), torch.randn(40, 2, 5)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("_l2" in name or "_l3" in name)
    saved = []
    for wanted in (False, True):
        storages = {}

        def keep(tensor: Tensor, storages: dict[int, int] = storages) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with together(monkeypatch, wanted), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            output, (h_n, _) = module(x)
        saved.append(sum(storages.values()))
    # Single layers have the states' zeros, and each a copy-on-write clone of its output.
    assert saved[1] <= saved[0]
    assert output.requires_grad and h_n.requires_grad


def test_without_gradients(monkeypatch):
    module = prnn.RNN(5, 8, num_layers=2).requires_grad_(False)
    x, resets = torch.randn(40, 2, 5), torch.rand(40, 2) < 0.1
    same_as_one_by_one(monkeypatch, lambda: list(module(x, resets=resets)), CALLS, backward=0)
    with torch.no_grad():
        module.requires_grad_()
        same_as_one_by_one(monkeypatch, lambda: list(module(x, resets=resets)), backward=0)
        same_as_one_by_one(monkeypatch, lambda: list(module(x[:, :0], resets=resets[:, :0])), backward=0)


@pytest.mark.parametrize("layers", [2, 3, 4])
def test_weights_that_layers_share(monkeypatch, layers):
    """Their gradients are added in one order."""
    module, x = prnn.RNN(6, 6, num_layers=layers), torch.randn(40, 2, 6, requires_grad=True)
    for number in range(1, layers):
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            setattr(module, f"{name}_l{number}", getattr(module, f"{name}_l0"))
    h0 = torch.randn(1, 2, 6, requires_grad=True)

    def call() -> list[Tensor | None]:
        output, _ = module(x, h0.expand(layers, -1, -1))
        return list(torch.autograd.grad(output.square().sum(), leaves(module, x, h0)))

    same_as_one_by_one(monkeypatch, call, 3)


@pytest.mark.parametrize("T", [1, 2, 3])
@pytest.mark.parametrize("trained", ["_l0", "_l1", "_l2", ""])
@pytest.mark.parametrize("kind", KINDS)
def test_few_steps_have_the_implementation_of_single_layers(monkeypatch, kind, trained, T):
    module, x = build(kind, 100, 100, num_layers=3), torch.randn(T, 1, 100)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name.endswith(trained))
    seen = []
    for wanted in (False, True):
        with together(monkeypatch, wanted):
            output, _ = module(x, lengths=[T])
            few, _ = module(x)
        seen.append([few, output, *torch.autograd.grad((few + output).sum(), leaves(module))])
    assert all(map(torch.equal, *seen))


def test_an_error_of_a_users_hook_comes_once():
    calls = []

    def pack(tensor: Tensor) -> Tensor:
        calls.append(tensor)
        raise RuntimeError("of the user")

    module = prnn.GRU(4, 6, num_layers=2)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), pytest.raises(RuntimeError, match="of the user"):
        module(torch.randn(40, 2, 4))
    assert len(calls) == 1


class Wrapped(Tensor):
    """Lets no operator pass but torch's and prnn's own."""

    @staticmethod
    def __new__(cls, tensor: Tensor) -> Wrapped:
        return torch.Tensor._make_wrapper_subclass(cls, tensor.shape, dtype=tensor.dtype)  # type: ignore[attr-defined]

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        assert function.namespace in ("aten", "prnn")
        plain = [each.tensor if isinstance(each, Wrapped) else each for each in arguments]
        return function(*plain, **(keywords or {}))


@pytest.mark.parametrize("layer", [0, 1])
def test_tensors_with_a_dispatch_of_their_own(layer):
    module, x, name = prnn.GRU(3, 5, num_layers=2).requires_grad_(False), torch.randn(40, 2, 3), f"weight_hh_l{layer}"
    expected, _ = module(x)
    weight = module._parameters.pop(name)
    object.__setattr__(module, name, Wrapped(weight.detach()))
    torch.testing.assert_close(module(x)[0], expected)


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

    # Parameters on which no state depends are left to the operator of a single layer.
    same_as_one_by_one(monkeypatch, call, 3, backward=name != "state_out")


def test_what_is_left_to_single_layers(monkeypatch):
    """Dropout, two directions, a projection, large batches, and operands that do not fit."""
    with together(monkeypatch, True) as counts:
        x = torch.randn(20, 2, 5, requires_grad=True)
        prnn.GRU(5, 6, num_layers=2, bidirectional=True)(x)
        prnn.LSTM(5, 6, num_layers=2, proj_size=3)(x)
        prnn.GRU(5, 6, num_layers=2)(torch.randn(20, 16, 5))
        prnn.GRU(5, 6)(x)
        prnn.GRU(5, 6, num_layers=2, dropout=0.5)(x)
        assert counts == {"False": 4}
        module = prnn.GRU(5, 6, num_layers=2)
        module.weight_hh_l1 = torch.nn.Parameter(torch.zeros(18, 5))
        with pytest.raises(ValueError, match=r"weight_hh must be \[18, 6\] for cell gru with H=6, got \[18, 5\]"):
            module(x)
        assert counts == {"False": 4, "True": 1}


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
    found = forward([x, *of, None, *of], cell, 1)
    assert len(found) == 10 and found[5].shape == (3, 2, 4) and found[3] is None and found[8] is not None
    for given, message in (
        ([x, *of, None], "no list of the operands"),
        ([None, *of], "are required"),
        ([x, *of[:10], weight, weight, *of[12:]], "one direction"),
        ([x, *of, None, torch.zeros(12, 3), *of[1:]], "does not fit"),
    ):
        with pytest.raises(RuntimeError, match=message):
            forward(given, cell, 0)
    found, grads, needs = forward([x, *of, None, *of], cell, 0), [None] * 6, [1, 1, 0, 0] * 2
    kept = [found[0], found[3], found[4], found[5], found[8], found[9]]
    operands = [x, *of, found[0], *of]
    gradients = backward(grads, operands, kept, cell, [0, 0, 0, 0, 0, 1, 0, 0])
    assert [each is not None for each in gradients[:3] + gradients[14:17]] == [False] * 4 + [True] * 2
    assert backward(grads, operands, kept, cell, needs)[0].shape == x.shape
    for arguments, message in (
        ((grads[:5], operands, kept, needs), "no list of the operands"),
        ((grads, operands, kept[:5], needs), "no list of the operands"),
        ((grads, operands, kept, needs[:4]), "no list of the operands"),
        ((grads, [x, *of, None, *of], kept, needs), "takes x"),
        ((grads, operands, [*kept[:3], None, *kept[4:]], needs), "needs what a forward pass"),
    ):
        given, more = arguments[:3], arguments[3]
        with pytest.raises(RuntimeError, match=message):
            backward(*given, cell, more)
