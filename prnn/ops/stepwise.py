"""A loop over time steps with torch's own kernels, without autograd: any device, dtype and cell.

Shapes: T time steps, B batch, H hidden size, P projected size (H without projection), G gates, S cell.saved. One
direction.

Where ``reference`` records every step for autograd, this saves only what the backward pass needs (``saved``
[T,B,S*H]; nothing when no gradient is required) and computes the weight gradients by one matrix product after the loop.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from prnn.cell_table import Cell
from prnn.ops import gradients
from prnn.ops.operands import Gradients, Incoming, Needs, Operands, Results
from prnn.ops.reference import compute_dtype, input_gates, resets_within, reverse_resets, reverse_steps


def forward(operands: Operands, cell: Cell, reverse: bool, save: bool) -> Results:
    """As ``reference.layer``; the saved activations are [T,B,S*H], empty unless ``save``."""
    lengths, (weights,) = operands.lengths, operands.weights
    x, resets = _in_order(operands, reverse)
    gates_x = input_gates(x, weights)
    dtype, compute = gates_x.dtype, compute_dtype(gates_x.dtype)
    weight = weights.weight_hh.to(compute).t()
    bias = None if weights.bias_hh is None else weights.bias_hh.to(compute)
    projection = None if weights.weight_hr is None else weights.weight_hr.to(compute).t()
    h0, c0 = operands.h0[0], None if operands.c0 is None else operands.c0[0]
    h, c = h0.to(compute), None if c0 is None else c0.to(compute)
    output, saved = gates_x.new_empty((len(gates_x), *h0.shape)), like_saved(operands, cell, save)
    resets = resets_within(resets, lengths)
    for t in range(len(gates_x)):
        if resets is not None:
            reset = resets[t].unsqueeze(-1)
            h = h.masked_fill(reset, 0)
            c = None if c is None else c.masked_fill(reset, 0)
        valid = None if lengths is None else (lengths > t).unsqueeze(-1)
        gates_t = gates_x[t] if valid is None else gates_x[t].masked_fill(~valid, 0)
        gates_h = h @ weight if bias is None else torch.addmm(bias, h, weight)
        h_new, c_new, activations = cell.forward(gates_t.to(compute), gates_h, h, c)
        if activations and save:
            torch.cat(activations, dim=-1, out=saved[t])
        if projection is not None:
            h_new = h_new @ projection
        if dtype != compute:
            h_new = h_new.to(dtype).to(compute)
        if valid is None:
            output[t] = h_new
            h, c = h_new, c_new
        else:
            output[t] = h_new.masked_fill(~valid, 0)
            h = torch.where(valid, h_new, h)
            c = None if c_new is None or c is None else torch.where(valid, c_new, c)
    # An operator's results alias neither its operands (T = 0) nor each other.
    h_n = h.to(dtype, copy=True).unsqueeze(0)
    c_n = None if c is None or c0 is None else c.to(c0.dtype, copy=True).unsqueeze(0)
    return Results(reverse_steps(output, lengths) if reverse else output, h_n, c_n, saved)


def like_saved(operands: Operands, cell: Cell, save: bool) -> Tensor:
    """An uninitialised tensor for the activations that the backward pass needs."""
    x, (T, B, _) = operands.x, operands.x.shape
    size = cell.saved * (operands.weight_hh.shape[0] // cell.gates)
    return x.new_empty((T, B, size) if save and cell.saved else (0,), dtype=compute_dtype(x.dtype))


def backward(
    incoming: Incoming, operands: Operands, results: Results, cell: Cell, reverse: bool, needs: Needs
) -> Gradients:
    """The serial part, followed by the matmuls over all steps."""
    lengths, (weights,), (x, resets) = operands.lengths, operands.weights, _in_order(operands, reverse)
    sequences = gradients.Sequences(x, results.output, operands.h0[0], lengths, resets)
    grad_output = incoming.output
    if reverse:
        sequences = sequences._replace(output=reverse_steps(sequences.output, lengths))
        grad_output = None if grad_output is None else reverse_steps(grad_output, lengths)
    serial = _serial(incoming._replace(output=grad_output), operands, sequences, results.saved, cell)
    grad_x = None
    if needs.x:
        grad_x = serial.gates_x if weights.weight_ih is None else serial.gates_x @ weights.weight_ih
        grad_x = reverse_steps(grad_x, lengths) if reverse else grad_x
    grad_c0 = None if operands.c0 is None or serial.c0 is None else serial.c0.to(operands.c0.dtype).unsqueeze(0)
    grads = Gradients(grad_x, h0=serial.h0.to(operands.h0.dtype).unsqueeze(0), c0=grad_c0)
    if needs.weights:
        grads = grads._replace(**gradients.of_weights(serial.gates_x, serial.gates_h, weights, sequences)._asdict())
        if weights.weight_hr is not None and serial.projected is not None:
            grads = grads._replace(weight_hr=_weight_hr(serial.projected, results.saved, weights.weight_hr))
    return grads


class _Serial(NamedTuple):
    """The gradients computed step by step, from the last to the first; steps past a sample's length hold zeros."""

    gates_x: Tensor  # [T,B,G*H]
    gates_h: Tensor  # [T,B,G*H]; the same tensor where the cell adds the two
    projected: Tensor | None  # [T,B,P], the gradient of the projected output
    h0: Tensor  # [B,P]
    c0: Tensor | None  # [B,H]


def _serial(
    incoming: Incoming, operands: Operands, sequences: gradients.Sequences, saved: Tensor | None, cell: Cell
) -> _Serial:
    output, h0, lengths, resets = sequences.output, sequences.h0, sequences.lengths, sequences.resets
    compute = compute_dtype(output.dtype)
    weight = operands.weight_hh.to(compute)
    projection = None if operands.weight_hr is None else operands.weight_hr.to(compute)
    H, c0 = weight.shape[0] // cell.gates, None if operands.c0 is None else operands.c0[0]
    grad_gates_x = output.new_empty((*output.shape[:2], weight.shape[0]))
    grad_gates_h = torch.empty_like(grad_gates_x) if cell.splits_gates else grad_gates_x
    grad_projected = output.new_empty(output.shape) if projection is not None else None
    grad_h, grad_c = _grad_of_state(incoming.h_n, h0), None if c0 is None else _grad_of_state(incoming.c_n, c0)
    for t in reversed(range(len(output))):
        h_prev, c_prev = (output[t - 1] if t else h0).to(compute), None
        if c0 is not None and saved is not None:
            c_prev = saved[t - 1][:, -H:] if t else c0.to(compute)
        reset = None if resets is None else resets[t].unsqueeze(-1)
        if reset is not None:
            h_prev = h_prev.masked_fill(reset, 0)
            c_prev = None if c_prev is None else c_prev.masked_fill(reset, 0)
        grad_t = grad_h if incoming.output is None else grad_h + incoming.output[t]
        if grad_projected is not None and projection is not None:
            grad_projected[t] = grad_t
            grad_t = grad_t @ projection
        activations = saved[t] if cell.saved and saved is not None else None
        of_x, of_h, grad_h_prev, grad_c_prev = cell.backward(
            grad_t, grad_c, output[t].to(compute), h_prev, c_prev, activations
        )
        grad_x = torch.cat(of_x, dim=-1) if len(of_x) > 1 else of_x[0]
        grad_gates = torch.cat(of_h, dim=-1) if cell.splits_gates else grad_x
        if lengths is not None:
            padding = (lengths <= t).unsqueeze(-1)
            grad_x, grad_gates = grad_x.masked_fill(padding, 0), grad_gates.masked_fill(padding, 0)
            if grad_projected is not None:
                grad_projected[t].masked_fill_(padding, 0)
        grad_gates_x[t] = grad_x
        if cell.splits_gates:
            grad_gates_h[t] = grad_gates
        through_matmul = grad_gates @ weight
        grad_h_prev = through_matmul if grad_h_prev is None else grad_h_prev + through_matmul
        if reset is not None:
            grad_h_prev = grad_h_prev.masked_fill(reset, 0)
            grad_c_prev = None if grad_c_prev is None else grad_c_prev.masked_fill(reset, 0)
        if lengths is not None:
            grad_h_prev = torch.where(padding, grad_h, grad_h_prev)
            grad_c_prev = None if grad_c_prev is None or grad_c is None else torch.where(padding, grad_c, grad_c_prev)
        grad_h, grad_c = grad_h_prev, grad_c_prev
    return _Serial(grad_gates_x, grad_gates_h, grad_projected, grad_h, grad_c)


def _in_order(operands: Operands, reverse: bool) -> tuple[Tensor, Tensor | None]:
    """x and resets in the order of the recurrence."""
    x, lengths, resets = operands.x, operands.lengths, operands.resets
    return (reverse_steps(x, lengths), reverse_resets(resets, lengths)) if reverse else (x, resets)


def _grad_of_state(grad: Tensor | None, state: Tensor) -> Tensor:
    """The loop's initial gradient, that of the final ``state`` [B,*]; a copy."""
    compute = compute_dtype(state.dtype)
    return torch.zeros_like(state, dtype=compute) if grad is None else grad[0].to(compute, copy=True)


def _weight_hr(projected: Tensor, saved: Tensor | None, weight_hr: Tensor) -> Tensor:
    """sum_t projected[t]^T (o_t tanh(c_t)): projected [T,B,P], saved [T,B,5H] of the LSTM -> [P,H]."""
    assert saved is not None
    o, c = saved.split(weight_hr.shape[1], dim=-1)[3:]
    unprojected = (o * torch.tanh(c)).to(projected.dtype)
    return projected.flatten(0, 1).t() @ unprojected.flatten(0, 1)
