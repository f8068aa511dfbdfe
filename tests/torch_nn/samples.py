"""Inputs of the recurrent modules, from ``torch.testing``'s module database, and helpers for all tests here."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import sys
import types
import unittest
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

LAYERS = ("RNN", "GRU", "LSTM")
CELLS = ("RNNCell", "GRUCell", "LSTMCell")
DTYPES = (torch.float32, torch.float64)


@functools.cache
def module_database() -> dict[str, Any]:
    """``ModuleInfo`` by the module's name; the import takes some seconds, so only what needs it calls this."""
    with _no_side_effects():
        from torch.testing._internal import common_modules
    return {info.module_cls.__name__: info for info in common_modules.module_db if info.module_cls.__name__ in _ALL}


_ALL = {*LAYERS, *CELLS}


@contextlib.contextmanager
def _no_side_effects() -> Iterator[None]:
    """``torch.testing._internal`` without expecttest, which is not in every environment, nor its changes of globals."""
    stub = importlib.util.find_spec("expecttest") is None
    if stub:
        sys.modules["expecttest"] = types.ModuleType("expecttest")
        sys.modules["expecttest"].TestCase = unittest.TestCase
    environment, mutable = dict(os.environ), torch.backends.__allow_nonbracketed_mutation_flag
    calls = torch._C.ScriptFunction.__call__, torch._C.ScriptMethod.__call__
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch._C.ScriptFunction.__call__, torch._C.ScriptMethod.__call__ = calls
    torch.backends.__allow_nonbracketed_mutation_flag = mutable
    for key in os.environ.keys() - environment.keys():
        del os.environ[key]
    if stub:
        del sys.modules["expecttest"]


def module_inputs(name: str, dtype: torch.dtype, *, requires_grad: bool = False, **more: Any) -> list[Any]:
    """The ``ModuleInput`` samples of one module, all with an input for the forward pass."""
    info = module_database()[name]
    options = {"device": "cpu", "dtype": dtype, "requires_grad": requires_grad, "training": True} | more
    return [each for each in info.module_inputs_func(info, **options) if each.forward_input is not None]


def module_errors(name: str, dtype: torch.dtype) -> list[Any]:
    """The ``ErrorModuleInput`` samples of one module."""
    info = module_database()[name]
    return info.module_error_inputs_func(info, device="cpu", dtype=dtype, requires_grad=False, training=True)


def construct(library: Any, name: str, sample: Any, dtype: torch.dtype, training: bool = True) -> nn.Module:
    """The module of ``sample``, converted to ``dtype``."""
    given = sample.constructor_input
    return getattr(library, name)(*given.args, **given.kwargs).to(dtype).train(training)


def run(module: nn.Module, sample: Any) -> Any:
    return module(*sample.forward_input.args, **sample.forward_input.kwargs)


def leaves(results: Any) -> list[Tensor]:
    """The tensors of nested tuples, in order; of a PackedSequence its data."""
    if isinstance(results, PackedSequence):
        return [results.data]
    if isinstance(results, Tensor):
        return [results]
    return [tensor for each in results for tensor in leaves(each)]


def replace(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """``tree``, tuples of tensors, with ``function`` of each tensor."""
    if isinstance(tree, tuple):
        return tuple(replace(each, function) for each in tree)
    return function(tree)


def small(library: Any, name: str, **options: Any) -> tuple[nn.Module, tuple[Any, ...]]:
    """A module of 3 inputs and 4 units, and positional arguments of its forward pass: the input and a state."""
    module = getattr(library, name)(3, 4, **options)
    dtype = options.get("dtype")
    if name in CELLS:
        x, rows = torch.randn(2, 3, dtype=dtype), ()
    else:
        x = torch.randn(*((2, 5) if options.get("batch_first") else (5, 2)), 3, dtype=dtype)
        rows = (module.num_layers * (2 if module.bidirectional else 1),)
    h0 = torch.randn(*rows, 2, options.get("proj_size", 0) or 4, dtype=dtype)
    return module, (x, (h0, torch.randn(*rows, 2, 4, dtype=dtype)) if name.startswith("LSTM") else h0)


def first_weight(name: str) -> str:
    return "weight_ih" if name in CELLS else "weight_ih_l0"


def recurrent_weight(name: str) -> str:
    return "weight_hh" if name in CELLS else "weight_hh_l0"


def assert_same(found: Any, expected: Any, **tolerance: float) -> None:
    torch.testing.assert_close(leaves(found), leaves(expected), **tolerance)


def gradients(results: Any, wanted: list[Tensor]) -> list[Tensor]:
    """Gradients of a weighted sum of all results, the weights being the same at every call."""
    outputs = leaves(results)
    total = sum((each * torch.linspace(-1, 2, each.numel(), dtype=each.dtype).view_as(each)).sum() for each in outputs)
    return list(torch.autograd.grad(total, wanted))
