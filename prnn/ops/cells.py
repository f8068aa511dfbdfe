"""The cells: names, sizes, equations and their derivatives.

Shapes: B batch, H hidden size, G gates (RNN 1, GRU 3, LSTM 4). Gate order and equations are torch.nn's.

A cell is pointwise: the matrix product ``gates_h = h_{t-1} weight_hh^T + bias_hh`` happens outside. ``forward`` is
written in differentiable torch operations and is the definition of right; ``backward`` is its derivative by
hand, used where a backend steps through time itself. Adding a cell means adding one entry to ``CELLS`` (and one
struct to ``csrc/cells.h`` and one row to ``csrc/cell_table.h`` for the native kernels).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# (gates_x [B,G*H], gates_h [B,G*H], h_prev [B,H], c_prev [B,H] | None)
#   -> (h [B,H], c [B,H] | None, saved [B,S*H] | None)
Forward = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor | None, Tensor | None]]
# (grad_h [B,H], grad_c [B,H] | None, h [B,H], h_prev, c_prev, saved [B,S*H] | None)
#   -> (grad_gates_x [B,G*H], grad_gates_h [B,G*H], grad_h_prev [B,H] | None (the path past the matmul), grad_c_prev)
Backward = Callable[
    [Tensor, Tensor | None, Tensor, Tensor, Tensor | None, Tensor | None],
    tuple[Tensor, Tensor, Tensor | None, Tensor | None],
]


@dataclass(frozen=True)
class Cell:
    """One recurrent cell.

    ``saved_size`` is S: what ``backward`` needs besides the output, in units of H per sample and step.
    ``torch_mode`` is the cell's number in ATen's RNN functions (cuDNN's enumeration), for those alone.
    ``splits_gates`` says that gates_x and gates_h have different gradients (GRU's reset acts on one of them).
    """

    name: str
    gates: int
    has_c: bool
    saved_size: int
    torch_mode: int
    splits_gates: bool
    forward: Forward
    backward: Backward


def _rnn_tanh_forward(
    gates_x: Tensor, gates_h: Tensor, h_prev: Tensor, c_prev: Tensor | None
) -> tuple[Tensor, None, None]:
    return torch.tanh(gates_x + gates_h), None, None


def _rnn_tanh_backward(
    grad_h: Tensor, grad_c: Tensor | None, h: Tensor, h_prev: Tensor, c_prev: Tensor | None, saved: Tensor | None
) -> tuple[Tensor, Tensor, None, None]:
    grad = grad_h * (1 - h * h)
    return grad, grad, None, None


def _rnn_relu_forward(
    gates_x: Tensor, gates_h: Tensor, h_prev: Tensor, c_prev: Tensor | None
) -> tuple[Tensor, None, None]:
    return torch.relu(gates_x + gates_h), None, None


def _rnn_relu_backward(
    grad_h: Tensor, grad_c: Tensor | None, h: Tensor, h_prev: Tensor, c_prev: Tensor | None, saved: Tensor | None
) -> tuple[Tensor, Tensor, None, None]:
    grad = grad_h.masked_fill(h <= 0, 0)  # where h is NaN the gradient passes, as autograd has it
    return grad, grad, None, None


def _gru_forward(
    gates_x: Tensor, gates_h: Tensor, h_prev: Tensor, c_prev: Tensor | None
) -> tuple[Tensor, None, Tensor]:
    """r, z = sigmoid(x + h); n = tanh(x_n + r * h_n), the reset after the matmul; h = (1 - z) n + z h_prev."""
    r_x, z_x, n_x = gates_x.chunk(3, dim=-1)
    r_h, z_h, n_h = gates_h.chunk(3, dim=-1)
    r = torch.sigmoid(r_x + r_h)
    z = torch.sigmoid(z_x + z_h)
    n = torch.tanh(n_x + r * n_h)
    return n + z * (h_prev - n), None, torch.cat((r, z, n, n_h), dim=-1)


def _gru_backward(
    grad_h: Tensor, grad_c: Tensor | None, h: Tensor, h_prev: Tensor, c_prev: Tensor | None, saved: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, None]:
    assert saved is not None
    r, z, n, n_h = saved.chunk(4, dim=-1)
    grad_n = grad_h * (1 - z) * (1 - n * n)
    grad_z = grad_h * (h_prev - n) * z * (1 - z)
    grad_r = grad_n * n_h * r * (1 - r)
    grad_gates_x = torch.cat((grad_r, grad_z, grad_n), dim=-1)
    grad_gates_h = torch.cat((grad_r, grad_z, grad_n * r), dim=-1)
    return grad_gates_x, grad_gates_h, grad_h * z, None


def _lstm_forward(
    gates_x: Tensor, gates_h: Tensor, h_prev: Tensor, c_prev: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """i, f, o = sigmoid; g = tanh; c = f c_prev + i g; h = o tanh(c)."""
    assert c_prev is not None
    i, f, g, o = (gates_x + gates_h).chunk(4, dim=-1)
    i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
    c = f * c_prev + i * g
    return o * torch.tanh(c), c, torch.cat((i, f, g, o, c), dim=-1)


def _lstm_backward(
    grad_h: Tensor, grad_c: Tensor | None, h: Tensor, h_prev: Tensor, c_prev: Tensor | None, saved: Tensor | None
) -> tuple[Tensor, Tensor, None, Tensor]:
    assert saved is not None and grad_c is not None and c_prev is not None
    i, f, g, o, c = saved.chunk(5, dim=-1)
    tanh_c = torch.tanh(c)
    grad_c = grad_c + grad_h * o * (1 - tanh_c * tanh_c)
    grad_gates = torch.cat(
        (
            grad_c * g * i * (1 - i),
            grad_c * c_prev * f * (1 - f),
            grad_c * i * (1 - g * g),
            grad_h * tanh_c * o * (1 - o),
        ),
        dim=-1,
    )
    return grad_gates, grad_gates, None, grad_c * f


CELLS: dict[str, Cell] = {
    cell.name: cell
    for cell in (
        Cell("rnn_relu", 1, False, 0, 0, False, _rnn_relu_forward, _rnn_relu_backward),
        Cell("rnn_tanh", 1, False, 0, 1, False, _rnn_tanh_forward, _rnn_tanh_backward),
        Cell("gru", 3, False, 4, 3, True, _gru_forward, _gru_backward),
        Cell("lstm", 4, True, 5, 2, False, _lstm_forward, _lstm_backward),
    )
}


def lookup(name: str) -> Cell:
    """The cell called ``name``; ValueError with the known names otherwise."""
    if name not in CELLS:
        raise ValueError(f"unknown cell {name!r}: expected one of {', '.join(CELLS)}")
    return CELLS[name]
