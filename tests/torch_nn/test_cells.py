"""What PyTorch's test_nn.py checks of RNNCell, GRUCell and LSTMCell, and their interface."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.autograd import gradcheck

from tests.torch_nn.samples import assert_same, leaves, replace, small

flags = [False, True]


def a_state(cell, batch, hidden):
    state = torch.randn(batch, hidden)
    return (state, torch.randn(batch, hidden)) if cell == "LSTMCell" else state


@pytest.mark.parametrize("bias", flags)
def test_RNN_cell(library, cell, bias):
    """Also test_LSTM_cell: six steps and a backward pass."""
    module, x, hx = getattr(library, cell)(10, 20, bias=bias), torch.randn(3, 10), a_state(cell, 3, 20)
    for _ in range(6):
        hx = module(x, hx)
    sum(each.sum() for each in leaves(hx)).backward()
    assert all(each.grad.abs().sum() > 0 for each in module.parameters())
    assert [each.shape for each in leaves(hx)] == [(3, 20)] * len(leaves(hx))


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_RNN_cell_forward_zero_hidden_size(library, nonlinearity):
    x, hx = torch.randn(3, 10), torch.randn(3, 0)
    assert library.RNNCell(10, 0, nonlinearity=nonlinearity)(x, hx).shape == (3, 0)
    assert library.GRUCell(10, 0)(x, hx).shape == (3, 0)
    with pytest.raises(RuntimeError, match="Unknown nonlinearity"):
        library.RNNCell(10, 4, nonlinearity="sine")(x, torch.randn(3, 4))


# Shapes of the input, of h and of c that must not be broadcast; the cell has 10 inputs and 20 units.
UNFIT = {
    "hidden's batch of 1": ((3, 10), (1, 20), (3, 20)),
    "hidden of 1 unit": ((3, 10), (3, 1), (3, 20)),
    "input of 1 feature": ((3, 1), (3, 20), (3, 20)),
    "cell's batch of 1": ((3, 10), (3, 20), (1, 20)),
    "cell of 1 unit": ((3, 10), (3, 20), (3, 1)),
    "input too large": ((3, 11), (3, 20), (3, 20)),
    "hidden too large": ((3, 10), (3, 21), (3, 20)),
    "cell too large": ((3, 10), (3, 20), (3, 21)),
}


@pytest.mark.parametrize("case", UNFIT)
def test_RNN_cell_no_broadcasting(library, cell, case):
    """Also test_LSTM_cell_forward_input_size and test_LSTM_cell_forward_hidden_size."""
    x, h, c = (torch.randn(shape) for shape in UNFIT[case])
    if case.startswith("cell") and cell != "LSTMCell":
        return
    with pytest.raises(RuntimeError) as caught:
        getattr(library, cell)(10, 20)(x, (h, c) if cell == "LSTMCell" else h)
    with pytest.raises(RuntimeError) as theirs:
        getattr(torch.nn, cell)(10, 20)(x, (h, c) if cell == "LSTMCell" else h)
    assert str(caught.value) == str(theirs.value)


def test_dimensions_of_input_and_state(library, cell):
    module, (x, hx) = small(library, cell)
    theirs, _ = small(torch.nn, cell)
    for arguments in ((x[None],), (x[0, 0],), (x, replace(hx, lambda h: h[None]))):
        with pytest.raises((RuntimeError, ValueError)) as expected:
            theirs(*arguments)
        with pytest.raises(expected.type) as caught:
            module(*arguments)
        assert str(caught.value) == str(expected.value)


@pytest.mark.parametrize("output", [0, 1])
def test_lstmcell_backward_only_one_output_grad(library, output):
    module, x = library.LSTMCell(2, 3, dtype=torch.float64), torch.randn(1, 2, dtype=torch.float64, requires_grad=True)
    module(x)[output].sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("bias", flags)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_equals_torch(library, cell, bias, dtype):
    """Same seed, same parameters, same results and gradients; without a state, and unbatched."""
    pair = []
    for each in (library, torch.nn):
        torch.manual_seed(3)
        pair.append(getattr(each, cell)(3, 4, bias=bias, dtype=dtype))
    ours, theirs = pair
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()), rtol=0, atol=0)
    _, (x, hx) = small(torch.nn, cell, dtype=dtype)
    for arguments in ((x, hx), (x,), (x[0],), (x[0], replace(hx, lambda h: h[0])), (x[:0],)):
        arguments = replace(arguments, lambda each: each.detach().requires_grad_())
        found, expected = ours(*arguments), theirs(*arguments)
        assert_same(found, expected)
        wanted = leaves(arguments)
        results = (
            torch.autograd.grad(sum(each.sin().sum() for each in leaves(results)), [*wanted, *module.parameters()])
            for results, module in ((found, ours), (expected, theirs))
        )
        torch.testing.assert_close(next(results), next(results))


def test_equals_a_layer_of_one_step(library, cell):
    module, (x, hx) = small(library, cell)
    layer = getattr(library, cell.removesuffix("Cell"))(3, 4)
    layer.load_state_dict({f"{name}_l0": each for name, each in module.state_dict().items()})
    output, state = layer(x[None], replace(hx, lambda h: h[None]))
    torch.testing.assert_close(leaves(module(x, hx)), [h[0] for h in leaves(state)])
    torch.testing.assert_close(output[0], leaves(state)[0][0])


def test_gradcheck_without_a_state(library, cell):
    module = getattr(library, cell)(3, 4, dtype=torch.float64)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x, *_: tuple(leaves(module(x))), (x, *module.parameters()))


def test_interface(library, cell):
    module = getattr(library, cell)(3, 4)
    assert isinstance(module, getattr(torch.nn, cell))
    assert isinstance(module, torch.nn.RNNCellBase)
    assert (module.input_size, module.hidden_size, module.bias) == (3, 4, True)
    without = getattr(library, cell)(3, 4, bias=False)
    assert without.bias_ih is None
    assert without.bias_hh is None
    assert list(without.state_dict()) == ["weight_ih", "weight_hh"]
    assert repr(without) == f"{cell}(3, 4, bias=False)"
    assert getattr(library, cell)(3, 4, False, *(["relu"] if cell == "RNNCell" else []), "meta").weight_ih.is_meta
    half = getattr(library, cell)(3, 4, device="cpu", dtype=torch.float16)
    assert {each.dtype for each in half.parameters()} == {torch.float16}


def test_RNNCell_nonlinearity(library):
    module = library.RNNCell(3, 4, nonlinearity="relu")
    assert repr(module) == "RNNCell(3, 4, nonlinearity=relu)"
    assert module.nonlinearity == "relu"
    x = torch.randn(2, 3)
    assert (module(x) >= 0).all()
    module.nonlinearity = "tanh"
    assert_same(module(x), torch.tanh(x @ module.weight_ih.T + module.bias_ih + module.bias_hh))


def test_copies(library, cell):
    module, arguments = small(library, cell)
    expected = module(*arguments)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), copy.copy(module)):
        assert_same(other(*arguments), expected, rtol=0, atol=0)
        assert repr(other) == repr(module)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_lower_precision_and_autocast(library, cell, dtype):
    module, arguments = small(library, cell)
    expected = leaves(module(*arguments))
    with torch.autocast("cpu", dtype):
        results = leaves(module(*arguments))
    torch.testing.assert_close([each.float() for each in results], expected, atol=3e-2, rtol=3e-2)
    results = leaves(module.to(dtype)(*replace(arguments, lambda each: each.to(dtype))))
    assert {each.dtype for each in results} == {dtype}
    torch.testing.assert_close([each.float() for each in results], expected, atol=3e-2, rtol=3e-2)
