"""The cells: names, sizes, equations and their derivatives, and their names in vendor libraries.

Shapes: B batch, H hidden size, G gates (RNN 1, GRU 3, LSTM 4). Gate order and equations are torch.nn's.

A cell is pointwise: the matrix product ``gates_h = h_{t-1} weight_hh^T + bias_hh`` is computed outside. ``forward``
uses differentiable tensor methods and is the reference implementation; ``backward`` is its hand-written derivative for
``ops/stepwise.py``. Does not import torch, so that a configuration is read without it. One entry in ``CELLS`` registers
a cell with the layers, the configuration and the tests; see CONTRIBUTING.md. Users' cells, which have parameters and
inputs besides, are ``codegen/definition.py``'s: ``lookup`` finds them too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Maybe = Tensor | None
    # (gates_x [B,G*H], gates_h [B,G*H], h_prev [B,H], c_prev [B,H] | None) -> h [B,H], c [B,H] | None, S saved [B,H]
    Stepped = tuple[Tensor, Maybe, tuple[Tensor, ...]]
    Forward = Callable[[Tensor, Tensor, Tensor, Maybe], Stepped]
    Step = tuple[Tensor, tuple[Tensor, ...], Tensor, tuple[Tensor, ...]]
    # (grad_h [B,H], grad_c [B,H] | None, h [B,H], h_prev, c_prev, saved [B,S*H] | None) ->
    #   G of grad_gates_x [B,H], G of grad_gates_h, grad_h_prev [B,H] | None (the path around the matmul), grad_c_prev
    Gradients = tuple[tuple[Tensor, ...], tuple[Tensor, ...], Maybe, Maybe]
    Backward = Callable[[Tensor, Maybe, Tensor, Tensor, Maybe, Maybe], Gradients]


class SavedSizes(NamedTuple):
    """``saved`` values of a dtype (None: that of x), and h besides if ``hidden``, for the backward pass."""

    saved: int
    dtype: torch.dtype | None
    hidden: bool


@dataclass(frozen=True)
class Vendor:
    """A cell in the libraries torch calls. ``mode`` is its id in ATen's RNN functions, cuDNN's enumeration;
    ``libraries`` those of "cudnn" and "onednn" whose kernel for a whole layer torch binds; ``function`` the torch
    function that runs layers, and with ``_cell`` the one of a step.
    """

    mode: int
    libraries: tuple[str, ...]
    function: str


@dataclass(frozen=True)
class Cell:
    """One recurrent cell.

    ``states`` are the names of its state tensors, the first of which is the output. ``saved`` is S: what ``backward``
    needs besides the output, in units of H per sample and step, c last in a cell that has c. ``splits_gates``: gates_x
    and gates_h have different gradients (GRU's reset gate acts on only one of them). ``backward`` takes
    what ``forward`` saved, concatenated along the last dimension. ``projects``: its output may be projected, since
    ``forward`` does not take h_prev, nor ``backward`` h. ``params`` and ``inputs`` are names of values for each unit:
    the parameters of the layer, and what it is given at each step. Without ``backward`` autograd differentiates it.
    """

    name: str
    gates: int
    states: tuple[str, ...]
    saved: int
    splits_gates: bool
    forward: Forward
    backward: Backward | None
    vendor: Vendor | None = None
    projects: bool = False
    params: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()

    @property
    def has_c(self) -> bool:
        """Whether it has states besides h."""
        return len(self.states) > 1

    def step(
        self,
        gates_x: Tensor,
        gates_h: Tensor,
        h_prev: Tensor,
        states: tuple[Tensor, ...],
        params: Maybe,
        inputs: Maybe,
    ) -> Step:
        """One step of any cell, differentiable: gates [B,G*H], h_prev [B,H], the other states [B,H] each, params [N,H],
        inputs [B,M*H]. Returns h, the other states, the output, and what ``backward`` needs.
        """
        h, c, saved = self.forward(gates_x, gates_h, h_prev, states[0] if states else None)
        return h, () if c is None else (c,), h, saved

    def native_number(self, dtype: torch.dtype) -> int | None:
        """The number of the CPU kernel compiled for it; None for a cell of the native library."""
        return None

    def cuda_number(self, device: int) -> int | None:
        """The number of a cell whose kernels for GPUs are compiled as they are needed; None for the built-in ones."""
        return None

    def compile_for_gpu(self, key: tuple[int, bool, int], dtype: torch.dtype, device: int) -> None:
        """Make the kernel of a scheme, pass and shape ready to run."""
        raise NotImplementedError

    def refused_on_gpu(self, dtype: torch.dtype, device: int) -> str | None:
        """Why there are no kernels of it for a GPU, perhaps after an attempt to compile one; None where there are."""
        return None

    def name_in_graph(self, dtype: torch.dtype) -> str:
        """A name for ``lookup`` that no cell with other equations has, in any process: torch.compile keeps graphs."""
        return self.name

    def saved_sizes(self, dtype: torch.dtype) -> SavedSizes:
        """What the CPU kernels save of each unit and step, where x is of ``dtype``."""
        return SavedSizes(self.saved, None, False)

    def derived(self, params: Tensor) -> Maybe:
        """The parameters that the compiled kernel takes, computed from those of the layer [N,H]; differentiable."""
        raise NotImplementedError

    def refused(self, dtype: torch.dtype) -> str | None:
        """Why there is no CPU kernel of it, perhaps after an attempt to compile one; None where there is one."""
        return None

    @property
    def mode(self) -> str:
        """torch.nn's name of the cell, such as "RNN_TANH"."""
        return self.name.upper()


def _rnn_tanh_forward(gates_x: Tensor, gates_h: Tensor, h_prev: Tensor, c_prev: Maybe) -> Stepped:
    return (gates_x + gates_h).tanh(), None, ()


def _rnn_tanh_backward(
    grad_h: Tensor, grad_c: Maybe, h: Tensor, h_prev: Tensor, c_prev: Maybe, saved: Maybe
) -> Gradients:
    grad = (grad_h * (1 - h * h),)
    return grad, grad, None, None


def _rnn_relu_forward(gates_x: Tensor, gates_h: Tensor, h_prev: Tensor, c_prev: Maybe) -> Stepped:
    return (gates_x + gates_h).relu(), None, ()


def _rnn_relu_backward(
    grad_h: Tensor, grad_c: Maybe, h: Tensor, h_prev: Tensor, c_prev: Maybe, saved: Maybe
) -> Gradients:
    grad = (grad_h.masked_fill(h <= 0, 0),)  # where h is NaN the gradient passes, as in autograd
    return grad, grad, None, None


def _gru_forward(gates_x: Tensor, gates_h: Tensor, h_prev: Tensor, c_prev: Maybe) -> Stepped:
    """r, z = sigmoid(x + h); n = tanh(x_n + r * h_n), the reset after the matmul; h = (1 - z) n + z h_prev."""
    r_x, z_x, n_x = gates_x.chunk(3, dim=-1)
    r_h, z_h, n_h = gates_h.chunk(3, dim=-1)
    r = (r_x + r_h).sigmoid()
    z = (z_x + z_h).sigmoid()
    n = (n_x + r * n_h).tanh()
    return n + z * (h_prev - n), None, (r, z, n, n_h)


def _gru_backward(grad_h: Tensor, grad_c: Maybe, h: Tensor, h_prev: Tensor, c_prev: Maybe, saved: Maybe) -> Gradients:
    assert saved is not None
    r, z, n, n_h = saved.chunk(4, dim=-1)
    grad_n = grad_h * (1 - z) * (1 - n * n)
    grad_z = grad_h * (h_prev - n) * z * (1 - z)
    grad_r = grad_n * n_h * r * (1 - r)
    return (grad_r, grad_z, grad_n), (grad_r, grad_z, grad_n * r), grad_h * z, None


def _lstm_forward(gates_x: Tensor, gates_h: Tensor, h_prev: Tensor, c_prev: Maybe) -> Stepped:
    """i, f, o = sigmoid; g = tanh; c = f c_prev + i g; h = o tanh(c)."""
    assert c_prev is not None
    i, f, g, o = (gates_x + gates_h).chunk(4, dim=-1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    c = f * c_prev + i * g
    return o * c.tanh(), c, (i, f, g, o, c)


def _lstm_backward(grad_h: Tensor, grad_c: Maybe, h: Tensor, h_prev: Tensor, c_prev: Maybe, saved: Maybe) -> Gradients:
    assert grad_c is not None and c_prev is not None and saved is not None
    i, f, g, o, c = saved.chunk(5, dim=-1)
    tanh_c = c.tanh()
    grad_c = grad_c + grad_h * o * (1 - tanh_c * tanh_c)
    grad_gates = (
        grad_c * g * i * (1 - i),
        grad_c * c_prev * f * (1 - f),
        grad_c * i * (1 - g * g),
        grad_h * tanh_c * o * (1 - o),
    )
    return grad_gates, grad_gates, None, grad_c * f


CELLS: dict[str, Cell] = {
    cell.name: cell
    for cell in (
        Cell("rnn_tanh", 1, ("h",), 0, False, _rnn_tanh_forward, _rnn_tanh_backward, Vendor(1, ("cudnn",), "rnn_tanh")),
        Cell("rnn_relu", 1, ("h",), 0, False, _rnn_relu_forward, _rnn_relu_backward, Vendor(0, ("cudnn",), "rnn_relu")),
        Cell("gru", 3, ("h",), 4, True, _gru_forward, _gru_backward, Vendor(3, ("cudnn",), "gru")),
        Cell(
            "lstm",
            4,
            ("h", "c"),
            5,
            False,
            _lstm_forward,
            _lstm_backward,
            Vendor(2, ("cudnn", "onednn"), "lstm"),
            projects=True,
        ),
    )
}


_REGISTERED: dict[str, Cell] = {}


def register(cell: Cell, name: str | None = None) -> None:
    """Make ``lookup`` find a cell that is not in ``CELLS``, by its name or another one."""
    _REGISTERED[name or cell.name] = cell


def unused_name(name: str) -> str:
    """A name for ``register`` that no cell has: the name itself, or with a number: "lif", "lif#2"."""
    taken, number = CELLS.keys() | _REGISTERED.keys(), 1
    while (unused := name if number == 1 else f"{name}#{number}") in taken:
        number += 1
    return unused


def lookup(name: str) -> Cell:
    """The cell called ``name``; ValueError with the known names otherwise."""
    cell = CELLS.get(name) or _REGISTERED.get(name)
    if cell is None:
        raise ValueError(f"unknown cell {name!r}: expected one of {', '.join(CELLS)}")
    return cell
