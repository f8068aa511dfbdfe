"""The modules against torch.nn: same numbers, same gradients, same parameters, for every option."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils import parametrizations, parametrize

import prnn.nn
from prnn import ops

# name: (T, B, I, H, options). B None is unbatched.
CASES = {
    "plain": (7, 3, 4, 17, {}),
    "one step": (1, 3, 5, 3, {}),
    "one sample": (6, 1, 3, 17, {}),
    "smallest": (1, 1, 1, 2, {}),
    "larger": (5, 2, 3, 100, {}),
    "no bias": (4, 2, 3, 5, {"bias": False}),
    "batch first": (6, 3, 4, 5, {"batch_first": True}),
    "layers": (5, 3, 4, 5, {"num_layers": 3}),
    "bidirectional": (5, 3, 4, 5, {"bidirectional": True}),
    "together": (6, 2, 3, 7, {"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False}),
    "unbatched": (5, None, 3, 4, {"num_layers": 2}),
    "unbatched, batch first": (5, None, 3, 4, {"batch_first": True, "bidirectional": True}),
}


def shape_of(T, B, input_size, options):
    if B is None:
        return (T, input_size)
    return (B, T, input_size) if options.get("batch_first") else (T, B, input_size)


def force(backend, kind, dtype):
    """The context that forces ``backend``; skips where it does not run this cell and dtype."""
    if backend == "cpu":
        if not kind.startswith("rnn_") or dtype != torch.float32:
            pytest.skip("the native kernel is the vanilla RNN's, in float32")
        if not ops.native.status()[0]:
            pytest.skip(f"native library: {ops.native.status()[1]}")
    return ops.backend(backend)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_matches_torch(compare, kind, case, dtype, backend):
    T, B, input_size, hidden_size, options = CASES[case]
    theirs, ours = compare.pair(kind, input_size, hidden_size, dtype=dtype, **options)
    x = torch.randn(shape_of(T, B, input_size, options), dtype=dtype)
    hx = compare.state(theirs, B, dtype)
    with ops.backend(backend):
        found = compare.everything(ours, x, hx)
    compare.equal(found, compare.everything(theirs, x, hx), compare.tolerance[dtype])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("native_kind", ["rnn_tanh", "rnn_relu"])
def test_native_kernel_matches_torch(compare, native_kind, case):
    T, B, input_size, hidden_size, options = CASES[case]
    theirs, ours = compare.pair(native_kind, input_size, hidden_size, **options)
    x = torch.randn(shape_of(T, B, input_size, options))
    hx = compare.state(theirs, B)
    with force("cpu", native_kind, torch.float32):
        found = compare.everything(ours, x, hx)
    compare.equal(found, compare.everything(theirs, x, hx), 1e-5)


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_one_hidden_unit(compare, name):
    kind = {"RNN": "rnn_tanh", "GRU": "gru", "LSTM": "lstm"}[name]
    theirs, ours = compare.pair(kind, 1, 1)
    x = torch.randn(5, 2, 1)
    compare.equal(compare.everything(ours, x, None), compare.everything(theirs, x, None), 1e-5)


def test_state_is_optional(compare, kind):
    theirs, ours = compare.pair(kind, 4, 5, num_layers=2, bidirectional=True)
    for x in (torch.randn(6, 3, 4), torch.randn(6, 4)):
        compare.equal(compare.everything(ours, x, None), compare.everything(theirs, x, None), 1e-5)


def test_non_contiguous_input_and_state(compare, kind):
    theirs, ours = compare.pair(kind, 4, 5, num_layers=2)
    x = torch.randn(2, 7, 9).transpose(0, 1)[:, :, 1:9:2]
    assert not x.is_contiguous()
    hx = compare.state(theirs, 6)
    hx = tuple(t[:, ::3] for t in hx) if isinstance(hx, tuple) else hx[:, ::3]
    compare.equal(compare.everything(ours, x, hx), compare.everything(theirs, x, hx), 1e-5)


def test_empty_batch(compare, kind):
    theirs, ours = compare.pair(kind, 4, 5, num_layers=2)
    x = torch.randn(3, 0, 4)
    compare.equal(compare.everything(ours, x, None), compare.everything(theirs, x, None), 0.0)


def test_same_bits_twice(compare, kind):
    _, ours = compare.pair(kind, 5, 33, num_layers=2, bidirectional=True)
    x, hx = torch.randn(9, 4, 5), compare.state(ours, 4)
    first, second = (compare.everything(ours, x, hx) for _ in range(2))
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}], ids=str)
def test_same_seed_same_weights_and_state_dict_both_ways(compare, kind, options):
    theirs, ours = compare.pair(kind, 3, 6, **options)
    assert torch.equal(torch.rand(3), _rand_after(compare, kind, options))
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    for name, parameter in theirs.named_parameters():
        assert torch.equal(parameter, getattr(ours, name)), name
    assert ours.extra_repr() == theirs.extra_repr()
    assert [[w.shape for w in row] for row in ours.all_weights] == [
        [w.shape for w in row] for row in theirs.all_weights
    ]
    for source, target in ((theirs, ours), (ours, theirs)):
        torch.nn.init.normal_(source.weight_hh_l0)
        target.load_state_dict(source.state_dict())
        assert torch.equal(source.weight_hh_l0, target.weight_hh_l0)


def _rand_after(compare, kind, options):
    """What torch's generator gives after the modules were built: equal only if both drew the same amount."""
    name, extra = compare.kinds[kind]
    torch.manual_seed(7)
    getattr(torch.nn, name)(3, 6, **extra, **options)
    return torch.rand(3)


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_attributes_and_positional_arguments(name):
    values = [4, 5, 2, *(["relu"] if name == "RNN" else []), False, True, 0.25, True]
    theirs, ours = getattr(torch.nn, name)(*values), getattr(prnn.nn, name)(*values)
    for attribute in ("mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout"):
        assert getattr(ours, attribute) == getattr(theirs, attribute)
    assert (ours.bidirectional, ours.proj_size) == (True, 0)
    assert repr(ours) == repr(theirs)
    assert ours.flatten_parameters() is None
    half = getattr(prnn.nn, name)(*values, 0, "meta", torch.float16)
    assert (half.weight_ih_l0.dtype, half.weight_ih_l0.device.type) == (torch.float16, "meta")


def test_dropout_acts_between_layers_in_training_only(compare, kind):
    theirs, ours = compare.pair(kind, 4, 50, num_layers=2, dropout=0.5)
    x = torch.randn(3, 2, 4)
    compare.equal(
        dict(enumerate(compare.results(ours.eval()(x)))), dict(enumerate(compare.results(theirs.eval()(x)))), 1e-5
    )
    still = compare.results(ours(x))
    ours.train()
    torch.manual_seed(0)
    dropped = compare.results(ours(x))
    torch.manual_seed(0)
    assert torch.equal(dropped[0], compare.results(ours(x))[0])
    assert torch.equal(dropped[1][0], still[1][0]), "the first layer sees no dropout"
    assert not torch.equal(dropped[1][1], still[1][1])
    ours.dropout = 1.0
    with torch.no_grad():
        output, _ = ours(x)
        ours.weight_ih_l1.zero_()
        without_input, _ = ours.eval()(x)
    torch.testing.assert_close(output, without_input)


def test_dropout_on_one_layer_warns_where_the_user_stands():
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last recurrent layer") as caught:
        prnn.nn.GRU(3, 4, dropout=0.5)
    assert caught[0].filename == __file__


def test_gradcheck_and_gradgradcheck(compare, kind):
    _, ours = compare.pair(kind, 2, 2, bidirectional=True, dtype=torch.float64)
    names = [name for name, _ in ours.named_parameters()]
    hx = compare.state(ours, 2, torch.float64)
    state = hx if isinstance(hx, tuple) else (hx,)

    def run(x, *tensors):
        h, weights = tensors[: len(state)], dict(zip(names, tensors[len(state) :], strict=True))
        return tuple(
            compare.results(torch.func.functional_call(ours, weights, (x, h if isinstance(hx, tuple) else h[0])))
        )

    x = torch.randn(2, 2, 2, dtype=torch.float64)
    inputs = [t.detach().clone().requires_grad_() for t in (x, *state, *ours.parameters())]
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_weight_norm_and_parametrisation_act(compare, kind):
    theirs, ours = compare.pair(kind, 3, 4)
    x = torch.randn(5, 2, 3)
    with torch.no_grad():
        theirs.weight_hh_l0 *= 2.0

    class Double(torch.nn.Module):
        def forward(self, weight):
            return weight * 2.0

    parametrize.register_parametrization(ours, "weight_hh_l0", Double())
    torch.testing.assert_close(ours(x)[0], theirs(x)[0])
    _, ours = compare.pair(kind, 3, 4)
    before = ours(x)[0]
    parametrizations.weight_norm(ours, "weight_hh_l0")
    torch.testing.assert_close(ours(x)[0], before)
    with torch.no_grad():
        ours.parametrizations.weight_hh_l0.original0.mul_(2.0)
    torch.testing.assert_close(ours(x)[0], theirs(x)[0])


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_autocast_computes_and_returns_bfloat16(name):
    module = getattr(prnn.nn, name)(4, 5, 2, bidirectional=True)
    x = torch.randn(6, 3, 4, requires_grad=True)
    with torch.no_grad():
        expected, _ = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        output, state = module(x)
        output, state = module(x, state)
        assert output.dtype == torch.bfloat16
        output, state = module(x)
    assert (state[0] if name == "LSTM" else state).dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, atol=3e-2, rtol=3e-2)
    output.float().sum().backward()
    assert x.grad.dtype == module.weight_ih_l0.grad.dtype == torch.float32
    wide = getattr(prnn.nn, name)(4, 5, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert wide(x.double())[0].dtype == torch.float64


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_bfloat16_and_half_modules(name):
    module = getattr(prnn.nn, name)(4, 5)
    x = torch.randn(6, 3, 4)
    expected, _ = module(x)
    for dtype in (torch.bfloat16, torch.float16):
        output, _ = module.to(dtype)(x.to(dtype))
        assert output.dtype == dtype
        torch.testing.assert_close(output.float(), expected, atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_the_final_state_can_be_changed_without_the_output(name, steps):
    """What reinforcement learning does at the end of an episode."""
    output, state = getattr(prnn.nn, name)(3, 130)(torch.randn(steps, 2, 3))
    before = output.clone()
    with torch.no_grad():
        (state[0] if name == "LSTM" else state).zero_()
    assert output.equal(before)
