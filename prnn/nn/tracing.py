"""What else than autograd looks into a model: torch.fx, torch.jit, torch.compile, quantisation."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prnn import importing, ops

if TYPE_CHECKING:
    from prnn.nn.base import RecurrentBase

_TORCH = (nn.RNN, nn.GRU, nn.LSTM)


def tracer_of(input: Any, hx: Any, *options: Any) -> Any:
    """torch.fx's tracer, where one of a call's arguments is a value that it traces; or None."""
    arguments = (input, *(hx if isinstance(hx, (tuple, list)) else (hx,)), *options)
    return next((each.tracer for each in arguments if isinstance(each, torch.fx.Proxy)), None)


def as_leaf(tracer: Any, module: nn.Module, input: Any, hx: Any, **options: Any) -> Any:
    """A call of ``module`` as one node of the graph that torch.fx traces, which it makes of torch.nn's modules."""
    if module is tracer.root:
        raise torch.fx.proxy.TraceError(f"torch.fx traces models that hold a {type(module).__name__}, not one itself")
    given = {name: value for name, value in options.items() if value is not None}
    arguments = (input,) if hx is None else (input, hx)
    return tracer.create_proxy("call_module", tracer.path_of_module(module), arguments, given)


def runs_torch(module: RecurrentBase, lengths: Any, resets: Any) -> bool:
    """Whether this call is torch.nn's forward pass, which has neither lengths nor resets: where torch.jit.trace or
    torch.onnx.export(dynamo=False) records it, and for the per-sample gradients of torch.nn.utils, which know torch's
    own operators alone.
    """
    if torch.compiler.is_compiling():
        return False
    if not torch.jit.is_tracing():
        expanded = sys.modules.get("torch.nn.utils._expanded_weights")
        if expanded is None or not any(isinstance(each, expanded.ExpandedWeight) for each in module._flat_weights):
            return False
    return isinstance(module, _TORCH) and lengths is None and resets is None and ops.forced() is None


def look_into(layers: type[nn.Module]) -> None:
    """Have torch.compile and torch.ao.quantization look into modules of this class.

    Both are imported by few programs, torch.compile for seconds: what they need waits for that.
    """
    importing.when_imported("torch._dynamo.variables.builder", lambda builder: _compile(builder, layers))
    importing.when_imported("torch.ao.quantization.quantize", _quantise)


def _compile(builder: Any, layers: type[nn.Module]) -> None:
    """Dynamo leaves instances of torch.nn.RNN, GRU and LSTM out of a graph unless ``allow_rnn`` is on. On for all, it
    would unroll torch.nn's own layers over time; so it is on while a layer is looked at that is one operator.
    """
    wrap = builder.VariableBuilder.wrap_module

    def wrap_module(self: Any, value: nn.Module) -> Any:
        if not isinstance(value, layers):
            return wrap(self, value)
        with builder.config.patch(allow_rnn=True):
            return wrap(self, value)

    builder.VariableBuilder.wrap_module = wrap_module


def _quantise(quantize: Any) -> None:
    """quantize_dynamic and prepare go by the exact class, and would leave a layer in float32 without a word. In their
    copy of the model, layers that are asked for, by class or by name, are converted to torch.nn's classes first.
    """
    wrapped = _propagating(quantize.propagate_qconfig_)
    quantize.propagate_qconfig_ = wrapped
    # torch.fx's quantisation has a name of its own for it
    importing.when_imported("torch.ao.quantization.fx.prepare", lambda fx: setattr(fx, "propagate_qconfig_", wrapped))


def _propagating(propagate: Callable[..., None]) -> Callable[..., None]:
    def propagate_qconfig_(module: nn.Module, qconfig_dict: Any = None, *args: Any, **kwargs: Any) -> None:
        qconfig_dict = import_module("prnn.nn.conversion").for_quantisation(module, qconfig_dict or {})
        propagate(module, qconfig_dict, *args, **kwargs)

    return propagate_qconfig_
