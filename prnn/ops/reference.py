"""The layer in plain, differentiable PyTorch: the reference implementation that every backend is compared with.

Shapes: T time steps, B batch, I input size, H hidden size, P projected size (H without projection), G gates,
D directions.

Low-precision inputs (bfloat16, float16) are computed in float32: the product accumulates in float32, the cell
state stays float32 through the sequence, and only h is rounded to the input's dtype after each step.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from prnn.cell_table import Cell
from prnn.ops.operands import Operands, Results, Weights


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of accumulation and cell state: float32 for the 16-bit types, else the same."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def layer(operands: Operands, cell: Cell, reverse: bool = False) -> Results:
    """All directions of a layer, differentiable to any order in every operand; ``reverse`` reverses a single one."""
    x, c0, lengths, resets = operands.x, operands.c0, operands.lengths, operands.resets
    outputs, h_n, c_n = [], [], []
    for d, weights in enumerate(operands.weights):
        flip = reverse or d == 1
        x_d, resets_d = (reverse_steps(x, lengths), reverse_resets(resets, lengths)) if flip else (x, resets)
        gates_x = input_gates(x_d, weights)
        state = operands.h0[d], None if c0 is None else c0[d]
        output, h, c = _recurrence(gates_x, weights, state, lengths, resets_d, cell)
        outputs.append(reverse_steps(output, lengths) if flip else output)
        h_n.append(h)
        c_n.append(c)
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
    return Results(output, torch.stack(h_n), torch.stack([c for c in c_n if c is not None]) if cell.has_c else None)


def input_gates(x: Tensor, weights: Weights) -> Tensor:
    """The input projection [T,B,G*H]; x itself without ``weight_ih``."""
    return x if weights.weight_ih is None else F.linear(x, weights.weight_ih, weights.bias_ih)


def _recurrence(
    gates_x: Tensor,
    weights: Weights,
    state: tuple[Tensor, Tensor | None],
    lengths: Tensor | None,
    resets: Tensor | None,
    cell: Cell,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """h_t, c_t = cell(gates_x[t], h_{t-1} weight_hh^T + bias_hh, h_{t-1}, c_{t-1}), then h_t weight_hr^T if given.

    Steps at or past a sample's length leave its state unchanged and give zero output. ``resets[t, b]`` zeroes the
    state of sample b before step t.
    """
    dtype, compute = gates_x.dtype, compute_dtype(gates_x.dtype)
    weight = weights.weight_hh.to(compute).t()
    bias = None if weights.bias_hh is None else weights.bias_hh.to(compute)
    projection = None if weights.weight_hr is None else weights.weight_hr.to(compute).t()
    h0, c0 = state
    h, c = h0, None if c0 is None else c0.to(compute)
    resets = resets_within(resets, lengths)
    outputs = []
    for t in range(gates_x.shape[0]):
        if resets is not None:
            reset = resets[t].unsqueeze(-1)
            h, c = h.masked_fill(reset, 0), None if c is None else c.masked_fill(reset, 0)
        valid = None if lengths is None else (lengths > t).unsqueeze(-1)
        # The padding may contain NaN; without the mask its gradient would be 0 * NaN.
        gates_t = gates_x[t] if valid is None else gates_x[t].masked_fill(~valid, 0)
        gates_h = h.to(compute) @ weight
        if bias is not None:
            gates_h = gates_h + bias
        h_new, c_new, _ = cell.forward(gates_t.to(compute), gates_h, h.to(compute), c)
        if projection is not None:
            h_new = h_new @ projection
        h_new = h_new.to(dtype)
        if valid is None:
            outputs.append(h_new)
            h, c = h_new, c_new
        else:
            outputs.append(torch.where(valid, h_new, torch.zeros_like(h_new)))
            h = torch.where(valid, h_new, h)
            c = None if c_new is None or c is None else torch.where(valid, c_new, c)
    output = torch.stack(outputs) if outputs else gates_x.new_zeros((0, *h0.shape))
    return output, h, None if c is None or c0 is None else c.to(c0.dtype)


def resets_within(resets: Tensor | None, lengths: Tensor | None) -> Tensor | None:
    """Resets [T,B] without those past a sample's length, where its state is unchanged."""
    if resets is None or lengths is None:
        return resets
    return resets & (torch.arange(resets.shape[0], device=resets.device).unsqueeze(-1) < lengths)


def reverse_steps(x: Tensor, lengths: Tensor | None) -> Tensor:
    """x [T,B,*] with each sample's valid steps reversed and its padding in place. An involution."""
    if lengths is None:
        return x.flip(0)
    t = torch.arange(x.shape[0], device=x.device).unsqueeze(-1)
    lengths = lengths.clamp(0, x.shape[0])  # the values are unchecked, and an index must not exceed T
    index = torch.where(t < lengths, lengths - 1 - t, t)
    return x.gather(0, index.reshape(*index.shape, *(1,) * (x.dim() - 2)).expand_as(x))


def reverse_resets(resets: Tensor | None, lengths: Tensor | None) -> Tensor | None:
    """Resets [T,B] for the reversed sequence, in which the boundary before step t lies after step t."""
    if resets is None:
        return None
    shifted = torch.cat((resets[1:], resets.new_zeros((1, resets.shape[1]))))
    flipped = reverse_steps(shifted, lengths)
    return torch.cat((flipped.new_zeros((1, flipped.shape[1])), flipped[1:]))
