"""The modules are instances of torch.nn's classes, with RNNBase's attributes and helpers."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import prnn
from tests.nn.conftest import KINDS, make_pair, make_state


class WithMode(prnn.nn.layers.RecurrentLayers):
    def __init__(self, *args, **kwargs):
        super().__init__("GRU", *args, **kwargs)


class ByKeyword(prnn.LSTM, nn.LSTM):
    def __init__(self, inputs, units):
        super().__init__(input_size=inputs, hidden_size=units)


@pytest.mark.parametrize("kind", KINDS)
def test_isinstance_holds(kind):
    theirs, ours = make_pair(kind, 5, 6)
    assert isinstance(ours, type(theirs)) and isinstance(ours, nn.RNNBase)
    assert issubclass(type(ours), type(theirs)) and not isinstance(theirs, type(ours))
    assert repr(ours) == repr(theirs)
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]


def test_initialisation_loops_find_the_modules():
    def orthogonal(module):
        if isinstance(module, (nn.LSTM, nn.GRU)):
            for name, parameter in module.named_parameters():
                nn.init.orthogonal_(parameter) if "weight_hh" in name else nn.init.zeros_(parameter)

    model = nn.Sequential(prnn.GRU(3, 4), nn.ModuleList([prnn.LSTM(3, 4)])).apply(orthogonal)
    for name, parameter in model.named_parameters():
        assert name.rpartition(".")[2] == "weight_hh_l0" or not parameter.any()


@pytest.mark.parametrize("kind", KINDS)
def test_helpers_of_rnnbase(kind):
    theirs, ours = make_pair(kind, 5, 6, num_layers=2, bidirectional=True, batch_first=True)
    x, hx = torch.randn(3, 4, 5), make_state(theirs, 3)
    assert ours._flat_weights_names == theirs._flat_weights_names and ours._all_weights == theirs._all_weights
    for a, b in zip(ours._flat_weights, theirs._flat_weights, strict=True):
        assert torch.equal(a, b)
    assert ours._flat_weights[0] is ours.weight_ih_l0
    for name in ("get_expected_hidden_size", "check_input"):
        assert getattr(ours, name)(x, None) == getattr(theirs, name)(x, None)
    ours.check_forward_args(x, hx, None)
    with pytest.raises(RuntimeError, match="Expected hidden") as error:
        ours.check_forward_args(x[:2], hx, None)
    with pytest.raises(RuntimeError) as expected:
        theirs.check_forward_args(x[:2], hx, None)
    assert str(error.value) == str(expected.value)
    order = torch.tensor([2, 0, 1])
    permuted, expected = ours.permute_hidden(hx, order), theirs.permute_hidden(hx, order)
    assert all(torch.equal(a, b) for a, b in zip(permuted, expected, strict=True))
    ours.flatten_parameters()
    ours._init_flat_weights()
    ours._update_flat_weights()


def test_mode_can_be_assigned():
    theirs, ours = make_pair("rnn_tanh", 5, 6)
    theirs.mode = ours.mode = "RNN_RELU"
    x = torch.randn(4, 2, 5)
    torch.testing.assert_close(ours(x), theirs(x))
    assert ours(x)[0].min() == 0


def test_assigned_flat_weights_serve_until_the_module_is_moved():
    ours, doubled, x = prnn.GRU(5, 6), prnn.GRU(5, 6), torch.randn(4, 2, 5)
    doubled.load_state_dict({name: 2 * each for name, each in ours.state_dict().items()})
    plain = ours(x)[0]
    ours._flat_weights = [2 * each for each in ours._flat_weights]
    output = ours(x)[0]
    assert torch.equal(output, doubled(x)[0])
    output.sum().backward()
    doubled(x)[0].sum().backward()
    torch.testing.assert_close(ours.weight_hh_l0.grad, 2 * doubled.weight_hh_l0.grad)
    assert torch.equal(copy.deepcopy(ours)(x)[0], plain)  # a copy has its parameters
    ours._flat_weights = [getattr(ours, name) for name in ours._flat_weights_names]
    assert torch.equal(ours(x)[0], plain)
    ours._flat_weights[0] = 2 * ours.weight_ih_l0
    assert not torch.equal(ours(x)[0], plain)
    assert torch.equal(ours.float()(x)[0], plain)


@pytest.mark.parametrize("module", [WithMode(5, 6), ByKeyword(5, 6), ByKeyword(inputs=5, units=6)])
def test_subclasses(module):
    x = torch.randn(4, 2, 5)
    torch.testing.assert_close(copy.deepcopy(module)(x), module(x))
    torch.testing.assert_close(pickle.loads(pickle.dumps(module))(x), module(x))


@pytest.mark.parametrize("kind", KINDS)
def test_state_of_torchs_modules_is_understood(kind):
    theirs, ours = make_pair(kind, 5, 6, num_layers=2, bidirectional=True)
    x = torch.randn(4, 2, 5)
    state = pickle.loads(pickle.dumps(theirs.__getstate__()))
    old = {name: value for name, value in state.items() if name != "proj_size" or value}
    old["_all_weights"] = theirs.all_weights  # tensors, not names
    oldest = {name: value for name, value in old.items() if name != "_all_weights"} | {"all_weights": ours._all_weights}
    for each in (state, old, oldest):
        made = type(ours).__new__(type(ours))
        made.__setstate__(each)
        assert vars(made).keys() == vars(ours).keys() - {"_prnn_explained"}
        torch.testing.assert_close(made(x), ours(x))


def test_data_parallel_replicas_have_their_own_parameters():
    module = prnn.LSTM(5, 6)
    replica = module._replicate_for_data_parallel()
    replica._parameters = {name: 2 * each for name, each in module._parameters.items()}
    assert torch.equal(replica._flat_weights[0], 2 * module.weight_ih_l0)
    assert module._flat_weights[0] is module.weight_ih_l0


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_names_that_a_users_subclass_may_have(kind):
    """All but those that begin with _prnn: what torch.nn's modules do not have."""
    more = set(dir(getattr(prnn, kind)(2, 3))) - set(dir(getattr(nn, kind)(2, 3)))
    assert {name for name in more if not name.startswith("_prnn")} <= {"__prepare_scriptable__"}


def test_the_last_assignment_of_a_weight_holds():
    module, x = prnn.GRU(5, 6), torch.randn(2, 3, 5)
    first, second = (torch.randn(18, 5) for _ in range(2))
    module._flat_weights[0] = first
    module.weight_ih_l0 = nn.Parameter(second)
    theirs = nn.GRU(5, 6)
    theirs.load_state_dict(module.state_dict())
    torch.testing.assert_close(module(x)[0], theirs(x)[0])


def test_the_number_of_weights_is_fixed():
    module = prnn.GRU(5, 6)
    for change in (lambda each: each.pop(), lambda each: each.append(torch.zeros(1)), lambda each: each.clear()):
        with pytest.raises(TypeError, match="number of a layer's weights is fixed"):
            change(module._flat_weights)
    with pytest.raises(ValueError, match="_flat_weights takes 4 weights .*, got 2"):
        module._flat_weights = module._flat_weights[:2]
    assert copy.deepcopy(module._flat_weights)[0] is not module.weight_ih_l0
