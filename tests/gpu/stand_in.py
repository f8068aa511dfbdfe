"""The CUDA kernels' arithmetic on a CPU: float32 sums of products whose factors are rounded where the kernels round.

That is: the input's share of the gates, h after each step, the activations kept for the backward pass and the gates'
gradients are rounded to the layer's dtype; the cell state and what the gradient of h sums up stay in float32. In
float32 with tf32, every factor of a product loses 13 bits, and so does h, which is more than the kernels do.

Bounds are measured with it (derive.py), above all those of float16 and tf32, which no kernel on a CPU has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from prnn import cuda_plan
from prnn.cell_table import CELLS, Cell
from prnn.ops import reference
from prnn.ops.operands import Operands, Weights

Round = Callable[[Tensor], Tensor]  # float32 -> float32


def layer(
    *operands: Tensor | None, cell: str, reverse: bool = False, **steps: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As ``tests.ops.problems.layer``."""
    x = operands[0]
    assert x is not None
    dtype, truncates = x.dtype, cuda_plan.tf32() and x.dtype == torch.float32

    def rounded(value: Tensor) -> Tensor:
        return (value.view(torch.int32) & ~0x1FFF).view(torch.float32) if truncates else value.to(dtype).float()

    spec = CELLS[cell]

    def forward(*given: Tensor | None) -> tuple[Tensor, Tensor | None, tuple[()]]:
        h, c = _Step.apply(*given, spec, rounded)
        return h, c if spec.has_c else None, ()

    factors = [None if value is None else value.float() for value in operands]
    if truncates:
        factors[:3] = [_Factor.apply(value, rounded) for value in factors[:3]]
    *weights, h0, c0 = factors[1:]
    state = [part.unsqueeze(0) for part in (h0, c0) if part is not None]
    given = Operands.of(factors[0], [Weights(*weights)], state, **steps)
    output, h_n, c_n, *_ = reference.layer(given, replace(spec, forward=forward), reverse)
    return output.to(dtype), h_n[0].to(dtype), None if c_n is None else c_n[0]


class _Factor(torch.autograd.Function):
    """A factor of a product as the tensor cores see it; its gradient is not concerned."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, rounded: Round) -> Tensor:
        return rounded(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Step(torch.autograd.Function):
    """A cell, forward from and to rounded values, backward from what was kept of them."""

    @staticmethod
    def forward(
        ctx: Any,
        gates_x: Tensor,
        gates_h: Tensor,
        h_prev: Tensor,
        c_prev: Tensor | None,
        spec: Cell,
        rounded: Round,
    ) -> tuple[Tensor, Tensor]:
        h, c, saved = spec.forward(rounded(gates_x), gates_h, h_prev, c_prev)
        h = rounded(h)
        kept = rounded(torch.cat(saved, dim=-1)) if saved else None
        ctx.save_for_backward(h, h_prev, None if c_prev is None else rounded(c_prev), kept)
        ctx.spec, ctx.rounded = spec, rounded
        return h, h.new_empty(0) if c is None else c

    @staticmethod
    def backward(ctx: Any, grad_h: Tensor, grad_c: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_gates_h, past, grad_c_prev = ctx.spec.backward(grad_h, grad_c, *ctx.saved_tensors)
        of_x, of_h = (ctx.rounded(torch.cat(grads, dim=-1)) for grads in (grad_x, grad_gates_h))
        return of_x, of_h, past, grad_c_prev, None, None
