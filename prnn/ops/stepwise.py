"""The `torch` backend of the operator: torch's own kernels, one time step after the other, without autograd.

Shapes: T time steps, B batch, H hidden size, P projected size (H without projection), G gates, S cell.saved_size.

Where ``reference`` lets autograd record every step, this saves only what the backward pass needs (``saved``
[T,B,S*H]; nothing when no gradient is wanted) and leaves the weight gradients to one GEMM after the loop.
Works on every device and dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prnn.ops import cells
from prnn.ops.gradients import SerialGradients
from prnn.ops.reference import compute_dtype, resets_within


def forward(
    gates_x: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    weight_hr: Tensor | None,
    cell: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """``reference.recurrence`` with the saved activations [T,B,S*H] (empty unless ``save``) as fourth result."""
    spec = cells.lookup(cell)
    dtype, compute = gates_x.dtype, compute_dtype(gates_x.dtype)
    T, B, _ = gates_x.shape
    hidden_size = weight_hh.shape[0] // spec.gates
    weight = weight_hh.to(compute).t()
    bias = None if bias_hh is None else bias_hh.to(compute)
    projection = None if weight_hr is None else weight_hr.to(compute).t()
    output = gates_x.new_empty((T, *h0.shape))
    saved = gates_x.new_empty(saved_shape(spec, T, B, hidden_size, save), dtype=compute)
    h, c = h0.to(compute), None if c0 is None else c0.to(compute)
    resets = resets_within(resets, lengths)
    for t in range(T):
        if resets is not None:
            reset = resets[t].unsqueeze(-1)
            h = h.masked_fill(reset, 0)
            c = None if c is None else c.masked_fill(reset, 0)
        alive = None if lengths is None else (lengths > t).unsqueeze(-1)
        gates_t = gates_x[t] if alive is None else gates_x[t].masked_fill(~alive, 0)
        gates_h = h @ weight if bias is None else torch.addmm(bias, h, weight)
        h_new, c_new, activations = spec.forward(gates_t.to(compute), gates_h, h, c)
        if activations is not None and save:
            saved[t] = activations
        if projection is not None:
            h_new = h_new @ projection
        if dtype != compute:
            h_new = h_new.to(dtype).to(compute)
        if alive is None:
            output[t] = h_new
            h, c = h_new, c_new
        else:
            output[t] = h_new.masked_fill(~alive, 0)
            h = torch.where(alive, h_new, h)
            c = None if c_new is None or c is None else torch.where(alive, c_new, c)
    c_n = None if c is None or c0 is None else c.to(c0.dtype)
    return output, h.to(dtype), c_n, saved


def one_step(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    h0: Tensor,
    cell: str,
) -> tuple[Tensor, Tensor]:
    """x [1,B,I], h0 [1,B,H] -> output and h_n, both [1,B,H], by torch's own layer under autograd: one call."""
    weights = [weight_ih, weight_hh]
    if bias_ih is not None or bias_hh is not None:  # torch's takes both or none
        weights += [weight_hh.new_zeros(weight_hh.shape[0]) if b is None else b for b in (bias_ih, bias_hh)]
    return _TORCH_LAYERS[cell](x, h0, weights, len(weights) == 4, 1, 0.0, True, False, False)


_TORCH_LAYERS = {"rnn_tanh": torch.rnn_tanh, "rnn_relu": torch.rnn_relu, "gru": torch.gru}


def saved_shape(spec: cells.Cell, T: int, B: int, hidden_size: int, save: bool) -> tuple[int, ...]:
    """Shape of the activations the `torch` backend keeps for its backward pass."""
    return (T, B, spec.saved_size * hidden_size) if save and spec.saved_size else (0,)


def backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    weight_hh: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    weight_hr: Tensor | None,
    output: Tensor,
    saved: Tensor,
    cell: str,
) -> SerialGradients:
    """The serial part of the backward pass: the gradients of the gates at each step and of the initial state."""
    spec = cells.lookup(cell)
    compute = compute_dtype(output.dtype)
    T, B, _ = output.shape
    weight = weight_hh.to(compute)
    projection = None if weight_hr is None else weight_hr.to(compute)
    hidden_size = weight_hh.shape[0] // spec.gates
    grad_gates_x = output.new_empty((T, B, weight_hh.shape[0]))
    grad_gates_h = torch.empty_like(grad_gates_x) if spec.splits_gates else grad_gates_x
    grad_projected = output.new_empty(output.shape) if projection is not None else None
    grad_h = torch.zeros_like(h0, dtype=compute) if grad_h_n is None else grad_h_n.to(compute, copy=True)
    grad_c = None
    if c0 is not None:
        grad_c = torch.zeros_like(c0, dtype=compute) if grad_c_n is None else grad_c_n.to(compute, copy=True)
    for t in reversed(range(T)):
        h_prev = (output[t - 1] if t else h0).to(compute)
        c_prev = None
        if c0 is not None:
            c_prev = saved[t - 1][:, -hidden_size:] if t else c0.to(compute)
        reset = None if resets is None else resets[t].unsqueeze(-1)
        if reset is not None:
            h_prev = h_prev.masked_fill(reset, 0)
            c_prev = None if c_prev is None else c_prev.masked_fill(reset, 0)
        grad_t = grad_h if grad_output is None else grad_h + grad_output[t]
        if grad_projected is not None and projection is not None:
            grad_projected[t] = grad_t
            grad_t = grad_t @ projection
        activations = saved[t] if spec.saved_size else None
        grad_x, grad_gates, grad_h_prev, grad_c_prev = spec.backward(
            grad_t, grad_c, output[t].to(compute), h_prev, c_prev, activations
        )
        if lengths is not None:
            dead = (lengths <= t).unsqueeze(-1)
            grad_x = grad_x.masked_fill(dead, 0)
            grad_gates = grad_gates.masked_fill(dead, 0)
            if grad_projected is not None:
                grad_projected[t].masked_fill_(dead, 0)
        grad_gates_x[t] = grad_x
        if spec.splits_gates:
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
    return SerialGradients(grad_gates_x, grad_gates_h, grad_projected, grad_h, grad_c)
