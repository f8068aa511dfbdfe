"""What PyTorch's test_nn.py and test_load_state_dict.py check of parameters and state_dicts, for the recurrent modules.

And what RNNBase documents of its own attributes: ``all_weights``, ``_flat_weights``, ``flatten_parameters``.
"""

from __future__ import annotations

import copy
import gc
import threading
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from tests.torch_nn.samples import CELLS, assert_same, first_weight, leaves, recurrent_weight, replace, small


def test_parameters_and_named_parameters(library, name):
    module = getattr(library, name)(3, 4)
    theirs = getattr(nn, name)(3, 4)
    assert [key for key, _ in module.named_parameters()] == [key for key, _ in theirs.named_parameters()]
    assert [key for key, _ in module.named_parameters("p")] == [f"p.{key}" for key, _ in theirs.named_parameters()]
    assert list(module.buffers()) == list(module.children()) == []
    assert list(module.modules()) == [module]
    assert {type(each) for each in module.parameters()} == {nn.Parameter}
    assert sum(each.numel() for each in module.parameters()) == sum(each.numel() for each in theirs.parameters())


def test_named_parameters_remove_duplicate(library, name):
    module = getattr(library, name)(4, 4)
    setattr(module, first_weight(name), getattr(module, recurrent_weight(name)))
    assert len(list(module.named_parameters())) == 3
    assert len(list(module.named_parameters(remove_duplicate=False))) == 4
    assert len(list(nn.Sequential(module, module).named_parameters(remove_duplicate=False))) == 8


def test_requires_grad_and_zero_grad(library, name):
    module, arguments = small(library, name)
    assert module.requires_grad_(False) is module
    assert not any(each.requires_grad for each in leaves(module(*arguments)))
    module.requires_grad_()
    for _ in range(2):
        sum(each.sum() for each in leaves(module(*arguments))).backward()
    once = [each.grad / 2 for each in module.parameters()]
    module.zero_grad(set_to_none=False)
    assert not any(each.grad.any() for each in module.parameters())
    sum(each.sum() for each in leaves(module(*arguments))).backward()
    torch.testing.assert_close([each.grad for each in module.parameters()], once)
    module.zero_grad()
    assert {each.grad for each in module.parameters()} == {None}
    with torch.no_grad():
        assert not any(each.requires_grad for each in leaves(module(*arguments)))
    with torch.inference_mode():
        assert all(each.is_inference() for each in leaves(module(*arguments)))


def test_only_some_parameters_require_grad(library, name):
    module, arguments = small(library, name)
    module.requires_grad_(False)
    wanted = getattr(module, recurrent_weight(name)).requires_grad_()
    sum(each.sum() for each in leaves(module(*arguments))).backward()
    assert [key for key, each in module.named_parameters() if each.grad is not None] == [recurrent_weight(name)]
    assert wanted.grad.abs().sum() > 0


def test_type_and_conversions(library, name):
    """test_type and test_to: the module is converted in place, its parameters remain the same objects."""
    module, arguments = small(library, name)
    expected, objects = module(*arguments), list(module.parameters())
    for convert in (lambda m: m.double(), lambda m: m.to(torch.float64), lambda m: m.type(torch.float64)):
        assert convert(module) is module
        assert {each.dtype for each in module.parameters()} == {torch.float64}
        assert_same(replace(module(*replace(arguments, lambda x: x.double())), lambda x: x.float()), expected)
        module.float()
    assert all(a is b for a, b in zip(module.parameters(), objects, strict=True))
    for convert, dtype in ((module.half, torch.float16), (module.bfloat16, torch.bfloat16)):
        assert {each.dtype for each in convert().parameters()} == {dtype}
    assert module.to("cpu", non_blocking=True) is module
    assert module.to(torch.empty((), dtype=torch.float64)) is module
    assert {each.dtype for each in module.parameters()} == {torch.float64}
    with pytest.raises(TypeError, match="only accepts floating point or complex"):
        module.to(torch.int64)


def test_overwrite_module_params_on_conversion(library, name):
    module, arguments = small(library, name)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        old = getattr(module, first_weight(name))
        module.double()
        assert getattr(module, first_weight(name)) is not old
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
    with torch.no_grad():
        old.zero_()
    other = getattr(nn, name)(3, 4).double()
    other.load_state_dict(module.state_dict())
    arguments = replace(arguments, lambda x: x.double())
    assert_same(module(*arguments), other(*arguments))


def test_parameter_assignment(library, name):
    """A new parameter is used from then on, and takes the old one's place in the order."""
    module, arguments = small(library, name)
    key, order = recurrent_weight(name), [each for each, _ in module.named_parameters()]
    new = nn.Parameter(torch.randn(getattr(module, key).shape))
    setattr(module, key, new)
    assert [each for each, _ in module.named_parameters()] == order
    other = getattr(nn, name)(3, 4)
    other.load_state_dict(module.state_dict())
    assert_same(module(*arguments), other(*arguments))
    for wrong in (torch.zeros_like(new), nn.Linear(1, 1)):
        with pytest.raises(TypeError, match="cannot assign"):
            setattr(module, key, wrong)
    with pytest.raises(KeyError, match="exists"):
        module.register_parameter("hidden_size", None)


def test_assignment_of_data(library, name):
    """``weight.data = ...``, in-place operations, and torch.nn.init act on the next call."""
    module, arguments = small(library, name)
    other = getattr(nn, name)(3, 4)
    weight = getattr(module, recurrent_weight(name))
    for change in (
        lambda: setattr(weight, "data", torch.randn_like(weight)),
        lambda: nn.init.orthogonal_(weight),
        lambda: weight.data.copy_(torch.randn_like(weight)),
        lambda: setattr(weight, "data", torch.randn(weight.shape[::-1]).T),
        lambda: module.apply(lambda m: [each.data.mul_(2) for each in m.parameters()]),
    ):
        change()
        other.load_state_dict(module.state_dict())
        assert_same(module(*arguments), other(*arguments))


def test_parameters_to_vector(library, name):
    module, arguments = small(library, name)
    vector = parameters_to_vector(module.parameters())
    vector_to_parameters(torch.linspace(-0.5, 0.5, len(vector)), module.parameters())
    other = getattr(nn, name)(3, 4)
    vector_to_parameters(torch.linspace(-0.5, 0.5, len(vector)), other.parameters())
    assert_same(module(*arguments), other(*arguments))


def test_share_memory(library, name):
    module, arguments = small(library, name)
    expected = module(*arguments)
    assert module.share_memory() is module
    assert all(each.is_shared() for each in module.parameters())
    assert_same(module(*arguments), expected, rtol=0, atol=0)


def test_state_dict(library, name):
    module = getattr(library, name)(3, 4)
    state = module.state_dict()
    assert isinstance(state, OrderedDict)
    assert list(state) == [key for key, _ in module.named_parameters()]
    assert state._metadata == getattr(nn, name)(3, 4).state_dict()._metadata
    assert all(each.data_ptr() == module.get_parameter(key).data_ptr() for key, each in state.items())
    assert not any(each.requires_grad for each in state.values())
    assert all(each.requires_grad for each in module.state_dict(keep_vars=True).values())
    assert list(module.state_dict(prefix="a.")) == [f"a.{key}" for key in state]
    assert list(nn.ModuleDict({"m": module}).state_dict()) == [f"m.{key}" for key in state]


def test_load_state_dict(library, name):
    """Both ways between the libraries, and what is missing, unexpected or of another size."""
    module, arguments = small(library, name)
    other = getattr(nn, name)(3, 4)
    for source, target in ((module, other), (other, module)):
        nn.init.normal_(getattr(source, recurrent_weight(name)))
        assert str(target.load_state_dict(source.state_dict())) == "<All keys matched successfully>"
        assert_same(source(*arguments), target(*arguments))
    key = first_weight(name)
    state = module.state_dict() | {"extra": torch.ones(5)}
    with pytest.raises(RuntimeError, match='Unexpected key.s. in state_dict: "extra"'):
        module.load_state_dict(state)
    del state[key]
    with pytest.raises(RuntimeError, match=f'Missing key.s. in state_dict: "{key}"'):
        module.load_state_dict(state)
    assert module.load_state_dict(state, strict=False) == ([key], ["extra"])
    state = module.state_dict() | {key: torch.ones(5, 5)}
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=f"size mismatch for {key}"):
            module.load_state_dict(state, strict=strict)
    with pytest.raises(RuntimeError, match="expected torch.Tensor or Tensor-like object from checkpoint"):
        module.load_state_dict(module.state_dict() | {key: 2})
    with pytest.raises(TypeError, match="Expected state_dict to be dict-like"):
        module.load_state_dict([])
    wide = {key: each.double() for key, each in module.state_dict().items()}
    module.load_state_dict(wide)
    assert getattr(module, key).dtype == torch.float32


@pytest.mark.parametrize("keep_vars", [False, True])
def test_load_state_dict_assign(library, name, keep_vars):
    """test_load_state_dict_assign_meta, _with_optimizer and _shape_stride."""
    with torch.device("meta"):
        module = getattr(library, name)(3, 4)
    source, (_, arguments) = getattr(nn, name)(3, 4), small(nn, name)
    state = source.state_dict(keep_vars=keep_vars)
    module.load_state_dict(state, assign=True)
    assert {each.device.type for each in module.parameters()} == {"cpu"}
    assert all((each is state[key]) == keep_vars for key, each in module.named_parameters())
    assert all(each.requires_grad for each in module.parameters())
    assert_same(module(*arguments), source(*arguments))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    sum(each.sum() for each in leaves(module(*arguments))).backward()
    optimizer.step()
    key = recurrent_weight(name)
    turned = module.state_dict() | {key: torch.randn(4, getattr(module, key).shape[0]).T}
    module.load_state_dict(turned, assign=True)
    assert getattr(module, key).stride() == turned[key].stride()
    source.load_state_dict(turned)
    assert_same(module(*arguments), source(*arguments))


def test_load_state_dict_warns_of_meta(library, name):
    module = getattr(library, name)(3, 4)
    with torch.device("meta"):
        state = getattr(library, name)(3, 4).state_dict()
    with pytest.warns(UserWarning, match="for .*: copying from a non-meta parameter in the checkpoint to a meta"):
        getattr(library, name)(3, 4, device="meta").load_state_dict(module.state_dict())
    with pytest.raises(RuntimeError, match="Cannot copy out of meta tensor"):
        module.load_state_dict(state)


@pytest.fixture
def _only_new_objects():
    """For ``gc.collect``, which takes long on all that torch has imported."""
    gc.disable()
    gc.freeze()
    yield
    gc.enable()


@pytest.mark.usefixtures("_only_new_objects")
def test_load_state_dict_ref_cycle(library, name):
    options = {} if name in CELLS else {"bidirectional": True}
    for _ in range(2):  # the first time fills caches
        gc.collect()
        module = getattr(library, name)(16, 16, **options)
        module.load_state_dict(copy.deepcopy(module).state_dict())
    assert gc.collect() == 0


@pytest.mark.usefixtures("_only_new_objects")
def test_no_reference_cycle_after_a_call(library, name):
    """A module and its graph are freed without the garbage collector."""
    for _ in range(2):  # the first call fills caches
        gc.collect()
        module, arguments = small(library, name)
        sum(each.sum() for each in leaves(module(*arguments))).backward()
        del module, arguments
    assert gc.collect() == 0


def test_extra_state(library, name):
    class WithExtra(getattr(library, name)):
        def get_extra_state(self):
            return {"steps": self.steps}

        def set_extra_state(self, state):
            self.steps = state["steps"]

    module, other = WithExtra(3, 4), WithExtra(3, 4)
    module.steps = 7
    other.load_state_dict(module.state_dict())
    assert other.steps == 7


def test_subclass(library, name):
    """A subclass may override the constructor, ``reset_parameters`` and ``forward``."""

    class Ones(getattr(library, name)):
        def __init__(self, size):
            self.started = True
            super().__init__(size, size)

        def reset_parameters(self):
            for each in self.parameters():
                nn.init.ones_(each)

        def forward(self, x, hx=None):
            return super().forward(x * 2, hx)

    module, other = Ones(3), getattr(nn, name)(3, 3)
    for each in other.parameters():
        nn.init.ones_(each)
    x = torch.randn(2, 3)
    assert_same(module(x), other(x * 2))
    assert isinstance(module, getattr(nn, name))
    assert repr(module) == "Ones(3, 3)"


def test_dir_and_missing_attributes(library, name):
    module = getattr(library, name)(3, 4)
    assert {first_weight(name), "hidden_size", "forward", "reset_parameters"} <= set(dir(module))
    with pytest.raises(AttributeError, match=f"'{name}' object has no attribute 'nothing'"):
        module.nothing  # noqa: B018
    with pytest.raises(ValueError, match="training mode is expected to be boolean"):
        module.train("yes")
    assert module.eval().training is False


def test_in_threads(library, name):
    """One module called by several threads at once, as by DataParallel's on a CPU."""
    module, arguments = small(library, name)
    expected, found = leaves(module(*arguments)), {}

    def call(number):
        found[number] = leaves(module(*arguments))

    threads = [threading.Thread(target=call, args=(i,)) for i in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    torch.testing.assert_close(found, dict.fromkeys(range(3), expected), rtol=0, atol=0)


OPTIONS = [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}, {"num_layers": 2, "bias": False}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_all_weights_and_flat_weights(library, layer, options):
    module, theirs = getattr(library, layer)(3, 4, **options), getattr(nn, layer)(3, 4, **options)
    assert module._all_weights == theirs._all_weights
    assert module._flat_weights_names == theirs._flat_weights_names
    assert [[each.shape for each in row] for row in module.all_weights] == [
        [each.shape for each in row] for row in theirs.all_weights
    ]
    assert all(a is b for a, b in zip(module._flat_weights, module.parameters(), strict=True))
    module.weight_ih_l0 = nn.Parameter(torch.zeros_like(module.weight_ih_l0))
    assert module._flat_weights[0] is module.weight_ih_l0 is module.all_weights[0][0]
    module.double()
    assert all(a is b for a, b in zip(module._flat_weights, module.parameters(), strict=True))
    assert module.flatten_parameters() is None


def test_attributes_of_RNNBase(library, layer):
    module = getattr(library, layer)(3, 4, 2, batch_first=True, dropout=0.5, bidirectional=True)
    assert isinstance(module, getattr(nn, layer))
    assert isinstance(module, nn.RNNBase)
    theirs = getattr(nn, layer)(3, 4, 2, batch_first=True, dropout=0.5, bidirectional=True)
    for key in getattr(nn, layer).__constants__:
        assert getattr(module, key) == getattr(theirs, key)
        assert type(getattr(module, key)) is type(getattr(theirs, key))


def test_checks_of_RNNBase(library, layer):
    """The methods that subclasses of torch's modules call."""
    module = getattr(library, layer)(3, 4, 2, bidirectional=True)
    theirs = getattr(nn, layer)(3, 4, 2, bidirectional=True)
    x, sizes = torch.randn(5, 2, 3), torch.tensor([2, 1, 1])
    assert module.get_expected_hidden_size(x, None) == (4, 2, 4)
    assert module.get_expected_hidden_size(torch.randn(4, 3), sizes) == (4, 2, 4)
    hx = torch.randn(4, 2, 4)
    module.check_input(x, None)
    module.check_input(torch.randn(4, 3), sizes)
    module.check_hidden_size(hx, (4, 2, 4))
    module.check_forward_args(x, (hx, hx) if layer == "LSTM" else hx, None)
    order = torch.tensor([1, 0])
    permuted = module.permute_hidden((hx, hx) if layer == "LSTM" else hx, order)
    assert all(torch.equal(each, hx[:, order]) for each in leaves(permuted))
    assert module.permute_hidden(hx, None) is hx
    bad = torch.randn(4, 3, 4)
    for call in (
        lambda m: m.check_input(x[0], None),
        lambda m: m.check_input(x[..., :2], None),
        lambda m: m.check_input(x.double(), None),
        lambda m: m.check_input(x, sizes),
        lambda m: m.check_hidden_size(bad, (4, 2, 4)),
        lambda m: m.check_hidden_size(bad, (4, 2, 4), "size {} and {}"),
        lambda m: m.check_forward_args(x, (bad, hx) if layer == "LSTM" else bad, None),
        lambda m: m.check_forward_args(x, (hx, bad) if layer == "LSTM" else bad, None),
    ):
        with pytest.raises((RuntimeError, ValueError)) as expected:
            call(theirs)
        with pytest.raises(expected.type) as caught:
            call(module)
        assert str(caught.value) == str(expected.value)
    if layer == "LSTM":
        projected = library.LSTM(3, 4, proj_size=2)
        assert projected.get_expected_hidden_size(x, None) == (1, 2, 2)
        assert projected.get_expected_cell_size(x, None) == (1, 2, 4)


def test_mode_assigned_after_construction(library):
    """``mode`` selects the nonlinearity, also later."""
    module, x = library.RNN(3, 4), torch.randn(5, 2, 3)
    relu = nn.RNN(3, 4, nonlinearity="relu")
    relu.load_state_dict(module.state_dict())
    module.mode = "RNN_RELU"
    assert_same(module(x), relu(x))
