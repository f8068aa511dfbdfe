"""What else than autograd looks into a model: torch.fx, torch.jit, torch.compile, quantisation."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prnn import importing, ops

if TYPE_CHECKING:
    from prnn.nn.base import RecurrentBase

_TORCH = (nn.RNN, nn.GRU, nn.LSTM)


def as_leaf(module: nn.Module, input: torch.fx.Proxy, hx: Any, **options: Any) -> Any:
    """A call of ``module`` as one node of the graph that torch.fx traces, which it makes of torch.nn's modules."""
    tracer: Any = input.tracer
    if module is tracer.root:
        raise torch.fx.proxy.TraceError(f"torch.fx traces models that hold a {type(module).__name__}, not one itself")
    given = {name: value for name, value in options.items() if value is not None}
    arguments = (input,) if hx is None else (input, hx)
    return tracer.create_proxy("call_module", tracer.path_of_module(module), arguments, given)


def runs_torch(module: RecurrentBase, lengths: Any, resets: Any) -> bool:
    """Whether this call is torch.nn's forward pass, which has neither lengths nor resets: where torch.jit.trace records
    it, and for the per-sample gradients of torch.nn.utils, which know torch's own operators alone.
    """
    expanded = sys.modules.get("torch.nn.utils._expanded_weights")
    if not torch.jit.is_tracing() and (
        expanded is None or not any(isinstance(each, expanded.ExpandedWeight) for each in module._flat_weights)
    ):
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
    propagate = quantize.propagate_qconfig_

    def propagate_qconfig_(module: nn.Module, qconfig_dict: Any = None, *args: Any, **kwargs: Any) -> None:
        wanted = qconfig_dict or {"": None}
        import_module("prnn.nn.conversion").for_quantisation(
            module,
            tuple(key for key in wanted if key in _TORCH),
            [key for key in wanted if isinstance(key, str)],
        )
        propagate(module, qconfig_dict, *args, **kwargs)

    quantize.propagate_qconfig_ = propagate_qconfig_
