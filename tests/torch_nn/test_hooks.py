"""What PyTorch's test_module_hooks.py checks of hooks, on recurrent modules."""

from __future__ import annotations

import gc
import pickle
import weakref
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.modules import module as global_hooks

from tests.torch_nn.samples import LAYERS, assert_same, first_weight, leaves, replace, small


def run_backward(results):
    sum(each.sum() for each in leaves(results)).backward()


def test_forward_hooks_and_pre_hooks(library, name):
    """They see module, inputs and results; the order is that of their registration unless prepended."""
    module, arguments = small(library, name)
    expected, seen = module(*arguments), []
    handles = [
        module.register_forward_hook(lambda m, args, result: seen.append(("after", m, len(args), result))),
        module.register_forward_pre_hook(lambda m, args: seen.append(("before", m, len(args), args[0]))),
        module.register_forward_pre_hook(lambda m, args: seen.append(("first", m, len(args), args[0])), prepend=True),
    ]
    results = module(*arguments)
    assert [each[:3] for each in seen] == [(when, module, 2) for when in ("first", "before", "after")]
    assert seen[0][3] is arguments[0]
    assert seen[2][3] is results
    for each in handles:
        each.remove()
    module(*arguments)
    assert len(seen) == 3
    assert_same(results, expected, rtol=0, atol=0)


def test_hook_forward_preforward_writable(library, name):
    module, arguments = small(library, name)
    expected = module(arguments[0] * 2, arguments[1])
    module.register_forward_pre_hook(lambda m, args: (args[0] * 2, *args[1:]))
    module.register_forward_hook(lambda m, args, result: replace(result, lambda x: x + 1))
    assert_same(module(*arguments), replace(expected, lambda x: x + 1))


def test_kwarg_hooks(library, name):
    module, (x, hx) = small(library, name)
    expected, seen = module(x * 2, hx), []

    def before(m, args, kwargs):
        seen.append(sorted(kwargs))
        return args, kwargs | {"input": kwargs["input"] * 2}

    def after(m, args, kwargs, result):
        assert kwargs["hx"] is hx
        assert args == ()

    module.register_forward_pre_hook(before, with_kwargs=True)
    handle = module.register_forward_hook(after, with_kwargs=True)
    assert_same(module(input=x, hx=hx), expected)
    handle.remove()
    assert_same(module(hx=hx, input=x), expected)
    assert seen == [["hx", "input"]] * 2


def test_always_called_forward_hooks(library, name):
    module, (x, hx) = small(library, name)
    seen = []
    module.register_forward_hook(lambda m, args, result: seen.append("always"), always_call=True)
    module.register_forward_hook(lambda m, args, result: seen.append("else"))
    with pytest.raises((RuntimeError, ValueError)):
        module(x[..., :2], hx)
    assert seen == ["always"]
    module(x, hx)
    assert seen == ["always", "always", "else"]


def test_full_backward_hooks(library, name):
    """The gradients of inputs and results, as many as there are tensors among the direct arguments and results."""
    module, (x, hx) = small(library, name)
    x = x.requires_grad_()
    results, seen = module(x, hx), []
    (expected,) = torch.autograd.grad(sum(each.sum() for each in leaves(results)), x)
    module.register_full_backward_hook(lambda m, inputs, outputs: seen.append((inputs, outputs)))
    module.register_full_backward_pre_hook(lambda m, outputs: seen.append(outputs))
    results = module(x, hx)
    run_backward(results)
    outputs, (input_gradients, again) = seen
    direct = (results,) if isinstance(results, torch.Tensor) else results
    for found, result in zip(outputs, direct, strict=True):
        assert torch.equal(found, torch.ones_like(result)) if isinstance(result, torch.Tensor) else found is None
    torch.testing.assert_close(input_gradients[0], expected)
    torch.testing.assert_close(x.grad, expected)
    assert len(again) == len(outputs)
    assert len(input_gradients) == 2


def test_hook_backward_writeable(library, name):
    module, (x, hx) = small(library, name)
    x = x.requires_grad_()
    (expected,) = torch.autograd.grad(leaves(module(x, hx))[0].sum(), x)
    module.register_full_backward_hook(lambda m, inputs, outputs: (inputs[0] * 2, *inputs[1:]))
    module.register_full_backward_pre_hook(lambda m, outputs: (outputs[0] * 3, *outputs[1:]))
    leaves(module(x, hx))[0].sum().backward()
    torch.testing.assert_close(x.grad, expected * 6)


def test_hook_no_requires_grad(library, name):
    """Without a gradient of the input, the hook gets None for it, and parameters have theirs."""
    module, (x, hx) = small(library, name)
    seen = []
    module.register_full_backward_hook(lambda m, inputs, outputs: seen.append(inputs))
    with pytest.warns(UserWarning, match="since no inputs require gradients"):
        run_backward(module(x, hx))
    assert seen
    assert seen[0][0] is None
    assert all(each.grad is not None for each in module.parameters())
    with torch.no_grad():
        module(x, hx)
    assert len(seen) == 1


def test_hook_inplace(library, name):
    """The results of a module with a backward hook are not changed in place: torch says so."""
    module, (x, hx) = small(library, name)
    module.register_full_backward_hook(lambda m, inputs, outputs: None)
    result = leaves(module(x.requires_grad_(), hx))[0]
    with pytest.raises(RuntimeError, match="modified inplace"):
        result += 1


def test_hook_non_full_warning(library, layer):
    module, (x, hx) = small(library, layer)
    module.register_backward_hook(lambda m, inputs, outputs: None)
    with pytest.raises(RuntimeError, match="Cannot use both regular backward hooks and full backward hooks"):
        module.register_full_backward_hook(lambda m, inputs, outputs: None)
    if layer == "LSTM":  # of GRU and RNN the direct results are all tensors
        with pytest.warns(FutureWarning, match="does not return a single Tensor or a tuple of Tensors"):
            module(x.requires_grad_(), hx)


def test_module_global_hooks(library, name):
    module, (x, hx) = small(library, name)
    seen = []
    handles = [
        global_hooks.register_module_forward_pre_hook(lambda m, args: seen.append(("before", m))),
        global_hooks.register_module_forward_hook(lambda m, args, result: seen.append(("after", m))),
        global_hooks.register_module_full_backward_hook(lambda m, inputs, outputs: seen.append(("backward", m))),
    ]
    try:
        run_backward(module(x.requires_grad_(), hx))
    finally:
        for each in handles:
            each.remove()
    assert seen == [(when, module) for when in ("before", "after", "backward")]


def test_registration_hooks(library, name):
    """test_hook_parameter_registration: every parameter is registered through torch's function, in order."""
    seen = []
    handle = global_hooks.register_module_parameter_registration_hook(lambda m, key, value: seen.append(key))
    try:
        module = getattr(library, name)(3, 4)
    finally:
        handle.remove()
    assert seen == [key for key, _ in module.named_parameters()]


def test_no_extra_ref_to_module(library, name):
    gc.collect()
    gc.disable()
    try:
        module, arguments = small(library, name)
        module.register_forward_hook(partial(lambda m, args, result: None))
        module(*arguments)
        alive = weakref.ref(module)
        del module
        assert alive() is None
    finally:
        gc.enable()


def doubled(module, args, result):
    return replace(result, lambda x: x * 2)


def test_pickled_hook(library, name):
    module, arguments = small(library, name)
    expected = replace(module(*arguments), lambda x: x * 2)
    module.register_forward_hook(doubled)
    assert_same(pickle.loads(pickle.dumps(module))(*arguments), expected)


def test_state_dict_hooks(library, name):
    module, seen = getattr(library, name)(3, 4), []
    module.register_state_dict_pre_hook(lambda m, prefix, keep_vars: seen.append("save"))
    module.register_state_dict_post_hook(lambda m, state, prefix, metadata: state.update({prefix + "more": 1}))
    module.register_load_state_dict_pre_hook(lambda m, state, prefix, *_: seen.append(state.pop(prefix + "more", None)))
    module.register_load_state_dict_post_hook(lambda m, keys: seen.append(keys.unexpected_keys))
    state = nn.Sequential(module).state_dict()
    assert state["0.more"] == 1
    nn.Sequential(module).load_state_dict(state)
    assert seen == ["save", 1, []]


def test_hooks_on_parameters_and_gradients(library, name):
    """Tensor hooks, hooks after accumulation, and an optimiser step within the backward pass."""
    module, arguments = small(library, name)
    weight, seen = getattr(module, first_weight(name)), []
    weight.register_hook(lambda gradient: gradient * 0)
    weight.register_post_accumulate_grad_hook(seen.append)
    run_backward(module(*arguments))
    assert not weight.grad.any()
    assert len(seen) == 1
    assert seen[0] is weight
    others = [each for each in module.parameters() if each is not weight]
    optimizers = {each: torch.optim.SGD([each], lr=0.1) for each in others}

    def step(p):
        optimizers[p].step()
        optimizers[p].zero_grad()

    for each in others:
        each.register_post_accumulate_grad_hook(step)
    before = [each.detach().clone() for each in others]
    module.zero_grad()
    run_backward(module(*arguments))
    assert all(not torch.equal(a, b) for a, b in zip(before, others, strict=True))


def test_saved_tensors_hooks(library, name):
    """Activation offloading: every saved tensor goes through the hooks, and the gradients are the same."""
    module, (x, hx) = small(library, name)
    x = x.requires_grad_()
    run_backward(module(x, hx))
    expected, packed = [each.grad.clone() for each in (x, *module.parameters())], []
    for each in (x, *module.parameters()):
        each.grad = None
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t.numpy(force=True), torch.from_numpy):
        results = module(x, hx)
    assert packed
    run_backward(results)
    torch.testing.assert_close([each.grad for each in (x, *module.parameters())], expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(library, name, reentrant):
    """Recomputation in the backward pass, with the same dropout masks."""
    options = {"num_layers": 2, "dropout": 0.5} if name in LAYERS else {}
    module, (x, hx) = small(library, name, **options)
    x, found = x.requires_grad_(), []
    for run in (module, partial(torch.utils.checkpoint.checkpoint, module, use_reentrant=reentrant)):
        torch.manual_seed(1)
        module.zero_grad()
        x.grad = None
        results = run(x, hx)
        leaves(results)[0].square().sum().backward()
        found.append([*leaves(results), x.grad, *(each.grad for each in module.parameters())])
    torch.testing.assert_close(*found)
