"""Copies and pickles of recurrent modules, also those that older versions of PyTorch wrote; DataParallel's replicas.

From PyTorch's test_nn.py (test_save_lstm_compatibility, test_RNN_dropout_state), test_serialization.py and
test_data_parallel.py; what the latter do on several GPUs is done here on the CPU, with the same functions.
"""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from tests.torch_nn.samples import CELLS, LAYERS, assert_same, first_weight, leaves, recurrent_weight, small

OPTIONS = [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}]


def saved(module, protocol=2):
    file = io.BytesIO()
    torch.save(module, file, pickle_protocol=protocol)
    file.seek(0)
    return file


COPIES = {
    "deepcopy": copy.deepcopy,
    **{f"pickle {p}": lambda m, p=p: pickle.loads(pickle.dumps(m, p)) for p in range(2, pickle.HIGHEST_PROTOCOL + 1)},
    "save": lambda m: torch.load(saved(m), weights_only=False),
    "twice": lambda m: copy.deepcopy(copy.deepcopy(m)),
}


@pytest.mark.parametrize("how", COPIES)
def test_copies(library, name, how):
    """After a forward and backward pass; a copy shares nothing, and has no gradients."""
    module, arguments = small(library, name)
    module.eval()
    expected = module(*arguments)
    sum(each.sum() for each in leaves(expected)).backward()
    other = COPIES[how](module)
    assert type(other) is type(module)
    assert (repr(other), other.training) == (repr(module), False)
    assert list(other.state_dict()) == list(module.state_dict())
    assert {each.grad for each in other.parameters()} == {None}
    with torch.no_grad():
        for each in module.parameters():
            each.zero_()
    assert_same(other(*arguments), expected, rtol=0, atol=0)
    with torch.no_grad():
        for each in other.parameters():
            each.zero_()
    assert_same(other(*arguments), module(*arguments), rtol=0, atol=0)


def test_shallow_copy(library, name):
    """test_container_copy: the copy has the same parameters, and lists of its own."""
    module, arguments = small(library, name)
    other = copy.copy(module)
    assert all(a is b for a, b in zip(module.parameters(), other.parameters(), strict=True))
    assert_same(other(*arguments), module(*arguments), rtol=0, atol=0)


def test_load_with_weights_only(library, name):
    module, arguments = small(library, name)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torch.load(saved(module), weights_only=True)
    with torch.serialization.safe_globals([getattr(library, name)]):
        assert_same(torch.load(saved(module), weights_only=True)(*arguments), module(*arguments))
    state = torch.load(saved(module.state_dict()), weights_only=True)
    other = getattr(library, name)(3, 4)
    other.load_state_dict(state)
    assert_same(other(*arguments), module(*arguments))


def test_load_onto_another_device_and_mmap(library, name, tmp_path):
    module, arguments = small(library, name)
    assert all(each.is_meta for each in torch.load(saved(module), "meta", weights_only=False).parameters())
    torch.save(module.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", mmap=True)
    other = getattr(library, name)(3, 4, device="meta")
    other.load_state_dict(state, assign=True)
    assert_same(other(*arguments), module(*arguments))


def restored(module, state):
    """A module of the same class, from another's state as unpickling does it."""
    other = type(module).__new__(type(module))
    other.__setstate__(state)
    return other


@pytest.mark.parametrize("layer", LAYERS)
def test_save_lstm_compatibility(library, layer):
    """Before PyTorch 1.8 there was no proj_size."""
    module = getattr(library, layer)(2, 3)
    x = torch.randn(32, 5, 2)
    expected, state = module(x), dict(module.__getstate__())
    assert state.pop("proj_size") == 0
    loaded = getattr(library, layer)(2, 3)
    loaded.__setstate__(state)
    assert_same(loaded(x), expected)
    assert_same(restored(module, state)(x), expected)


def state_of_torch(layer, options, version):
    """A module of torch.nn and what its pickle held at a ``version`` of PyTorch."""
    theirs = getattr(nn, layer)(3, 4, **options)
    state = dict(theirs.__getstate__())
    if version in ("0.4", "1.3"):
        del state["_flat_weights"], state["_flat_weights_names"], state["proj_size"]
        state["_all_weights"] = [list(row) for row in theirs.all_weights]  # the tensors, not their names
    if version == "0.4":
        state["all_weights"] = state.pop("_all_weights")
        state["_data_ptrs"] = []
    if version == "1.7":
        del state["proj_size"]
    return theirs, state


@pytest.mark.parametrize("version", ["0.4", "1.3", "1.7", "today"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_setstate_of_older_versions(library, layer, options, version):
    theirs, state = state_of_torch(layer, options, version)
    module = restored(getattr(library, layer)(3, 4, **options), state)
    x = torch.randn(5, 2, 3)
    assert_same(module(x), theirs(x))
    assert [[each.shape for each in row] for row in module.all_weights] == [
        [each.shape for each in row] for row in theirs.all_weights
    ]
    assert repr(module) == repr(theirs)
    assert list(module.state_dict()) == list(theirs.state_dict())
    assert_same(copy.deepcopy(module).double().float()(x), theirs(x))


@pytest.mark.parametrize("cell", CELLS)
def test_setstate_of_cells(library, cell):
    theirs, arguments = small(nn, cell)
    module = restored(getattr(library, cell)(3, 4), theirs.__getstate__() if library is nn else theirs.__dict__.copy())
    assert_same(module(*arguments), theirs(*arguments))
    assert repr(module) == repr(theirs)


def test_a_change_of_class(library, name):
    """``module.__class__ = ...``, as libraries patch models; the state is enough."""
    theirs, arguments = small(nn, name)
    expected = theirs(*arguments)
    theirs.__class__ = getattr(library, name)
    assert_same(theirs(*arguments), expected)
    assert_same(copy.deepcopy(theirs)(*arguments), expected)


def test_replicate_for_data_parallel(library, name):
    """What ``torch.nn.parallel.replicate`` does: replicas get tensors, of which the parameters are leaves."""
    module, arguments = small(library, name)
    expected, replica = module(*arguments), module._replicate_for_data_parallel()
    assert type(replica) is type(module)
    assert dict(replica._parameters) == {}
    for key, parameter in module.named_parameters():
        setattr(replica, key, parameter * 2)
    other = getattr(nn, name)(3, 4)
    other.load_state_dict({key: each * 2 for key, each in module.state_dict().items()})
    results = replica(*arguments)
    assert_same(results, other(*arguments))
    sum(each.sum() for each in leaves(results)).backward()
    assert getattr(module, recurrent_weight(name)).grad.abs().sum() > 0
    assert_same(module(*arguments), expected, rtol=0, atol=0)
    if name in LAYERS:
        assert module._flat_weights[0] is module.weight_ih_l0
        assert replica._flat_weights[0] is replica.weight_ih_l0


def test_data_parallel_without_a_gpu(library, name):
    module, (x, hx) = small(library, name)
    parallel = nn.DataParallel(module)
    assert_same(parallel(x, hx), module(x, hx))
    assert list(parallel.state_dict()) == [f"module.{key}" for key in module.state_dict()]


def test_averaged_model(library, name):
    """``torch.optim.swa_utils``: a deep copy whose parameters are assigned in place."""
    module, arguments = small(library, name)
    averaged = torch.optim.swa_utils.AveragedModel(module)
    averaged.update_parameters(module)
    first = getattr(module, first_weight(name)).detach().clone()
    with torch.no_grad():
        getattr(module, first_weight(name)).mul_(3)
    averaged.update_parameters(module)
    torch.testing.assert_close(getattr(averaged.module, first_weight(name)).detach(), first * 2)
    other = getattr(nn, name)(3, 4)
    other.load_state_dict(averaged.module.state_dict())
    assert_same(averaged(*arguments), other(*arguments))
