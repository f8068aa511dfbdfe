"""The recurrence in plain, differentiable PyTorch: the definition of right for every backend.

Shapes: T time steps, B batch, H hidden size, P projected size (H without projection), G gates.

Low-precision inputs (bfloat16, float16) are computed in float32: the product accumulates in float32, the cell
state stays float32 through the sequence, and only h is rounded to the input's dtype after each step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prnn.ops import cells


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of accumulation and cell state: float32 for the 16-bit types, else the same."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def recurrence(
    gates_x: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    weight_hr: Tensor | None,
    cell: str,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """h_t, c_t = cell(gates_x[t], h_{t-1} weight_hh^T + bias_hh, h_{t-1}, c_{t-1}), then h_t weight_hr^T if given.

    gates_x [T,B,G*H], weight_hh [G*H,P], bias_hh [G*H], h0 [B,P], c0 [B,H], lengths [B] integers, resets [T,B]
    booleans, weight_hr [P,H] -> output [T,B,P], h_n [B,P], c_n [B,H] (None for cells without c).
    Steps at or past a sample's length leave its state alone and give zero output. ``resets[t, b]`` zeroes the
    state of sample b before step t.
    """
    step = cells.lookup(cell).forward
    dtype, compute = gates_x.dtype, compute_dtype(gates_x.dtype)
    weight = weight_hh.to(compute).t()
    bias = None if bias_hh is None else bias_hh.to(compute)
    projection = None if weight_hr is None else weight_hr.to(compute).t()
    h, c = h0, None if c0 is None else c0.to(compute)
    resets = resets_within(resets, lengths)
    outputs = []
    for t in range(gates_x.shape[0]):
        if resets is not None:
            reset = resets[t].unsqueeze(-1)
            h, c = h.masked_fill(reset, 0), None if c is None else c.masked_fill(reset, 0)
        alive = None if lengths is None else (lengths > t).unsqueeze(-1)
        # What stands in the padding may be NaN; without the mask its gradient would be 0 * NaN.
        gates_t = gates_x[t] if alive is None else gates_x[t].masked_fill(~alive, 0)
        gates_h = h.to(compute) @ weight
        if bias is not None:
            gates_h = gates_h + bias
        h_new, c_new, _ = step(gates_t.to(compute), gates_h, h.to(compute), c)
        if projection is not None:
            h_new = h_new @ projection
        h_new = h_new.to(dtype)
        if alive is None:
            outputs.append(h_new)
            h, c = h_new, c_new
        else:
            outputs.append(torch.where(alive, h_new, torch.zeros_like(h_new)))
            h = torch.where(alive, h_new, h)
            c = None if c_new is None or c is None else torch.where(alive, c_new, c)
    output = torch.stack(outputs) if outputs else gates_x.new_zeros((0, *h0.shape))
    return output, h, None if c is None or c0 is None else c.to(c0.dtype)


def resets_within(resets: Tensor | None, lengths: Tensor | None) -> Tensor | None:
    """Resets [T,B] without those past a sample's length, where its state is left alone."""
    if resets is None or lengths is None:
        return resets
    return resets & (torch.arange(resets.shape[0], device=resets.device).unsqueeze(-1) < lengths)
