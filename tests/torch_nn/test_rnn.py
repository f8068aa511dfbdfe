"""What PyTorch's test_nn.py checks of RNN, GRU and LSTM: arguments, states, numbers and dropout.

Tests there that compare cuDNN with the CPU compare the module under test with torch.nn's on the CPU here. Not
applicable: test_cudnn_rnn_dropout_states_device, test_pack_sequence_batch_sizes_throw and the parts of
test_rnn_check_device and test_projections_lstm_check_device with two devices need CUDA.
"""

from __future__ import annotations

import copy
import itertools
import warnings

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from tests.torch_nn.samples import LAYERS, assert_same, gradients, leaves, replace, small

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
flags = [False, True]


def test_RNN_nonlinearity(library):
    assert library.RNN(1, 10).nonlinearity == "tanh"
    assert library.RNN(1, 10, nonlinearity="relu").nonlinearity == "relu"
    assert library.RNN(1, 10, 2, "relu").mode == "RNN_RELU"
    with pytest.raises(ValueError, match="Unknown nonlinearity"):
        library.RNN(1, 10, nonlinearity="garbage")
    with pytest.raises(ValueError, match="Unknown nonlinearity"):
        library.RNN(1, 10, 1, "garbage")


SIZES = {"steps": 6, "batch": 4, "inputs": 3, "layers": 2, "hidden": 5}
# What is wrong: (dimension of the input, or of h0 or c0; its size).
WRONG = {
    "input's batch": ("x", 1, 7),
    "input's features": ("x", 2, 7),
    "hidden's batch": ("h", 1, 7),
    "hidden's units": ("h", 2, 7),
    "hidden's layers": ("h", 0, 7),
    "cell's batch": ("c", 1, 7),
    "cell's units": ("c", 2, 7),
    "cell's layers": ("c", 0, 7),
    "hidden's layers, as many as units": ("h", 0, 5),
}


def with_wrong_shape(wrong, proj_size=0):
    """Input and states, one of them with one wrong dimension."""
    shapes = {
        "x": [SIZES["steps"], SIZES["batch"], SIZES["inputs"]],
        "h": [SIZES["layers"], SIZES["batch"], proj_size or SIZES["hidden"]],
        "c": [SIZES["layers"], SIZES["batch"], SIZES["hidden"]],
    }
    of, dimension, size = WRONG[wrong]
    shapes[of][dimension] = size
    return (torch.randn(shape) for shape in shapes.values())


@pytest.mark.parametrize("wrong", WRONG)
def test_rnn_args_check(library, layer, wrong):
    if WRONG[wrong][0] == "c" and layer != "LSTM":
        return
    module = getattr(library, layer)(SIZES["inputs"], SIZES["hidden"], SIZES["layers"])
    x, h, c = with_wrong_shape(wrong)
    with pytest.raises(RuntimeError) as caught:
        module(x, (h, c) if layer == "LSTM" else h)
    with pytest.raises(RuntimeError) as theirs:
        getattr(torch.nn, layer)(SIZES["inputs"], SIZES["hidden"], SIZES["layers"])(x, (h, c) if layer == "LSTM" else h)
    assert str(caught.value) == str(theirs.value)


@pytest.mark.parametrize("wrong", WRONG)
def test_projections_lstm_args_check(library, wrong):
    arguments = SIZES["inputs"], SIZES["hidden"], SIZES["layers"]
    x, h, c = with_wrong_shape(wrong, proj_size=2)
    with pytest.raises(RuntimeError) as caught:
        library.LSTM(*arguments, proj_size=2)(x, (h, c))
    with pytest.raises(RuntimeError) as theirs:
        torch.nn.LSTM(*arguments, proj_size=2)(x, (h, c))
    assert str(caught.value) == str(theirs.value)


PROJECTED = [*((name, {}) for name in LAYERS), ("LSTM", {"proj_size": 2})]
projected = pytest.mark.parametrize(("layer", "options"), PROJECTED, ids=["RNN", "GRU", "LSTM", "LSTM proj"])


@pytest.mark.parametrize("bidirectional", flags, ids=["", "bidirectional"])
@projected
def test_initial_hidden_state(library, layer, options, bidirectional):
    """test_rnn_initial_hidden_state and test_projections_lstm_initial_hidden_state."""
    module, (x, hx) = small(library, layer, num_layers=2, bidirectional=bidirectional, **options)
    assert_same(module(x, replace(hx, torch.zeros_like)), module(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["RNN", "GRU"])
def test_projections_errors_on_gru_and_rnn(library, name):
    with pytest.raises(ValueError, match="proj_size argument is only supported for LSTM, not RNN or GRU"):
        getattr(library, name)(30, 20, 2, proj_size=10)


def with_gaps(tensor):
    return torch.stack([torch.zeros_like(tensor), tensor], tensor.dim()).select(tensor.dim(), 1)


KINDS = {
    "RNN": ("RNN", {}),
    "RNN relu": ("RNN", {"nonlinearity": "relu"}),
    "GRU": ("GRU", {}),
    "LSTM": ("LSTM", {}),
    "LSTM proj": ("LSTM", {"proj_size": 3}),
}


@pytest.mark.parametrize(("bias", "dropout"), [(True, 0.0), (False, 0.0), (True, 1.0)], ids=["", "no bias", "dropout"])
@pytest.mark.parametrize("bidirectional", flags, ids=["", "bidirectional"])
@pytest.mark.parametrize("kind", KINDS)
def test_RNN_cpu_vs_cudnn(library, kind, bidirectional, bias, dropout):
    """Also test_rnn_fused; the dropout of 1 makes the comparison exact in training mode."""
    name, more = KINDS[kind]
    options = {"bias": bias, "bidirectional": bidirectional, "dropout": dropout, "dtype": torch.float64, **more}
    rows, sizes = (4 if bidirectional else 2), [more.get("proj_size", 6), 6]
    for batch_first, gaps in itertools.product(flags, flags):
        lengths = [7, 5, 5, 2, 1, 1] if batch_first != gaps else None
        theirs = getattr(torch.nn, name)(10, 6, 2, batch_first=batch_first, **options)
        module = getattr(library, name)(10, 6, 2, batch_first=batch_first, **options)
        for row, their_row in zip(module.all_weights, theirs.all_weights, strict=True):
            for weight, their_weight in zip(row, their_row, strict=True):
                weight.data.copy_(their_weight.data)
        x = torch.randn(6, 7, 10) if batch_first else torch.randn(7, 6, 10)
        state = tuple(torch.randn(rows, 6, size) for size in (sizes if name == "LSTM" else sizes[:1]))
        x, *state = [(with_gaps(each) if gaps else each).double().requires_grad_() for each in (x, *state)]
        hx, found = tuple(state) if name == "LSTM" else state[0], []
        for each in (module, theirs):
            given = x if lengths is None else pack_padded_sequence(x, torch.tensor(lengths), batch_first=batch_first)
            results = each(given, hx)
            found.append([*leaves(results), *gradients(results, [x, *state, *each.parameters()])])
        torch.testing.assert_close(*found, atol=1e-9, rtol=0)


@projected
def test_cudnn_weight_format(library, layer, options):
    """Weights that do not lie in one piece of memory."""
    module, arguments = small(library, layer, batch_first=True, **options)
    before = leaves(module(*arguments)), gradients(module(*arguments), list(module.parameters()))
    data = module.weight_hh_l0.data.clone()
    with torch.no_grad():
        module.weight_hh_l0.set_(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            after = leaves(module(*arguments)), gradients(module(*arguments), list(module.parameters()))
            torch.testing.assert_close(after, before, rtol=0, atol=0)
    data[:] = 4
    assert torch.equal(module.weight_hh_l0.data, data), "they still share storage"


@projected
def test_cudnn_weight_tying(library, layer, options):
    """One parameter under two names, before and after a step of an optimiser."""
    module, arguments = small(library, layer, bidirectional=True, batch_first=True, **options)
    count = len(list(module.parameters()))
    module.bias_ih_l0_reverse = module.bias_ih_l0
    assert len(list(module.parameters())) == count - 1
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module(*arguments)[0].sum().backward()
    optimizer.step()
    other = getattr(torch.nn, layer)(3, 4, bidirectional=True, batch_first=True, **options)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.bias_ih_l0, other.bias_ih_l0_reverse)
    assert_same(module(*arguments), other(*arguments))
    double = copy.deepcopy(module)
    assert double.bias_ih_l0_reverse is double.bias_ih_l0 is not module.bias_ih_l0


def test_partial_flat_weights(library, layer):
    module, arguments = small(library, layer, num_layers=2)
    expected = module(*arguments)
    weight = module.weight_hh_l0
    del module.weight_hh_l0
    assert not hasattr(module, "weight_hh_l0")
    module.to(torch.float64).to(torch.float32)  # moving what is left is no error
    module.weight_hh_l0 = weight
    assert_same(module(*arguments), expected)


@pytest.mark.parametrize("train", flags, ids=["eval", "train"])
@pytest.mark.parametrize("p", [0, 0.276, 0.731, 1])
def test_RNN_dropout(library, p, train):
    """Dropout is between the layers and nowhere else: all units of a layer get the same sum."""
    module = library.RNN(10, 1000, 2, bias=False, dropout=p, nonlinearity="relu", dtype=torch.float64).train(train)
    for parameter in module.parameters():
        parameter.data.fill_(1)
    output, state = module(torch.ones(1, 1, 10).double(), torch.zeros(2, 1, 1000).double())
    assert output.min() == output.max() == state[1].min() == state[1].max()
    assert state[0].min() == state[0].max() == 10
    value = output[0, 0, 0].item()
    if p == 0 or not train:
        assert value == 10000
    elif p == 1:
        assert value == 0
    else:
        assert 8000 < value < 12000
        rest = value * (1 - p) % 10  # a whole number of units was kept
        assert min(rest, 10 - rest) < 1e-2


@pytest.mark.parametrize("bidirectional", flags)
def test_error_RNN_seq_len_zero(library, layer, bidirectional):
    module = getattr(library, layer)(5, 6, bidirectional=bidirectional)
    with pytest.raises(RuntimeError, match="Expected sequence length to be larger than 0 in RNN"):
        module(torch.ones(0, 10, 5))


def test_RNN_input_size_zero(library, layer):
    """A batch of no samples; the backward pass gives zeros."""
    module = getattr(library, layer)(input_size=3, hidden_size=4)
    output, _ = module(torch.zeros(5, 0, 3))
    assert output.shape == (5, 0, 4)
    output.sum().backward()


@pytest.mark.parametrize("train", flags, ids=["eval", "train"])
@pytest.mark.parametrize("p", [0, 0.1234])
def test_RNN_dropout_state(library, layer, p, train):
    """No call draws another's masks, and a copy draws its own."""
    module = getattr(library, layer)(100, 100, 2, bias=False, dropout=p).train(train)
    x = torch.rand(1, 1, 100)
    other = copy.deepcopy(module)
    other.flatten_parameters()
    (first, hidden), (second, again), (third, _) = module(x), module(x), other(x)
    if p == 0 or not train:
        torch.testing.assert_close([second, again, third], [first, hidden, first], rtol=0, atol=0)
    else:
        assert not torch.equal(first, second)
        assert not torch.equal(first, third)
        assert not torch.equal(leaves(hidden)[0], leaves(again)[0])


@pytest.mark.parametrize("train", flags, ids=["eval", "train"])
def test_RNN_change_dropout(library, layer, train):
    module = getattr(library, layer)(100, 100, 2, dropout=0, dtype=torch.float64).train(train)
    x, previous = torch.rand(3, 2, 100, dtype=torch.float64), None
    for p in (0, 0.5, 0, 0.7, 0.2, 1, 0.2, 0):
        module.dropout = p
        first, second = module(x)[0], module(x)[0]
        assert torch.equal(first, second) == (p in (0, 1) or not train)
        if previous is not None:
            assert torch.equal(first, previous) == (not train)
        previous = first


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_rnn_retain_variables(library, layer, dtype):
    module = getattr(library, layer)(10, 20, num_layers=2, dtype=dtype)
    x = torch.randn(5, 6, 10, dtype=dtype, requires_grad=True)
    output = module(x)[0].sum()
    first = None
    for _ in range(5):
        module.zero_grad()
        x.grad = None
        output.backward(retain_graph=True)
        found = [x.grad.clone(), *(each.grad.clone() for each in module.parameters())]
        first = first or found
        torch.testing.assert_close(found, first, rtol=0, atol=0)


@pytest.mark.parametrize("bias", flags)
def test_grad_and_gradgrad(library, layer, bias):
    """test_LSTM_grad_and_gradgrad and test_GRU_grad_and_gradgrad, in slow mode."""
    module = getattr(library, layer)(4, 4, bias=bias, dtype=torch.float64)
    x = torch.rand(1, 3, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: tuple(leaves(module(x))), x)
    assert gradgradcheck(lambda x: tuple(leaves(module(x))), x)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_LSTM_differentiable_backward_using_oneDNN(library):
    """Twice differentiable with and without oneDNN, to the same result; twenty layers."""
    module = library.LSTM(3, 3, 20, batch_first=True)
    x, found = torch.rand(10, 12, 3), []
    for enabled in (False, True):
        with torch.backends.mkldnn.flags(enabled=enabled):
            each = x.clone().requires_grad_()
            output, _ = module(each)
            (slope,) = torch.autograd.grad(output, each, torch.ones_like(output), create_graph=True)
            slope.sum().backward()
            found.append((output, slope, each.grad))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bidirectional", flags)
def test_autocast_rnn(library, layer, dtype, bidirectional):
    """test_autocast.py: a forward and backward pass under CPU autocast, also of packed input."""
    if library is torch.nn and layer == "LSTM" and not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        pytest.skip("torch.nn.LSTM under autocast needs a CPU with matrix units for these types")
    module, (x, hx) = small(library, layer, num_layers=2, bidirectional=bidirectional)
    expected = module(x, hx)
    for given in (x, pack_padded_sequence(x, [5, 5])):
        module.zero_grad()
        with torch.autocast("cpu", dtype):
            output, state = module(given, hx)
        data = output.data if isinstance(output, PackedSequence) else output
        reference = pack_padded_sequence(expected[0], [5, 5]).data if given is not x else expected[0]
        torch.testing.assert_close(data.float(), reference, atol=3e-2, rtol=3e-2)
        torch.testing.assert_close([each.float() for each in leaves(state)], leaves(expected[1]), atol=3e-2, rtol=3e-2)
        data.float().sum().backward()
        assert all(each.grad.dtype == torch.float32 for each in module.parameters())


@pytest.mark.parametrize("batch_first", flags)
def test_unbatched_is_a_batch_of_one(library, layer, batch_first):
    """For every shape that torch.nn accepts; test_modules.py has the other options."""
    module, (x, hx) = small(library, layer, num_layers=2, bidirectional=True, batch_first=batch_first)
    single = x[0] if batch_first else x[:, 0]
    output, state = module(single, replace(hx, lambda h: h[:, 0]))
    expected, expected_state = module(x, hx)
    torch.testing.assert_close(output, expected[0] if batch_first else expected[:, 0])
    torch.testing.assert_close(leaves(state), [h[:, 0] for h in leaves(expected_state)])


def test_dimensions_of_input_and_state(library, layer):
    module, (x, hx) = small(library, layer)
    their = small(torch.nn, layer)[0]
    unbatched = replace(hx, lambda h: h[:, 0])
    for arguments in ((x[0, 0],), (x[None],), (x, unbatched), (x[:, 0], hx)):
        with pytest.raises((RuntimeError, ValueError)) as theirs:
            their(*arguments)
        with pytest.raises(theirs.type) as caught:
            module(*arguments)
        assert str(caught.value) == str(theirs.value)
