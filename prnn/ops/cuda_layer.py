"""A layer on a GPU: the recurrence in prnn's own kernels, and before and after it large products, which are torch's.

Shapes: T time steps, B batch, I input size, H hidden size, G gates, S saved; D directions.

These are the implementations for CUDA tensors of ``torch.ops.prnn_native.layer_forward`` and ``layer_backward``
(``native_layer`` has their derivatives and fake kernels). Both directions of a layer are one product and one launch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from prnn.ops import cells, gradients, native
from prnn.ops.backends import tf32


def forward(
    x: Tensor,
    weight_ih: Tensor | None,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    weight_ih_r: Tensor | None,
    weight_hh_r: Tensor | None,
    bias_ih_r: Tensor | None,
    bias_hh_r: Tensor | None,
    cell: int,
    reverse: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x [T,B,I] (without weight_ih: gates_x [T,B,G*H]) -> output [T,B,D*H], h_n, c_n [D,B,H], saved [D,T,B,S*H]."""
    gates_x = x
    if weight_ih is not None:
        gates_x = F.linear(x, _both(weight_ih, weight_ih_r), None if bias_ih is None else _both(bias_ih, bias_ih_r))
    return serial_forward(
        gates_x, weight_hh, bias_hh, h0, c0, lengths, resets, weight_hh_r, bias_hh_r, cell, reverse, save, tf32()
    )


def backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    x: Tensor,
    weight_ih: Tensor | None,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    weight_ih_r: Tensor | None,
    weight_hh_r: Tensor | None,
    bias_ih_r: Tensor | None,
    bias_hh_r: Tensor | None,
    output: Tensor,
    saved: Tensor,
    cell: int,
    reverse: bool,
    need_x: bool,
    need_weights: bool,
) -> list[Tensor]:
    """Gradients of x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0 and of the second direction's four weights; empty
    where there is no such operand, or its gradient is not wanted.
    """
    grad_gates_x, grad_gates_h, grad_h0, grad_c0 = serial_backward(
        grad_output, grad_h_n, grad_c_n, weight_hh, h0, c0, lengths, resets, weight_hh_r, output, saved, cell, reverse,
        tf32(),
    )  # fmt: skip
    if not cells.CELLS[native.cells()[cell]].splits_gates:
        grad_gates_h = grad_gates_x

    def absent() -> Tensor:  # a new one each: an operator's results share nothing
        return x.new_empty(0)

    grad_x = absent()
    if need_x:
        grad_x = grad_gates_x if weight_ih is None else grad_gates_x @ _both(weight_ih, weight_ih_r)
    found: list[list[Tensor]] = []
    rows, hidden_size = weight_hh.shape
    for direction, (w_ih, w_hh, b_ih, b_hh) in enumerate(
        ((weight_ih, weight_hh, bias_ih, bias_hh), (weight_ih_r, weight_hh_r, bias_ih_r, bias_hh_r))
    ):
        if w_hh is None or not need_weights:
            found.append([absent() for _ in range(4)])
            continue
        gates, units = slice(direction * rows, (direction + 1) * rows), direction * hidden_size
        of_x, of_h = grad_gates_x[..., gates], grad_gates_h[..., gates]
        states = output[..., units : units + hidden_size]
        found.append(
            [
                absent() if w_ih is None else of_x.flatten(0, 1).t() @ x.flatten(0, 1),
                gradients.weight_hh(of_h, states, h0[direction], resets, lengths, reverse or direction == 1),
                absent() if b_ih is None else of_x.sum((0, 1)),
                absent() if b_hh is None else of_h.sum((0, 1)),
            ]
        )
    return [grad_x, *found[0], grad_h0, grad_c0, *found[1]]


def serial_forward(*operands: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The kernels' forward pass (csrc/bindings_cuda.cpp)."""
    return torch.ops.prnn_native.cuda_recurrence_forward(*operands)


def serial_backward(*operands: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """grad_gates_x, grad_gates_h [T,B,D*G*H] (the latter empty where it is the former), grad_h0, grad_c0 (or empty)."""
    return torch.ops.prnn_native.cuda_recurrence_backward(*operands)


def _both(one: Tensor, other: Tensor | None) -> Tensor:
    return one if other is None else torch.cat((one, other))


def _implementation(function: Callable[..., Any]) -> Callable[..., Any]:
    """What is registered. The operands have been cast: a backward pass that is run within autocast must not cast its
    products again. Where an earlier kernel has lost the GPU, the error is that, whichever call notices.
    """

    @wraps(function)
    def run(*operands: Any) -> Any:
        try:
            with torch.autocast("cuda", enabled=False):
                return function(*operands)
        except RuntimeError as error:
            fault = native.cuda_fault()
            if fault is None:
                raise
            raise RuntimeError(fault) from error

    return run


if native.cuda_status()[0]:
    for kind in ("layer", "differentiable"):
        torch.library.impl(f"prnn_native::{kind}_forward", "CUDA", _implementation(forward))
        torch.library.impl(f"prnn_native::{kind}_backward", "CUDA", _implementation(backward))
