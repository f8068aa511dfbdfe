"""What a layer is given and what it gives, by name.

Shapes: T time steps, B batch, I input size, H hidden size, P projected size (H without projection), G gates,
D directions (2 where there are weights of a reversed one), S what a cell saves; of a user's cell K states besides h, N
parameters, M inputs. States besides h, parameters and inputs are float32 where x is of a 16-bit type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from prnn.cell_table import Cell


class Weights(NamedTuple):
    """The weights of one direction. Without ``weight_ih``, x is the input's share of the gates, biases included."""

    weight_ih: Tensor | None  # [G*H,I]
    weight_hh: Tensor  # [G*H,P]; of a user's cell also [G*H,K] of diagonal blocks, heads of K units, or K = 0 for none
    bias_ih: Tensor | None = None  # [G*H]
    bias_hh: Tensor | None = None  # [G*H]; apart from bias_ih because GRU's reset gate acts on h weight_hh^T + bias_hh
    weight_hr: Tensor | None = None  # [P,H], a projection (Sak et al., 2014)
    params: Tensor | None = None  # [N,H], of a user's cell


class Operands(NamedTuple):
    """The tensors of one layer, flat, as the dispatcher takes them; those before ``lengths`` are differentiable."""

    x: Tensor  # [T,B,I]
    weight_ih: Tensor | None
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    weight_hr: Tensor | None
    params: Tensor | None
    weight_ih_reverse: Tensor | None
    weight_hh_reverse: Tensor | None
    bias_ih_reverse: Tensor | None
    bias_hh_reverse: Tensor | None
    weight_hr_reverse: Tensor | None
    params_reverse: Tensor | None
    h0: Tensor  # [D,B,P]
    c0: Tensor | None  # the states besides h: [D,B,H] of one, [K,D,B,H] of several
    inputs: Tensor | None  # [T,B,M*H]
    lengths: Tensor | None  # [B] integers
    resets: Tensor | None  # [T,B] booleans

    @classmethod
    def of(
        cls,
        x: Tensor,
        weights: Sequence[Weights],
        state: Sequence[Tensor],
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        inputs: Tensor | None = None,
    ) -> Operands:
        """From the weights of each direction, and the state (h0,) or (h0, c0)."""
        h0, c0 = state if len(state) == 2 else (state[0], None)
        second = weights[1] if len(weights) == 2 else _NO_WEIGHTS
        return cls._make((x, *weights[0], *second, h0, c0, inputs, lengths, resets))

    @property
    def weights(self) -> list[Weights]:
        """The weights of each direction."""
        first = Weights(self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh, self.weight_hr, self.params)
        if self.weight_hh_reverse is None:
            return [first]
        rest = self.bias_ih_reverse, self.bias_hh_reverse, self.weight_hr_reverse, self.params_reverse
        return [first, Weights(self.weight_ih_reverse, self.weight_hh_reverse, *rest)]

    def each_direction(self) -> list[Operands]:
        """The layer in two directions as two of one."""
        each = []
        for d, weights in enumerate(self.weights):
            state = [part[d : d + 1] for part in (self.h0, self.c0) if part is not None]
            each.append(Operands.of(self.x, [weights], state, self.lengths, self.resets))
        return each


_NO_WEIGHTS = (None,) * len(Weights._fields)


def schema_of(leading: Sequence[str], results: int) -> str:
    """A dispatcher's schema: ``leading`` arguments, the operands, and so many tensors as results."""
    required = {"x", "weight_hh", "h0"}
    operands = [f"Tensor{'' if name in required else '?'} {name}" for name in Operands._fields]
    return f"({', '.join((*leading, *operands))}) -> ({', '.join(['Tensor'] * results)})"


class Gradients(NamedTuple):
    """The gradients of the differentiable operands, in their order; None for an absent or unwanted one."""

    x: Tensor | None
    weight_ih: Tensor | None = None
    weight_hh: Tensor | None = None
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None
    weight_hr: Tensor | None = None
    params: Tensor | None = None
    weight_ih_reverse: Tensor | None = None
    weight_hh_reverse: Tensor | None = None
    bias_ih_reverse: Tensor | None = None
    bias_hh_reverse: Tensor | None = None
    weight_hr_reverse: Tensor | None = None
    params_reverse: Tensor | None = None
    h0: Tensor | None = None
    c0: Tensor | None = None
    inputs: Tensor | None = None


WEIGHTS = frozenset(name for name in Gradients._fields if name.startswith(("weight", "bias")))


class Results(NamedTuple):
    """What a forward pass gives; the backward pass is given it again. The operators have an empty tensor for None."""

    output: Tensor  # [T,B,D*P]
    h_n: Tensor  # [D,B,P]
    c_n: Tensor | None  # as c0
    saved: Tensor | None = None  # for the backward pass, as the implementation likes it
    auxiliary: Tensor | None = None  # likewise: cuDNN's copy of the weights; h [T,B,D*H] of a cell with another output


Saved = tuple[Tensor | None, Tensor | None]  # the last two of ``Results``


class Incoming(NamedTuple):
    """The gradients of ``Results`` a backward pass begins with; None is zero."""

    output: Tensor | None
    h_n: Tensor | None
    c_n: Tensor | None


class Needs(NamedTuple):
    """Whether the gradients of x, of any weights or biases, of the inputs and of the parameters are wanted; those of
    the state always are.
    """

    x: bool
    weights: bool
    inputs: bool
    params: bool

    def of(self, operands: Operands) -> list[bool]:
        """Whether each gradient of ``Gradients`` is wanted; that of an absent operand is not."""
        parts = {"x": self.x, "inputs": self.inputs, "params": self.params, "params_reverse": self.params}
        wanted = {name: parts.get(name, self.weights or name not in WEIGHTS) for name in Gradients._fields}
        return [want and getattr(operands, name) is not None for name, want in wanted.items()]


FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

_SHAPES = {
    "x": "TBI", "weight_ih": "RI", "weight_hh": "RC", "bias_ih": "R", "bias_hh": "R", "weight_hr": "PH",
    "params": "NH", "h0": "DBP", "c0": "KDBH", "inputs": "TBM", "lengths": "B", "resets": "TB",
}  # fmt: skip


_ANY_DTYPE = ("lengths", "resets", "c0", "params", "params_reverse", "inputs")


def check(operands: Operands, cell: Cell) -> None:
    """Raise ValueError unless everything fits x [T,B,I] and weight_hh [G*H,P] in shape, dtype, layout and device."""
    x, name, c0, lengths, resets = operands.x, cell.name, operands.c0, operands.lengths, operands.resets
    if operands.weight_hr is not None and not cell.projects:
        raise ValueError(f"weight_hr (a projection) goes with an LSTM, not with {name}")
    for weights in operands.weights:
        if weights.bias_ih is not None and weights.weight_ih is None:
            raise ValueError("bias_ih goes with weight_ih: without it x is the gates, bias included")
        if any((one is None) != (other is None) for one, other in zip(weights, operands.weights[0], strict=True)):
            raise ValueError("both directions must have the same weights and biases")
    if cell.has_c != (c0 is not None):
        raise ValueError(f"cell {name} {'needs' if cell.has_c else 'takes no'} c0")
    for what, names in (("params", cell.params), ("inputs", cell.inputs)):
        if bool(names) != (getattr(operands, what) is not None):
            raise ValueError(f"cell {name} {'needs' if names else 'takes no'} {what}")
    for what, form in {"x": "[T,B,*]", "weight_hh": "[G*H,*]", "weight_hr": "[P,H]"}.items():
        tensor = getattr(operands, what)
        if tensor is not None and tensor.dim() != form.count(",") + 1:
            raise ValueError(f"{what} must be {form}, got {list(tensor.shape)}")
    if x.dtype not in FLOATS:
        raise ValueError(f"the input must be float32, float64, bfloat16 or float16, got {x.dtype}")
    sizes = _sizes(operands, cell)
    for what, tensor in zip(Operands._fields, operands, strict=True):
        if tensor is None:
            continue
        expected = [sizes[letter] for letter in _SHAPES[what.removesuffix("_reverse")]]
        if what == "c0" and sizes["K"] == 1:
            del expected[0]
        if list(tensor.shape) != expected:
            raise ValueError(f"{what} must be {expected} for cell {name} with H={sizes['H']}, got {list(tensor.shape)}")
        if tensor.layout != torch.strided:
            raise ValueError(f"{what} must be a dense tensor, got {tensor.layout}")
        if tensor.device != x.device:
            raise ValueError(f"{what} is on {tensor.device}, the input on {x.device}")
        if what not in _ANY_DTYPE and tensor.dtype != x.dtype:
            raise ValueError(f"{what} is {tensor.dtype}, the input is {x.dtype}")
    for what in ("c0", "params", "params_reverse", "inputs"):
        tensor = getattr(operands, what)
        if tensor is not None and tensor.dtype not in FLOATS:
            raise ValueError(f"{what} must be of floating point, got {tensor.dtype}")
    if lengths is not None and (lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool):
        raise ValueError(f"lengths must be integers, got {lengths.dtype}")
    if resets is not None and resets.dtype != torch.bool:
        raise ValueError(f"resets must be booleans, got {resets.dtype}")


def _sizes(operands: Operands, cell: Cell) -> dict[str, int]:
    """The sizes in ``_SHAPES``, by x and weight_hh; R is G*H, the rows of the gates."""
    (T, B, I), H = operands.x.shape, operands.weight_hh.shape[0] // cell.gates
    R, P = cell.gates * H, H if operands.weight_hr is None else operands.weight_hr.shape[0]
    columns = R if operands.weight_ih is None else I
    C = operands.weight_hh.shape[1]
    if cell.backward is not None or (C and H % C):  # the cells of torch.nn have no heads
        C = P
    K, N, M = len(cell.states) - 1, len(cell.params), len(cell.inputs) * H
    return dict(zip("TBIHRPDKNMC", (T, B, columns, H, R, P, len(operands.weights), K, N, M, C), strict=True))
