"""A layer by the reference equations, with every option: what the kernels compute, differentiable to any order.

Shapes: T time steps, B batch, I input size, H hidden size, G gates.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from prnn.ops import reference


def layer(
    x: Tensor,
    weight_ih: Tensor | None,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    *,
    cell: str,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """x [T,B,I] (without weight_ih: the input's gates [T,B,G*H]) -> output [T,B,H], h_n [B,H], c_n [B,H] or None."""
    if reverse:
        x, resets = reverse_steps(x, lengths), reverse_resets(resets, lengths)
    gates_x = x if weight_ih is None else F.linear(x, weight_ih, bias_ih)
    output, h_n, c_n = reference.recurrence(gates_x, weight_hh, bias_hh, h0, c0, lengths, resets, None, cell)
    return reverse_steps(output, lengths) if reverse else output, h_n, c_n


def reverse_steps(x: Tensor, lengths: Tensor | None) -> Tensor:
    """x [T,B,*] with each sample's valid steps in reverse order; its padding stays where it is. Its own inverse."""
    if lengths is None:
        return x.flip(0)
    t = torch.arange(x.shape[0], device=x.device).unsqueeze(-1)
    lengths = lengths.clamp(0, x.shape[0])  # nobody has looked at their values, and an index must not be beyond T
    index = torch.where(t < lengths, lengths - 1 - t, t)
    return x.gather(0, index.reshape(*index.shape, *(1,) * (x.dim() - 2)).expand_as(x))


def reverse_resets(resets: Tensor | None, lengths: Tensor | None) -> Tensor | None:
    """Resets [T,B] for the reversed sequence: the boundary before step t lies after step t from that side."""
    if resets is None:
        return None
    shifted = torch.cat((resets[1:], resets.new_zeros((1, resets.shape[1]))))
    backwards = reverse_steps(shifted, lengths)
    return torch.cat((backwards.new_zeros((1, backwards.shape[1])), backwards[1:]))
