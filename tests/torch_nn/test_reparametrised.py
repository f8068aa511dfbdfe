"""Weights that are computed: weight_norm, spectral_norm, parametrizations and pruning of recurrent modules.

From PyTorch's test_nn.py (test_rnn_weight_norm, test_RNN_cudnn_weight_norm, test_spectral_norm...),
test_parametrization.py and test_pruning.py, whose tests of other modules are written for recurrent ones here.
"""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from tests.torch_nn.samples import CELLS, LAYERS, assert_same, leaves, recurrent_weight, small

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*weight_norm:FutureWarning", "ignore:LSTM with projections is not supported with oneDNN"
)
PROJECTED = [*((name, {}, "weight_hh_l0") for name in LAYERS), ("LSTM", {"proj_size": 2}, "weight_hr_l0")]
PROJECTED += [(name, {}, "weight_hh") for name in CELLS]


def as_torch(module, name, **options):
    """A module of torch.nn with the weights that ``module`` computes at the moment."""
    other = getattr(nn, name)(3, 4, **options)
    other.load_state_dict({key: getattr(module, key).detach() for key, _ in other.named_parameters()})
    return other


@pytest.mark.parametrize(("name", "options", "key"), [each for each in PROJECTED if each[0] in LAYERS], ids=str)
def test_rnn_weight_norm(library, name, options, key):
    module, arguments = small(library, name, **options)
    count, expected = len(list(module.parameters())), module(*arguments)
    module = torch.nn.utils.weight_norm(module, name=key)
    assert sum(isinstance(each, nn.Parameter) for each in module._flat_weights) == count - 1
    assert_same(module(*arguments), expected)
    module = torch.nn.utils.remove_weight_norm(module, name=key)
    assert sum(isinstance(each, nn.Parameter) for each in module._flat_weights) == count
    for names in (module._parameters, dict(module.named_parameters())):
        assert names[key] is not None
        assert not {key + "_v", key + "_g"} & names.keys()
    assert_same(module(*arguments), expected)


@pytest.mark.parametrize(("name", "options", "key"), PROJECTED, ids=str)
def test_RNN_cudnn_weight_norm(library, name, options, key):
    """The norm acts on the next call, has gradients, and survives conversions and state_dicts."""
    module, arguments = small(library, name, **options)
    expected = module(*arguments)
    module = torch.nn.utils.weight_norm(module, name=key)
    assert_same(module(*arguments), expected)
    with torch.no_grad():
        getattr(module, key + "_g").mul_(3)
    changed = module(*arguments)
    assert_same(changed, as_torch(module, name, **options)(*arguments))
    sum(each.sum() for each in leaves(changed)).backward()
    for suffix in ("_g", "_v"):
        assert getattr(module, key + suffix).grad.abs().sum() > 0
    other = torch.nn.utils.weight_norm(getattr(library, name)(3, 4, **options), name=key)
    other.load_state_dict(module.state_dict())
    assert_same(other(*arguments), changed)
    module.double().float()
    assert_same(module(*arguments), changed)
    assert_same(torch.nn.utils.remove_weight_norm(module, name=key)(*arguments), changed)
    with pytest.raises(ValueError, match=f"weight_norm of '{key}' not found"):
        torch.nn.utils.remove_weight_norm(module, name=key)
    with pytest.raises(RuntimeError, match="Cannot register two weight_norm hooks on the same parameter"):
        torch.nn.utils.weight_norm(torch.nn.utils.weight_norm(module, name=key), name=key)


def test_spectral_norm(library, name):
    """Hooks: the weight is computed before each call; in training mode the power iteration goes on."""
    module, arguments = small(library, name)
    key = recurrent_weight(name)
    module = torch.nn.utils.spectral_norm(module, key)
    assert isinstance(module._parameters[key + "_orig"], nn.Parameter)
    assert hasattr(module, key + "_u")
    for _ in range(20):
        module(*arguments)
    assert abs(torch.linalg.matrix_norm(getattr(module, key), 2).item() - 1) < 1e-3
    module.eval()
    first = module(*arguments)
    assert_same(module(*arguments), first, rtol=0, atol=0)
    assert_same(first, as_torch(module, name)(*arguments))
    sum(each.sum() for each in leaves(first)).backward()
    assert getattr(module, key + "_orig").grad.abs().sum() > 0
    other = torch.nn.utils.spectral_norm(getattr(library, name)(3, 4), key).eval()
    other.load_state_dict(module.state_dict())
    assert_same(other(*arguments), first)
    assert_same(torch.nn.utils.remove_spectral_norm(module, key)(*arguments), first)
    assert isinstance(getattr(module, key), nn.Parameter)


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2

    def right_inverse(self, weight):
        return weight * 2


def test_register_and_remove_parametrization(library, name):
    module, arguments = small(library, name)
    key, expected = recurrent_weight(name), module(*arguments)
    original = getattr(module, key)
    order = [each for each, _ in module.named_parameters()]
    parametrize.register_parametrization(module, key, Halved())
    assert parametrize.is_parametrized(module, key)
    assert key not in module._parameters
    assert_same(module(*arguments), expected)
    parametrize.register_parametrization(module, key, nn.Tanh(), unsafe=True)
    assert_same(module(*arguments), as_torch(module, name)(*arguments))
    with parametrize.cached():
        assert getattr(module, key) is getattr(module, key)
        assert_same(module(*arguments), as_torch(module, name)(*arguments))
    with pytest.raises(RuntimeError, match="does not implement right_inverse"):
        setattr(module, key, torch.zeros_like(original))
    parametrize.remove_parametrizations(module, key, leave_parametrized=False)
    assert getattr(module, key) is original
    assert type(module) is getattr(library, name)
    assert sorted(each for each, _ in module.named_parameters()) == sorted(order)
    with torch.no_grad():
        original.div_(2)
    assert_same(module(*arguments), expected)


def test_assignment_to_a_parametrized_weight(library, name):
    module, arguments = small(library, name)
    key = recurrent_weight(name)
    parametrize.register_parametrization(module, key, Halved())
    new = torch.randn_like(getattr(module, key))
    setattr(module, key, new)
    torch.testing.assert_close(getattr(module, key), new)
    assert_same(module(*arguments), as_torch(module, name)(*arguments))
    parametrize.remove_parametrizations(module, key)
    torch.testing.assert_close(getattr(module, key).detach(), new)
    assert_same(module(*arguments), as_torch(module, name)(*arguments))


NORMS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}


@pytest.mark.parametrize("norm", NORMS)
def test_new_norms(library, name, norm):
    """test_new_spectral_norm, test_orthogonal_parametrization and test_weight_norm_parametrization."""
    module, arguments = small(library, name)
    key = recurrent_weight(name)
    NORMS[norm](module, key)
    module.eval()
    results = module(*arguments)
    assert_same(results, as_torch(module, name)(*arguments))
    sum(each.sum() for each in leaves(results)).backward()
    assert all(each.grad is not None for each in module.parameters() if each.requires_grad)
    other = NORMS[norm](getattr(library, name)(3, 4), key).eval()
    other.load_state_dict(module.state_dict())
    assert_same(other(*arguments), results)
    # A layer of torch.nn that has been called cannot be copied: it keeps the computed weights.
    double = module if library is nn and name in LAYERS else copy.deepcopy(module)
    if double is not module:
        with torch.no_grad():
            for each in module.parameters():
                each.zero_()
    assert_same(double(*arguments), results)
    optimizer = torch.optim.SGD(double.parameters(), lr=0.1)
    optimizer.zero_grad()
    sum(each.sum() for each in leaves(double(*arguments))).backward()
    optimizer.step()
    assert_same(double(*arguments), as_torch(double, name)(*arguments))


def test_serialization_and_deepcopy_after_parametrization(library, name):
    module, arguments = small(library, name)
    key = recurrent_weight(name)
    parametrize.register_parametrization(module, key, Halved())
    with pytest.raises(RuntimeError, match="Serialization of parametrized modules"):
        pickle.dumps(module)
    double, expected = copy.deepcopy(module), module(*arguments)
    assert parametrize.type_before_parametrizations(double) is getattr(library, name)
    assert type(double).__name__ == f"Parametrized{name}"
    assert double.parametrizations[key].original is not module.parametrizations[key].original
    assert_same(double(*arguments), expected)
    with torch.no_grad():
        double.parametrizations[key].original.zero_()
    assert_same(module(*arguments), expected)
    assert_same(double(*arguments), as_torch(double, name)(*arguments))


def test_transfer_parametrizations_and_params(library, name):
    module, arguments = small(library, name)
    key, other = recurrent_weight(name), getattr(library, name)(3, 4)
    parametrize.register_parametrization(module, key, Halved())
    parametrize.transfer_parametrizations_and_params(module, other)
    assert parametrize.is_parametrized(other, key)
    others = [each for each, _ in other.named_parameters() if "parametrizations" not in each]
    with torch.no_grad():
        for each in others:
            getattr(other, each).copy_(getattr(module, each))
    assert_same(other(*arguments), module(*arguments))


@pytest.mark.parametrize(("name", "options", "key"), [each for each in PROJECTED if each[0] in LAYERS], ids=str)
def test_rnn_pruning(library, name, options, key):
    module, arguments = small(library, name, **options)
    count = len(list(module.parameters()))
    prune.l1_unstructured(module, key, 0.5)
    assert sum(isinstance(each, nn.Parameter) for each in module._flat_weights) == count - 1
    pruned = module(*arguments)
    prune.remove(module, key)
    assert sum(isinstance(each, nn.Parameter) for each in module._flat_weights) == count
    for names in (module._parameters, dict(module.named_parameters())):
        assert names[key] is not None
        assert key + "_orig" not in names
    assert_same(module(*arguments), pruned)


@pytest.mark.parametrize("amount", [0.0, 0.3, 2])
def test_random_pruning(library, name, amount):
    """The mask acts on the forward and backward pass, and two prunings combine."""
    module, arguments = small(library, name)
    key = recurrent_weight(name)
    prune.random_unstructured(module, key, amount)
    prune.ln_structured(module, key, amount=1, n=2, dim=0)
    mask = getattr(module, key + "_mask")
    assert not mask.all(1).all()
    results = module(*arguments)
    assert_same(results, as_torch(module, name)(*arguments))
    sum(each.sum() for each in leaves(results)).backward()
    assert not getattr(module, key + "_orig").grad[mask == 0].any()
    other = pickle.loads(pickle.dumps(module))
    assert_same(other(*arguments), results)
    prune.remove(module, key)
    assert torch.equal(getattr(module, key)[mask == 0], torch.zeros(int((mask == 0).sum())))
    assert_same(module(*arguments), results)


def test_global_pruning(library, name):
    module, arguments = small(library, name)
    weights = [(module, key) for key, _ in module.named_parameters() if key.startswith("weight")]
    total = sum(getattr(module, key).numel() for _, key in weights)
    prune.global_unstructured(weights, pruning_method=prune.L1Unstructured, amount=10)
    assert sum(int(getattr(module, key + "_mask").sum()) for _, key in weights) == total - 10
    assert_same(module(*arguments), as_torch(module, name)(*arguments))
    for _, key in weights:
        prune.remove(module, key)
    assert_same(module(*arguments), as_torch(module, name)(*arguments))


def test_custom_from_mask_pruning(library, name):
    module, arguments = small(library, name)
    key = recurrent_weight(name)
    prune.custom_from_mask(module, key, torch.zeros_like(getattr(module, key)))
    assert not getattr(module, key).any()
    assert_same(module(*arguments), as_torch(module, name)(*arguments))


def test_a_weight_replaced_by_a_tensor(library, name):
    """test_non_leaf_parameters: a computed tensor cannot be a Parameter, but may stand in its place."""
    module, arguments = small(library, name)
    key = recurrent_weight(name)
    shape = getattr(module, key).shape
    with pytest.raises(TypeError, match="cannot assign"):
        setattr(module, key, torch.zeros(shape))
    delattr(module, key)
    scale = nn.Parameter(torch.tensor(0.25))
    setattr(module, key, scale * torch.ones(shape))
    results = module(*arguments)
    assert_same(results, as_torch(module, name)(*arguments))
    sum(each.sum() for each in leaves(results)).backward()
    assert scale.grad != 0
