"""One time step after the other with torch's own kernels, without autograd: any device, dtype and cell.

Shapes: T time steps, B batch, H hidden size, P projected size (H without projection), G gates, S cell.saved. One
direction.

Where ``reference`` lets autograd record every step, this saves only what the backward pass needs (nothing when no
gradient is wanted) and leaves the weight gradients to one matrix product after the loop. ``saved`` is [T,B,S*H], c
last in a cell that has c; with a projection [T,B,H+S*H], the h it is given first.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from prnn.cell_table import Cell
from prnn.ops import gradients
from prnn.ops.operands import Gradients, Incoming, Needs, Operands, Results
from prnn.ops.reference import compute_dtype, in_order, reverse_steps, steps


def forward(operands: Operands, cell: Cell, reverse: bool, save: bool) -> Results:
    """As ``reference.layer``; the saved activations are empty unless ``save``."""
    saved, _ = like_saved(operands, cell, save)
    output = operands.x.new_empty((len(operands.x), *operands.h0.shape[1:]))

    def product(h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return h @ weight if bias is None else torch.addmm(bias, h, weight)

    def emit(t: int, output_t: Tensor, activations: tuple[Tensor, ...]) -> None:
        output[t] = output_t
        if activations and save:
            torch.cat(activations, dim=-1, out=saved[t])

    h, states = steps(operands, 0, cell, reverse, product, emit)
    # An operator's results alias neither its operands (T = 0) nor each other.
    h_n, c_n = h.unsqueeze(0).clone(), states[0].unsqueeze(0).clone() if states else None
    return Results(reverse_steps(output, operands.lengths) if reverse else output, h_n, c_n, saved)


def like_saved(operands: Operands, cell: Cell, save: bool) -> tuple[Tensor, None]:
    """Uninitialised, of the shape of what the backward pass needs: where there is a projection, what it was given, and
    what the cell saved.
    """
    x, (T, B, _) = operands.x, operands.x.shape
    parts, H = cell.saved + (operands.weight_hr is not None), operands.weight_hh.shape[0] // cell.gates
    return x.new_empty((T, B, parts * H) if save and parts else (0,), dtype=compute_dtype(x.dtype)), None


def backward(
    incoming: Incoming, operands: Operands, results: Results, cell: Cell, reverse: bool, needs: Needs
) -> Gradients:
    """The serial part, then the products over all steps."""
    lengths, (weights,), (x, resets) = operands.lengths, operands.weights, in_order(operands, reverse)
    run = gradients.Sequences(x, results.output, operands.h0[0], lengths, resets)
    grad_output = incoming.output
    if reverse:
        run = run._replace(output=reverse_steps(run.output, lengths))
        grad_output = None if grad_output is None else reverse_steps(grad_output, lengths)
    serial = _serial(incoming._replace(output=grad_output), operands, run, results.saved, cell)
    grad_x = None
    if needs.x:
        grad_x = serial.gates_x if weights.weight_ih is None else serial.gates_x @ weights.weight_ih
        grad_x = reverse_steps(grad_x, lengths) if reverse else grad_x
    grad_c0 = None if operands.c0 is None or serial.c0 is None else serial.c0.to(operands.c0.dtype).unsqueeze(0)
    grads = Gradients(grad_x, h0=serial.h0.to(operands.h0.dtype).unsqueeze(0), c0=grad_c0)
    if needs.weights:
        grads = grads._replace(**gradients.of_weights(serial.gates_x, serial.gates_h, weights, run)._asdict())
        if weights.weight_hr is not None and serial.projected is not None:
            assert results.saved is not None
            unprojected = results.saved[..., : weights.weight_hr.shape[1]].to(serial.projected.dtype)
            weight_hr = serial.projected.flatten(0, 1).t() @ unprojected.flatten(0, 1)
            grads = grads._replace(weight_hr=weight_hr)
    return grads


class _Serial(NamedTuple):
    """What is computed step by step, from the last step to the first; steps past a sample's length hold zeros."""

    gates_x: Tensor  # [T,B,G*H]
    gates_h: Tensor  # [T,B,G*H]; the same tensor where the cell adds the two
    projected: Tensor | None  # [T,B,P], the gradient of the projected output
    h0: Tensor  # [B,P]
    c0: Tensor | None  # [B,H]


def _serial(
    incoming: Incoming, operands: Operands, run: gradients.Sequences, saved: Tensor | None, cell: Cell
) -> _Serial:
    output, h0, lengths, resets = run.output, run.h0, run.lengths, run.resets
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
        activations = saved[t][:, -cell.saved * H :] if cell.saved and saved is not None else None
        assert cell.backward is not None
        of_x, of_h, grad_h_prev, grad_c_prev = cell.backward(
            grad_t, grad_c, output[t].to(compute), h_prev, c_prev, activations
        )
        grad_x = torch.cat(of_x, dim=-1) if len(of_x) > 1 else of_x[0]
        grad_gates = torch.cat(of_h, dim=-1) if cell.splits_gates else grad_x
        if lengths is not None:
            dead = (lengths <= t).unsqueeze(-1)
            grad_x, grad_gates = grad_x.masked_fill(dead, 0), grad_gates.masked_fill(dead, 0)
            if grad_projected is not None:
                grad_projected[t].masked_fill_(dead, 0)
        grad_gates_x[t] = grad_x
        if cell.splits_gates:
            grad_gates_h[t] = grad_gates
        through_matmul = grad_gates @ weight
        grad_h_prev = through_matmul if grad_h_prev is None else grad_h_prev + through_matmul
        if reset is not None:
            grad_h_prev = grad_h_prev.masked_fill(reset, 0)
            grad_c_prev = None if grad_c_prev is None else grad_c_prev.masked_fill(reset, 0)
        if lengths is not None:
            grad_h_prev = torch.where(dead, grad_h, grad_h_prev)
            grad_c_prev = None if grad_c_prev is None or grad_c is None else torch.where(dead, grad_c, grad_c_prev)
        grad_h, grad_c = grad_h_prev, grad_c_prev
    return _Serial(grad_gates_x, grad_gates_h, grad_projected, grad_h, grad_c)


def _grad_of_state(grad: Tensor | None, state: Tensor) -> Tensor:
    """The gradient the loop begins with, of the last ``state`` [B,*]; its own copy."""
    compute = compute_dtype(state.dtype)
    return torch.zeros_like(state, dtype=compute) if grad is None else grad[0].to(compute, copy=True)
