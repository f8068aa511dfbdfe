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

from prnn import native
from prnn.ops import operator  # noqa: F401  (registers the operators)
from prnn.ops.operands import Needs, Operands

Shape = Sequence[int]


def layer_flops(x: Shape, weights: Sequence[Shape | None]) -> int:
    """One pass of x [T,B,*] through ``weights`` [rows, columns]: a product with each of them at every step."""
    T, B, *_ = x
    return 2 * T * B * sum(weight[0] * weight[1] for weight in weights if weight is not None)


@register_flop_formula(torch.ops.prnn.layer)
def _layer(*given: Any, **_: Any) -> int:
    operands: Any = Operands(*given[-len(Operands._fields) :])
    return layer_flops(operands.x, [*_matrices(operands, "weight_ih"), *_matrices(operands, "weight_hh", "weight_hr")])


@register_flop_formula(torch.ops.prnn.layer_backward)
def _layer_backward(cell: str, reverse: bool, implementation: str, *rest: Any, **_: Any) -> int:
    """The state's gradient always; the input's and the weights' where they are wanted, or the library computes all."""
    needs = Needs(*rest[: len(Needs._fields)])
    operands: Any = Operands(*rest[-len(Operands._fields) :])
    whole = implementation in ("onednn", "cudnn")
    inputs, states = _matrices(operands, "weight_ih"), _matrices(operands, "weight_hh", "weight_hr")
    wanted = [*states, *(inputs if needs.x or whole else ()), *((*inputs, *states) if needs.weights or whole else ())]
    return layer_flops(operands.x, wanted)


def _matrices(operands: Operands, *names: str) -> list[Shape | None]:
    """The shapes of those weights in both directions."""
    return [getattr(operands, name + suffix) for name in names for suffix in ("", "_reverse")]


def _memory_forward(
    gates_x: Shape, weight_hh: Shape | None, weight_read: Shape, weight_act: Shape, *_: Any, **__: Any
) -> int:
    return layer_flops(gates_x, (weight_hh, weight_read, weight_act))


def _memory_backward(*given: Any, **_: Any) -> int:
    """What is serial; the weights' gradients are products of torch's, and counted as such."""
    return _memory_forward(*given[2:8])


if native.status()[0]:
    register_flop_formula(torch.ops.prnn_native.memory_forward)(_memory_forward)
    register_flop_formula(torch.ops.prnn_native.memory_backward)(_memory_backward)
