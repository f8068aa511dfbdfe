"""Recurrent modules under PyTorch's transformations: functional calls, forward mode, batches of gradients, tracing.

From test_stateless.py, test_expanded_weights.py, test_overrides.py (TestRNN), test_fake_tensor.py, test_fx.py,
test_jit.py and functorch's tests; only what torch.nn's modules pass. Those have no rule for vmap over samples or over a
stack of models; prnn's do (tests/nn/test_transforms.py). Forward mode is in double precision: in single precision
torch.nn.LSTM's kernel has none.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, hessian, jacfwd, jacrev, jvp
from torch.nn.utils import parametrizations, rnn, stateless
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
from torch.utils import _pytree as pytree

from tests.torch_nn.samples import LAYERS, assert_same, first_weight, leaves, recurrent_weight, small

calls = pytest.mark.parametrize("call", [functional_call, stateless.functional_call], ids=["func", "stateless"])
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*stateless.functional_call.*:FutureWarning", "ignore:.*torch.jit.script:DeprecationWarning"
)


def scaled(module, factor):
    return {key: each.detach() * factor for key, each in module.named_parameters()}


def with_weights(name, weights):
    other = getattr(nn, name)(3, 4)
    other.load_state_dict(weights)
    return other


@calls
def test_functional_call(library, name, call):
    """Different weights at every call, and none of them remains."""
    module, arguments = small(library, name)
    expected, objects = module(*arguments), list(module.parameters())
    for factor in (2.0, -1.0, 2.0):
        weights = scaled(module, factor)
        assert_same(call(module, weights, arguments), with_weights(name, weights)(*arguments))
        assert_same(module(*arguments), expected, rtol=0, atol=0)
    assert all(a is b for a, b in zip(module.parameters(), objects, strict=True))


@calls
def test_functional_call_with_gradient(library, name, call):
    module, arguments = small(library, name)
    weights = {key: each.requires_grad_() for key, each in scaled(module, 2.0).items()}
    sum(each.sum() for each in leaves(call(module, weights, arguments))).backward()
    assert all(each.grad.abs().sum() > 0 for each in weights.values())
    assert {each.grad for each in module.parameters()} == {None}


@calls
def test_reparametrize_some_weights(library, name, call):
    module, arguments = small(library, name)
    key = recurrent_weight(name)
    weights = {key: torch.zeros_like(getattr(module, key))}
    expected = with_weights(name, module.state_dict() | weights)(*arguments)
    assert_same(call(module, weights, arguments), expected)
    with pytest.raises(RuntimeError, match="Missing key"):
        call(module, weights, arguments, strict=True)
    extra = {each: getattr(module, each) for each, _ in module.named_parameters()} | {"extra": torch.ones(1)}
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\): 'extra'"):
        call(module, extra, arguments, strict=True)
    with pytest.raises(TypeError, match="is not an instance of torch.Tensor"):
        call(module, {key: "text"}, arguments)


@calls
def test_a_failing_functional_call_changes_nothing(library, name, call):
    module, (x, hx) = small(library, name)
    expected, objects = module(x, hx), list(module.parameters())
    with pytest.raises((RuntimeError, ValueError)):
        call(module, scaled(module, 2.0), (x[..., :2], hx))
    assert all(a is b for a, b in zip(module.parameters(), objects, strict=True))
    assert_same(module(x, hx), expected, rtol=0, atol=0)


def test_functional_call_with_tied_weights(library, layer):
    module, arguments = getattr(library, layer)(4, 4), (torch.randn(5, 2, 4),)
    module.weight_ih_l0 = module.weight_hh_l0
    new = torch.randn_like(module.weight_hh_l0)
    other = getattr(nn, layer)(4, 4)
    other.load_state_dict(module.state_dict() | {"weight_ih_l0": new, "weight_hh_l0": new})
    assert_same(functional_call(module, {"weight_hh_l0": new}, arguments), other(*arguments))


@calls
def test_reparametrized_module_change_parametrization_original(library, name, call):
    """The original of a parametrised weight is replaced; the parametrisation still acts."""
    module, arguments = small(library, name)
    key = recurrent_weight(name)
    parametrizations.spectral_norm(module, key).eval()
    new = {f"parametrizations.{key}.original": getattr(module, key).detach() * 7}
    assert_same(call(module, new, arguments), module(*arguments), rtol=1e-4, atol=1e-5)


def test_forward_mode_and_hessian(library, name):
    module, (x, hx) = small(library, name, dtype=torch.float64)

    def outputs(x):
        return leaves(module(x, hx))[0]

    direction = torch.randn_like(x)
    value, tangent = jvp(outputs, (x,), (direction,))
    torch.testing.assert_close(value, outputs(x))
    step = 1e-6 * direction
    torch.testing.assert_close(tangent, (outputs(x + step) - outputs(x - step)) / 2e-6, atol=1e-6, rtol=1e-6)
    x = x[..., :2, :]
    forward, reverse = (jacobian(lambda x: leaves(module(x))[0])(x) for jacobian in (jacfwd, jacrev))
    torch.testing.assert_close(forward, reverse)
    second = hessian(lambda x: leaves(module(x))[0].sum())(x)
    numbers = x.numel()
    torch.testing.assert_close(second.reshape(numbers, numbers), second.reshape(numbers, numbers).T)


def test_batched_gradients(library, name):
    """gradcheck's check_batched_grad: many backward passes at once, under vmap."""
    module, (x, hx) = small(library, name, dtype=torch.float64)
    x = x.requires_grad_()
    output = leaves(module(x, hx))[0]
    along = torch.randn(3, *output.shape, dtype=torch.float64)
    wanted = [x, *module.parameters()]
    found = torch.autograd.grad(output, wanted, along, is_grads_batched=True, retain_graph=True)
    single = [torch.autograd.grad(output, wanted, each, retain_graph=True) for each in along]
    torch.testing.assert_close(list(found), [torch.stack(each) for each in zip(*single, strict=True)])


class OutputOnly(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.m = module

    def forward(self, *arguments):
        return self.m(*arguments)[0]


@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
def test_expanded_weights(library, layer, packed):
    """Gradients of each sample by torch's ``call_for_per_sample_grads``."""
    samples = [torch.randn(length, 3, dtype=torch.float64) for length in ((5, 3) if packed else (4, 4))]
    for options in ({}, {"num_layers": 2, "bidirectional": True}, {"bias": False}):
        model = OutputOnly(getattr(library, layer)(3, 4, batch_first=True, dtype=torch.float64, **options))
        model.m.weight_ih_l0.requires_grad_(bool(options))
        given = rnn.pack_sequence(samples) if packed else torch.stack(samples)
        result = call_for_per_sample_grads(model, batch_size=2, loss_reduction="sum")(given)
        leaves(result)[0].sum().backward()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        found = [parameter.grad_sample for parameter in trained]
        single = [torch.autograd.grad(model(each[None]).sum(), trained) for each in samples]
        torch.testing.assert_close(found, [torch.stack(each) for each in zip(*single, strict=True)])


class Wrapped:
    """Not a tensor, but with ``__torch_function__``: everything is done to the tensor inside."""

    def __init__(self, inside):
        self.__dict__["inside"] = inside

    def __getattr__(self, name):
        return getattr(self.inside, name)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        args, kwargs = pytree.tree_map(lambda x: x.inside if isinstance(x, cls) else x, (args, kwargs or {}))
        return function(*args, **kwargs)


def test_torch_function(library, name):
    """TestRNN in test_overrides.py, and subclasses of Tensor."""
    module, (x, hx) = small(library, name)
    assert_same(module(Wrapped(x)), module(x))

    class Marked(torch.Tensor):
        pass

    results = module(x.as_subclass(Marked), hx)
    assert {type(each) for each in leaves(results)} == {Marked}
    assert_same([each.as_subclass(torch.Tensor) for each in leaves(results)], module(x, hx))


def test_meta_and_fake_tensors(library, name):
    """Shapes, types and strides without numbers."""
    options = {"num_layers": 2, "bidirectional": True} if name in LAYERS else {}
    module, arguments = small(library, name, **options)
    expected = [(each.shape, each.dtype) for each in leaves(module(*arguments))]
    on_meta = module.to("meta")(*pytree.tree_map(lambda x: x.to("meta"), arguments))
    assert all(each.is_meta for each in leaves(on_meta))
    assert [(each.shape, each.dtype) for each in leaves(on_meta)] == expected
    shapes = pytree.tree_map(lambda x: x.shape, arguments)
    with FakeTensorMode():
        fake = pytree.tree_map(torch.empty, shapes, is_leaf=lambda x: isinstance(x, torch.Size))
        fake = leaves(getattr(library, name)(3, 4, **options)(*fake))
        assert [(each.shape, each.dtype) for each in fake] == expected
        sum(each.sum() for each in fake).backward()


def test_fx_symbolic_trace(library, name):
    """Modules of torch.nn are leaves of the graph."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = getattr(library, name)(3, 4), nn.Linear(4, 1)

        def forward(self, x, hx):
            results = self.inner(x, hx)
            return self.head(results if name in ("RNNCell", "GRUCell") else results[0])

    model, (_, arguments) = Model(), small(nn, name)
    traced = torch.fx.symbolic_trace(model)
    assert "inner" in [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert_same(traced(*arguments), model(*arguments))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_jit_trace(library, name, tmp_path):
    """With torch's own check of the trace."""
    module, arguments = small(library, name)
    traced = torch.jit.trace(module, arguments)
    traced.save(tmp_path / "module.pt")
    for each in (traced, torch.jit.load(tmp_path / "module.pt")):
        assert_same(each(*arguments), module(*arguments))


class Scripted(nn.Module):
    """A layer and a head, for torch.jit.script, which needs a source file."""

    def __init__(self, module):
        super().__init__()
        self.inner = module
        self.head = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.inner(x)[0])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning", "ignore:torch.jit.script replaces")
def test_jit_script(library, layer):
    model, (x, _) = Scripted(getattr(library, layer)(3, 4)), small(nn, layer)[1]
    scripted = torch.jit.script(model)
    torch.testing.assert_close(scripted(x), model(x))


@pytest.mark.filterwarnings("ignore:The tensor attributes")
def test_export(library, layer):
    """A graph for any batch."""
    model, (x, _) = OutputOnly(getattr(library, layer)(3, 4, batch_first=True)), small(nn, layer)[1]
    x = x.transpose(0, 1)
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(model, (x,), dynamic_shapes=(({0: batch},),)).module()
    for each in (x, torch.cat([x, x, x])):
        torch.testing.assert_close(exported(each), model(each))


@pytest.mark.parametrize("name", ["RNN", "GRU"])
def test_output_changed_in_place(library, name):
    """Not of LSTM, whose kernel in torch.nn saves its output."""
    module, arguments = small(library, name)
    output, _ = module(*arguments)
    output.mul_(2)
    output.sum().backward()


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization.*:DeprecationWarning", "ignore:.*quantize_per_tensor")
@pytest.mark.parametrize("name", ["GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell"])
def test_dynamic_quantisation(library, name):
    """Layers are replaced by those of torch.ao.nn.quantized, by the type of the module."""
    model = nn.Sequential(getattr(library, name)(3, 4))
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.GRU, nn.LSTM, nn.RNNCell, nn.GRUCell, nn.LSTMCell})
    assert type(quantised[0]).__module__.startswith("torch.ao.nn.quantized.dynamic")
    _, (x, hx) = small(nn, name)
    torch.testing.assert_close(leaves(quantised[0](x, hx))[0], leaves(model[0](x, hx))[0], atol=5e-2, rtol=5e-2)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_gradients_under_anomaly_detection_and_determinism(library, name):
    module, arguments = small(library, name)
    torch.use_deterministic_algorithms(True)
    try:
        with torch.autograd.detect_anomaly(check_nan=True):
            sum(each.sum() for each in leaves(module(*arguments))).backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert getattr(module, first_weight(name)).grad.isfinite().all()
