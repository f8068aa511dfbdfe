"""Layers in one call of the native CPU kernels, one direction or both: ``torch.ops.prnn_native``.

The kernels do the input's projection, the recurrence, and in the backward pass the weights' gradients as well
(csrc/bindings.cpp).
"""

from __future__ import annotations

import torch
from torch import Tensor

from prnn import native
from prnn.cell_table import Cell
from prnn.ops.operands import Gradients, Incoming, Needs, Operands, Results, Saved


def forward(operands: Operands, cell: Cell, reverse: bool, save: bool) -> Results:
    arguments = native_operands(operands)
    output, h_n, c_n, saved = torch.ops.prnn_native.layer_forward.default(
        *arguments, native.cell_id(cell.name), reverse, save
    )
    return Results(output, h_n, like_c0(c_n, operands.c0), saved)


def backward(
    incoming: Incoming, operands: Operands, results: Results, cell: Cell, reverse: bool, needs: Needs
) -> Gradients:
    grad_c_n = None if incoming.c_n is None else incoming.c_n.float()
    grads = torch.ops.prnn_native.layer_backward.default(
        incoming.output, incoming.h_n, grad_c_n, *native_operands(operands), results.output, results.saved,
        native.cell_id(cell.name), reverse, needs.x, needs.weights,
    )  # fmt: skip
    x, w_ih, w_hh, b_ih, b_hh, h0, c0, *reverse_weights = grads
    return Gradients._make((x, w_ih, w_hh, b_ih, b_hh, None, *reverse_weights, None, h0, like_c0(c0, operands.c0)))


def native_operands(o: Operands) -> tuple[Tensor | None, ...]:
    """In the order of the native operators."""
    c0, lengths = o.c0, o.lengths
    if lengths is not None or (c0 is not None and c0.dtype != torch.float32):
        c0, lengths = kernel_state(o)
    return (
        o.x, o.weight_ih, o.weight_hh, o.bias_ih, o.bias_hh, o.h0, c0, lengths, o.resets,
        o.weight_ih_reverse, o.weight_hh_reverse, o.bias_ih_reverse, o.bias_hh_reverse,
    )  # fmt: skip


def kernel_state(o: Operands) -> tuple[Tensor | None, Tensor | None]:
    """c0 and lengths in the dtypes of the kernels."""
    return None if o.c0 is None else o.c0.float(), None if o.lengths is None else o.lengths.to(torch.int64)


def like_c0(c: Tensor | None, c0: Tensor | None) -> Tensor | None:
    """A cell state, or its gradient, in the dtype of ``c0``; None for a cell without."""
    return None if c is None or c0 is None else c if c.dtype == c0.dtype else c.to(c0.dtype)


def like_saved(operands: Operands, cell: Cell, save: bool) -> Saved:
    """Uninitialised, of the shape of what the backward pass needs: [D,T,B,S*H]."""
    x, (T, B, _), (D, _, H) = operands.x, operands.x.shape, operands.h0.shape
    return x.new_empty((D, T, B, cell.saved * H) if save and cell.saved else (0,)), None
