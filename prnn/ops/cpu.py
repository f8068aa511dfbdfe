"""Layers in one call of the native CPU kernels, one direction or both: ``torch.ops.prnn_native``.

``params`` are those that the kernel takes, ``Cell.derived``.

The kernels do the input's projection, the recurrence, and in the backward pass the weights' gradients as well
(csrc/bindings.cpp).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prnn import native
from prnn.cell_table import Cell
from prnn.ops.operands import Gradients, Incoming, Needs, Operands, Results, Saved
from prnn.ops.reuse import outputs

_RESULTS = len(Results._fields)


def forward(operands: Operands, cell: Cell, reverse: bool, save: bool) -> Results:
    (T, B, _), (D, _, H) = operands.x.shape, operands.h0.shape
    out = outputs.empty(operands.x, (T, B, D * H))
    output, h_n, c_n, saved, hidden = torch.ops.prnn_native.layer_forward.default(
        *native_operands(operands), _number(cell, operands), reverse, save, out
    )
    return Results(output if out is None else out, h_n, like_c0(c_n, operands.c0), saved, hidden)


def backward(
    incoming: Incoming, operands: Operands, results: Results, cell: Cell, reverse: bool, needs: Needs
) -> Gradients:
    grad_c_n = None if incoming.c_n is None else incoming.c_n.float()
    grad_x_out = outputs.empty(operands.x, tuple(operands.x.shape)) if needs.x else None
    grads = torch.ops.prnn_native.layer_backward.default(
        incoming.output, incoming.h_n, grad_c_n, *native_operands(operands), results.output, results.saved,
        results.auxiliary, _number(cell, operands), reverse, needs.x, needs.weights, needs.inputs, needs.params,
        grad_x_out,
    )  # fmt: skip
    return _gradients(grads, grad_x_out, operands)


def layers_forward(layers: Sequence[Operands], cell: Cell, save_from: int) -> list[Results]:
    """The layers of a stack, of one direction, at the same time where that is faster. The input of each but the first
    is the output of the one before, whatever its ``x`` is. A backward pass of layer ``save_from`` and those above it
    may follow.
    """
    (T, B, _), H, operands = layers[0].x.shape, layers[0].h0.shape[2], []
    for number, of_layer in enumerate(layers):
        x, *rest = native_operands(of_layer)
        operands += [None if number else x, *rest]
    out = outputs.empty(layers[0].x, (T, B, H))
    found = torch.ops.prnn_native.layers_forward.default(operands, _number(cell, layers[0]), save_from, out)
    if out is not None:
        found[-_RESULTS] = out
    results = [Results(*found[i : i + _RESULTS]) for i in range(0, len(found), _RESULTS)]
    return [each._replace(c_n=like_c0(each.c_n, of.c0)) for each, of in zip(results, layers, strict=True)]


def layers_backward(
    incoming: Sequence[Incoming],
    layers: Sequence[Operands],
    results: Sequence[Results],
    cell: Cell,
    needs: Sequence[Needs],
) -> list[Gradients]:
    """The backward pass of ``layers_forward``. Of the gradients of outputs only the last layer's is among ``incoming``,
    of those of inputs only the first layer's among the results, if its needs say so.
    """
    operands: list[Tensor | None] = []
    grads: list[Tensor | None] = []
    kept: list[Tensor | None] = []
    for of_layer, grad, result in zip(layers, incoming, results, strict=True):
        operands += native_operands(of_layer)
        grads += [grad.output, grad.h_n, None if grad.c_n is None else grad.c_n.float()]
        kept += [result.output, result.saved, result.auxiliary]
    x, flat = layers[0].x, [need for each in needs for need in each]
    out = outputs.empty(x, tuple(x.shape)) if needs[0].x else None
    found = torch.ops.prnn_native.layers_backward.default(grads, operands, kept, _number(cell, layers[0]), flat, out)
    each = len(found) // len(layers)
    return [
        _gradients(found[i * each : (i + 1) * each], None if i else out, of_layer) for i, of_layer in enumerate(layers)
    ]


def _gradients(grads: Sequence[Tensor | None], grad_x: Tensor | None, operands: Operands) -> Gradients:
    """From those of the native operator, and of x where the operator was given its memory."""
    x, w_ih, w_hh, b_ih, b_hh, params, h0, c0, inputs, w_ih_r, w_hh_r, b_ih_r, b_hh_r, params_r = grads
    x = x if grad_x is None else grad_x
    if inputs is not None and operands.inputs is not None:
        inputs = inputs.to(operands.inputs.dtype)
    return Gradients(
        x, w_ih, w_hh, b_ih, b_hh, None, params, w_ih_r, w_hh_r, b_ih_r, b_hh_r, None, params_r, h0,
        like_c0(c0, operands.c0), inputs,
    )  # fmt: skip


def _number(cell: Cell, operands: Operands) -> int:
    """The number of the cell's kernel."""
    number = cell.native_number(operands.x.dtype)
    return native.cell_id(cell.name) if number is None else number


def native_operands(o: Operands) -> tuple[Tensor | None, ...]:
    """In the order of the native operators."""
    c0, lengths, inputs = o.c0, o.lengths, o.inputs
    if lengths is not None or (c0 is not None and c0.dtype != torch.float32):
        c0, lengths = kernel_state(o)
    if inputs is not None:
        inputs = inputs.float()
    return (
        o.x, o.weight_ih, o.weight_hh, o.bias_ih, o.bias_hh, o.params, o.h0, c0, inputs, lengths, o.resets,
        o.weight_ih_reverse, o.weight_hh_reverse, o.bias_ih_reverse, o.bias_hh_reverse, o.params_reverse,
    )  # fmt: skip


def kernel_state(o: Operands) -> tuple[Tensor | None, Tensor | None]:
    """c0 and lengths in the dtypes of the kernels."""
    return None if o.c0 is None else o.c0.float(), None if o.lengths is None else o.lengths.to(torch.int64)


def like_c0(c: Tensor | None, c0: Tensor | None) -> Tensor | None:
    """A cell state, or its gradient, in the dtype of ``c0``; None for a cell without."""
    return None if c is None or c0 is None else c if c.dtype == c0.dtype else c.to(c0.dtype)


def like_saved(operands: Operands, cell: Cell, save: bool) -> Saved:
    """Uninitialised, of the shape of what the backward pass needs: [D,T,B,S*H]; and h, where the output is another."""
    x, (T, B, _), (D, _, H) = operands.x, operands.x.shape, operands.h0.shape
    sizes = cell.saved_sizes(x.dtype)
    saved = x.new_empty((D, T, B, sizes.saved * H) if save and sizes.saved else (0,), dtype=sizes.dtype or x.dtype)
    return saved, x.new_empty((T, B, D * H)) if save and sizes.hidden else None
