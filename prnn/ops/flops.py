"""Floating point operations of prnn's operators, for ``torch.utils.flop_counter.FlopCounterMode``.

Importing this module registers the formulas; torch's own operators have theirs.

Shapes: T time steps, B batch, I input size, H hidden size, P projected size (H without projection), R rows of gates.

The convention is torch's, and that of published MFU figures: a multiplication and an addition of a matrix product are
two operations; what is pointwise (gates, activations, the optimizer) is not counted. Padding counts like data: a step
past a sample's length, and the product with a state of zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from prnn.ops import native

Shape = Sequence[int]


def layer_flops(x: Shape, weights: Sequence[Shape | None]) -> int:
    """One pass of x [T,B,*] through ``weights`` [rows, columns]: a product with each of them at every step."""
    T, B, *_ = x
    return 2 * T * B * sum(weight[0] * weight[1] for weight in weights if weight is not None)


@register_flop_formula(torch.ops.prnn.recurrence)
def _recurrence(gates_x: Shape, weight_hh: Shape, *rest: Any, **_: Any) -> int:
    return layer_flops(gates_x, (weight_hh, rest[5]))


@register_flop_formula(torch.ops.prnn.recurrence_backward)
def _recurrence_backward(*given: Any, **_: Any) -> int:
    """With the state's gradient and the weights': twice the forward pass."""
    gates_x, weight_hh, weight_hr = given[3], given[4], given[10]
    return 2 * layer_flops(gates_x, (weight_hh, weight_hr))


@register_flop_formula(torch.ops.prnn.library_layer)
def _library(x: Shape, weight_ih: Shape, weight_hh: Shape, *rest: Any, **_: Any) -> int:
    return layer_flops(x, (weight_ih, weight_hh))


@register_flop_formula(torch.ops.prnn.library_layer_backward)
def _library_backward(*given: Any, **_: Any) -> int:
    """The libraries compute the input's gradient whether it is wanted or not."""
    x, weight_ih, weight_hh = given[3:6]
    return 2 * layer_flops(x, (weight_ih, weight_hh))


def _native_forward(*given: Any, **_: Any) -> int:
    x, weight_ih, weight_hh, weight_ih_r, weight_hh_r = (given[i] for i in (0, 1, 2, 9, 10))
    return layer_flops(x, (weight_ih, weight_hh, weight_ih_r, weight_hh_r))


def _native_backward(*given: Any, **_: Any) -> int:
    """The state's gradient always; the input's and the weights' where they are wanted."""
    x, *operands = given[3:16]
    need_x, need_weights = given[-2:]
    inputs, states = (operands[0], operands[8]), (operands[1], operands[9])
    wanted = (*states, *(inputs if need_x else ()), *((*inputs, *states) if need_weights else ()))
    return layer_flops(x, wanted)


def _memory_forward(
    gates_x: Shape, weight_hh: Shape | None, weight_read: Shape, weight_act: Shape, *_: Any, **__: Any
) -> int:
    return layer_flops(gates_x, (weight_hh, weight_read, weight_act))


def _memory_backward(*given: Any, **_: Any) -> int:
    """What is serial; the weights' gradients are products of torch's, and counted as such."""
    return _memory_forward(*given[2:8])


if native.status()[0]:
    for kind in ("layer", "differentiable"):
        register_flop_formula(getattr(torch.ops.prnn_native, f"{kind}_forward"))(_native_forward)
        register_flop_formula(getattr(torch.ops.prnn_native, f"{kind}_backward"))(_native_backward)
    register_flop_formula(torch.ops.prnn_native.memory_forward)(_memory_forward)
    register_flop_formula(torch.ops.prnn_native.memory_backward)(_memory_backward)
