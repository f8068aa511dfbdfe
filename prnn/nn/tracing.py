"""Layers in graphs that are not autograd's: torch.fx, torch.jit.trace, torch.jit.script."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from prnn import ops

_TORCH = (nn.RNN, nn.GRU, nn.LSTM)


def as_leaf(module: nn.Module, input: torch.fx.Proxy, hx: Any, **options: Any) -> torch.fx.Proxy:
    """A call of ``module`` as one node of the graph that is traced, as tracers have it for torch.nn's modules."""
    tracer = input.tracer
    given = {name: value for name, value in options.items() if value is not None}
    arguments = (input,) if hx is None else (input, hx)
    return tracer.create_proxy("call_module", tracer.path_of_module(module), arguments, given)


def records_torch(module: nn.Module, lengths: Any, resets: Any) -> bool:
    """Whether torch.jit.trace records torch.nn's forward pass of this call: it has neither lengths nor resets."""
    return isinstance(module, _TORCH) and lengths is None and resets is None and ops.forced() is None
