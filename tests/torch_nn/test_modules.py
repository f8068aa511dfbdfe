"""What PyTorch's test_modules.py checks of every module, for the recurrent ones, on the samples of its database.

Not applicable: test_check_inplace (no recurrent module has an argument ``inplace``); test_cpu_gpu_parity and the GPU
part of test_multiple_device_transfer need CUDA; here modules move between the CPU and the meta device. Some tests there
run in training and in evaluation mode; the samples have no dropout, so a few do so here.
"""

from __future__ import annotations

import contextlib
import copy
import io

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.utils import _pytree as pytree

from tests.torch_nn import samples
from tests.torch_nn.samples import DTYPES, construct, leaves, module_errors, module_inputs, replace, run

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
train_and_eval = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp64"])


def assert_all(module, device, dtype):
    """Every parameter and buffer is on ``device`` and of ``dtype``."""
    for each in (*module.parameters(), *module.buffers()):
        assert (each.device.type, each.dtype) == (device, dtype)


@pytest.mark.parametrize(("dtype", "training"), [(torch.float32, True), (torch.float64, True), (torch.float64, False)])
def test_forward(library, name, dtype, training):
    for sample in module_inputs(name, dtype, training=training):
        module = construct(library, name, sample, dtype, training)
        results = run(module, sample)
        given = sample.forward_input
        torch.testing.assert_close(results, sample.reference_fn(module, *given.args, **given.kwargs))
        {torch.float32: module.float, torch.float64: module.double}[dtype]()
        torch.testing.assert_close(run(module, sample), results)
        assert_all(module, "cpu", dtype)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@dtypes
def test_factory_kwargs(library, name, device, dtype):
    for sample in module_inputs(name, dtype):
        given = sample.constructor_input
        module = getattr(library, name)(*given.args, **given.kwargs, device=device, dtype=dtype)
        assert_all(module, device, dtype)
        assert len(list(module.parameters())) >= 2


@dtypes
def test_multiple_device_transfer(library, name, dtype):
    for sample in module_inputs(name, dtype)[:3]:
        module = construct(library, name, sample, dtype)
        expected, state = run(module, sample), {k: v.clone() for k, v in module.state_dict().items()}
        module.to("meta")
        assert_all(module, "meta", dtype)
        module.to_empty(device="cpu")
        assert_all(module, "cpu", dtype)
        module.load_state_dict(state)
        torch.testing.assert_close(run(module, sample), expected, rtol=0, atol=0)


@train_and_eval
def test_repr(library, name, training):
    for sample in module_inputs(name, torch.float32):
        module = construct(library, name, sample, torch.float32, training)
        given = sample.constructor_input
        assert repr(module) == str(module) == repr(getattr(torch.nn, name)(*given.args, **given.kwargs))


@train_and_eval
def test_pickle(library, name, training):
    for sample in module_inputs(name, torch.float64)[::3]:
        module = construct(library, name, sample, torch.float64, training)
        expected, file = run(module, sample), io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
        torch.testing.assert_close(run(other, sample), expected, rtol=0, atol=0)
        assert (other.training, repr(other)) == (training, repr(module))


def with_gaps(tensor):
    """The same values, every second element of a larger tensor."""
    return torch.repeat_interleave(tensor.detach(), 2, dim=-1)[..., ::2].requires_grad_(tensor.requires_grad)


@dtypes
def test_non_contiguous_tensors(library, name, dtype):
    for sample in module_inputs(name, dtype, requires_grad=True)[:: 1 if dtype == torch.float64 else 3]:
        module = construct(library, name, sample, dtype)
        arguments = replace(tuple(sample.forward_input.args), lambda x: x.detach().requires_grad_())
        expected, expected_gradients, weights = None, None, None
        for inputs in (arguments, replace(arguments, with_gaps)):
            for gaps in (False, True):
                results = leaves(module(*inputs))
                weights = weights or [torch.randn_like(each) for each in results]
                along = [with_gaps(each) for each in weights] if gaps else weights
                found = torch.autograd.grad(results, [*leaves(inputs), *module.parameters()], along)
                expected, expected_gradients = expected or results, expected_gradients or found
                torch.testing.assert_close(results, expected)
                torch.testing.assert_close(found, expected_gradients, atol=1e-4, rtol=0)


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck], ids=["grad", "gradgrad"])
def test_gradients(library, name, check):
    """test_grad and test_gradgrad: with respect to everything at once, and of one sample to each parameter alone.

    They take long: of every fifth or seventh sample, which are all values of each option.
    """
    given = module_inputs(name, torch.float64, requires_grad=True)
    for sample in given[:: 5 if check is gradcheck else 7]:
        module = construct(library, name, sample, torch.float64)
        check_gradients(check, module, sample, list(module.parameters()))
    sample = given[-1] if name in samples.CELLS else given[len(given) // 2 + 1]
    module = construct(library, name, sample, torch.float64)
    for parameter in list(module.parameters())[: 4 if check is gradcheck else 1]:
        check_gradients(check, module, sample, [parameter])


def check_gradients(check, module, sample, wanted):
    """Gradients with respect to the inputs and the ``wanted`` parameters."""
    for each in module.parameters():
        each.requires_grad_(False)
    for each in wanted:
        each.requires_grad_(True)
    flat, spec = pytree.tree_flatten(tuple(sample.forward_input.args))
    flat = [each.detach().requires_grad_() for each in flat]

    def outputs(*tensors):
        return tuple(leaves(module(*pytree.tree_unflatten(list(tensors[: len(flat)]), spec))))

    assert check(outputs, (*flat, *module.parameters()), fast_mode=True)


def test_memory_format(library, name):
    for sample in module_inputs(name, torch.float32, requires_grad=True):
        module = construct(library, name, sample, torch.float32)
        expected, wanted = None, [*leaves(tuple(sample.forward_input.args)), *module.parameters()]
        for memory_format in (None, torch.preserve_format, torch.contiguous_format):
            if memory_format is not None:
                module.to(memory_format=memory_format)
            results = run(module, sample)
            found = [*leaves(results), *samples.gradients(results, wanted)]
            expected = expected or found
            torch.testing.assert_close(found, expected)
            assert all(each.is_contiguous() for each in found)


def test_if_train_and_eval_modes_differ(library, name):
    """Whether a module reads its attribute ``training``: the database says that layers do and that cells do not."""
    for sample in module_inputs(name, torch.float32):
        module = construct(library, name, sample, torch.float32)
        del module.training
        with pytest.raises(AttributeError, match="training") if name in samples.LAYERS else contextlib.nullcontext():
            run(module, sample)
            if name in samples.LAYERS:  # it may also do without, where there is no dropout
                raise AttributeError("training")


@dtypes
def test_device_ctx_init(library, name, dtype):
    with torch.device("meta"):
        on_meta = module_inputs(name, dtype, device=None)
    for sample, meta_sample in zip(module_inputs(name, dtype), on_meta, strict=True):
        with torch.device("meta"):
            given = meta_sample.constructor_input
            module = getattr(library, name)(*given.args, **given.kwargs)
        here = construct(library, name, sample, torch.float32)
        assert all(each.is_meta for each in module.parameters())
        for (key, on_cpu), (meta_key, meta) in zip(here.named_parameters(), module.named_parameters(), strict=True):
            assert (key, on_cpu.shape, on_cpu.stride(), on_cpu.dtype, on_cpu.requires_grad) == (
                *(meta_key, meta.shape, meta.stride(), meta.dtype, meta.requires_grad),
            )


@dtypes
def test_errors(library, name, dtype):
    for error in module_errors(name, dtype):
        sample, module = error.module_error_input, None
        given = sample.constructor_input
        if sample.forward_input is not None:
            module = getattr(library, name)(*given.args, **given.kwargs)
        with pytest.raises(error.error_type, match=error.error_regex):
            if module is None:
                getattr(library, name)(*given.args, **given.kwargs)
            else:
                run(module, sample)


@contextlib.contextmanager
def swapping(swap):
    """Conversions exchange the contents of parameters, or replace their data."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


@pytest.mark.parametrize("swap", [False, True], ids=["data", "swap"])
@pytest.mark.parametrize("set_grad", [False, True], ids=["", "grad"])
def test_to(library, name, swap, set_grad):
    for sample in module_inputs(name, torch.float32)[:4]:
        module = construct(library, name, sample, torch.float32)
        run(module, sample)
        if set_grad:
            for each in module.parameters():
                each.grad = torch.randn_like(each)
        values = [each.detach().clone() for each in module.parameters()]
        slopes = [each.grad for each in module.parameters()]
        slopes = [None if each is None else each.clone() for each in slopes]
        objects = list(module.parameters())
        with swapping(swap):
            for conversion in (torch.float64, torch.bfloat16, torch.float32, "meta"):
                module.to(conversion)
                if conversion == torch.float64:
                    inputs = replace(tuple(sample.forward_input.args), lambda x: x.double())
                    assert all(each.dtype == torch.float64 for each in leaves(module(*inputs)))
                    for each, value, slope in zip(module.parameters(), values, slopes, strict=True):
                        torch.testing.assert_close(each.detach(), value.double(), rtol=0, atol=0)
                        torch.testing.assert_close(each.grad, None if slope is None else slope.double())
                is_type = isinstance(conversion, torch.dtype)
                assert_all(module, "cpu" if is_type else "meta", conversion if is_type else torch.float32)
                if is_type or swap:  # a parameter of another kind cannot take the data
                    assert all(a is b for a, b in zip(module.parameters(), objects, strict=True))
            if name in samples.LAYERS:
                assert [each.device.type for row in module.all_weights for each in row] == ["meta"] * len(objects)


@pytest.mark.parametrize("swap", [False, True], ids=["data", "swap"])
@train_and_eval
def test_to_empty(library, name, swap, training):
    for sample in module_inputs(name, torch.float32)[:4]:
        given = sample.constructor_input
        with torch.device("meta"):
            module = getattr(library, name)(*given.args, **given.kwargs).train(training)
        objects = list(module.parameters())
        with swapping(swap):
            module.to_empty(device="cpu")
        assert_all(module, "cpu", torch.float32)
        if swap:
            assert all(a is b for a, b in zip(module.parameters(), objects, strict=True))
        module.reset_parameters()
        other = copy.deepcopy(module)
        torch.testing.assert_close(run(module, sample), run(other, sample))


@pytest.mark.parametrize("T", [2, 9])
def test_features_made_in_inference_mode(library, layer, T):
    module = getattr(library, layer)(5, 6, batch_first=True)
    with torch.inference_mode():
        x = torch.randn(3, T, 5)
    module(x)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
