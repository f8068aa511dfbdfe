"""The layer in plain, differentiable PyTorch: the reference implementation that every backend is compared with.

Shapes: T time steps, B batch, I input size, H hidden size, P projected size (H without projection), G gates,
D directions.

Low-precision inputs (bfloat16, float16) are computed in float32: the product accumulates in float32, the cell
state stays float32 through the sequence, and only h is rounded to the input's dtype after each step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from prnn.cell_table import Cell
from prnn.ops.operands import Operands, Results

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of accumulation and cell state: float32 for the 16-bit types, else the same."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def layer(operands: Operands, cell: Cell, reverse: bool = False) -> Results:
    """All directions of a layer, differentiable to any order in every operand; ``reverse``: a single reversed one."""
    each = [_direction(operands, d, cell, reverse or d == 1) for d in range(len(operands.weights))]
    return joined(each, cell)


def joined(each: Sequence[tuple[Tensor, Tensor, Tensor | None]], cell: Cell) -> Results:
    """The results of a layer, of the output [T,B,P] and final state, h [B,P] and c, of each direction."""
    outputs, h_n, c_n = zip(*each, strict=True)
    output = outputs[0] if len(each) == 1 else torch.cat(outputs, dim=-1)
    return Results(output, torch.stack(h_n), torch.stack(c_n, dim=-3) if cell.has_c else None)


def _direction(operands: Operands, d: int, cell: Cell, reverse: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    outputs: list[Tensor] = []
    h, states = steps(operands, d, cell, reverse, plain_product, lambda t, output, saved: outputs.append(output))
    output = torch.stack(outputs) if outputs else operands.x.new_zeros((0, *h.shape))
    return reverse_steps(output, operands.lengths) if reverse else output, h, stacked(states)


def stacked(states: Sequence[Tensor]) -> Tensor | None:
    """The states besides h: None, c [B,H] of one, [K,B,H] of several."""
    return torch.stack(list(states)) if len(states) > 1 else states[0] if states else None


def plain_product(h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return h @ weight if bias is None else h @ weight + bias


def states_of(c: Tensor | None, d: int, cell: Cell) -> tuple[Tensor, ...]:
    """The states [B,H] besides h of one direction, of c [D,B,H] or [K,D,B,H]."""
    if c is None:
        return ()
    return (c[d],) if len(cell.states) == 2 else c[:, d].unbind(0)


def by_heads(h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """h [B,H] times a weight of diagonal blocks, transposed [K,G*H]: each head of K units meets itself; K may be 0."""
    (B, H), (K, rows) = h.shape, weight.shape
    if K == 0:
        gates = h.new_zeros(B, rows)
    else:
        blocks = weight.t().reshape(rows // H, H // K, K, K)
        gates = torch.einsum("bnk,gnjk->bgnj", h.reshape(B, H // K, K), blocks).reshape(B, rows)
    return gates if bias is None else gates + bias


class Series(NamedTuple):
    """What each step has its own of, in the order of the recurrence; or that of one step, without T."""

    gates_x: Tensor  # [T,B,G*H], the input's share of the gates
    resets: Tensor | None  # [T,B] booleans
    alive: Tensor | None  # [T,B] booleans, False past a sample's length
    inputs: Tensor | None  # [T,B,M*H]


class Constants(NamedTuple):
    """What all steps share; weights transposed, in the dtype of accumulation."""

    weight: Tensor  # [P,G*H]; of a user's cell also [K,G*H]
    bias: Tensor | None  # [G*H]
    projection: Tensor | None  # [H,P]
    params: Tensor | None  # [N,H]


def prepared(operands: Operands, d: int, reverse: bool) -> tuple[Series, Constants]:
    """One direction as its steps take it."""
    lengths, weights, inputs = operands.lengths, operands.weights[d], operands.inputs
    x, resets = in_order(operands, reverse)
    if inputs is not None and reverse:
        inputs = reverse_steps(inputs, lengths)
    gates_x = x if weights.weight_ih is None else F.linear(x, weights.weight_ih, weights.bias_ih)
    alive = None if lengths is None else within(lengths, x.shape[0])
    compute = compute_dtype(gates_x.dtype)
    constants = Constants(
        weights.weight_hh.to(compute).t(),
        None if weights.bias_hh is None else weights.bias_hh.to(compute),
        None if weights.weight_hr is None else weights.weight_hr.to(compute).t(),
        None if weights.params is None else weights.params.to(compute),
    )
    return Series(gates_x, resets_within(resets, lengths), alive, inputs), constants


def steps(
    operands: Operands,
    d: int,
    cell: Cell,
    reverse: bool,
    product: Product,
    emit: Callable[[int, Tensor, tuple[Tensor, ...]], None],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One direction: h_t, c_t = cell(x_t weight_ih^T + bias_ih, h_{t-1} weight_hh^T + bias_hh, h_{t-1}, c_{t-1}), then
    h_t weight_hr^T if given; c_t are the states besides h. Steps at or past a sample's length leave its state alone and
    give zero output. ``resets[t, b]`` zeroes the state of sample b before step t.

    ``product(h, weight_hh^T, bias_hh)`` is the caller's: its rounding differs. ``emit(t, output, saved)`` is given the
    output [B,P] of step t in the order of the recurrence, and what the cell saves of it, preceded by the h_t that was
    projected. Returns the last h and the other states.
    """
    h, states = first_state(operands, d, cell)
    series, constants = prepared(operands, d, reverse)
    product = product_of(constants, h, product)
    # Not x[t], whose gradient is that of all T steps each time.
    each = [itertools.repeat(None) if part is None else part.unbind(0) for part in series]
    for t, at_step in enumerate(zip(*each, strict=False)):
        h, states, output, saved = one_step(cell, product, at_step, constants, h, states)
        emit(t, output, saved)
    return h, last_states(operands, states)


def first_state(operands: Operands, d: int, cell: Cell) -> tuple[Tensor, tuple[Tensor, ...]]:
    """h [B,P] of one direction and its other states [B,H], in the dtype of accumulation."""
    compute = compute_dtype(operands.x.dtype)
    return operands.h0[d], tuple(state.to(compute) for state in states_of(operands.c0, d, cell))


def last_states(operands: Operands, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The states besides h in the dtype in which they were given."""
    return states if operands.c0 is None else tuple(state.to(operands.c0.dtype) for state in states)


def product_of(constants: Constants, h: Tensor, dense: Product) -> Product:
    """The product of h [B,P] and the recurrent weight: ``dense``, or that of heads."""
    return dense if constants.weight.shape[0] == h.shape[1] else by_heads


def one_step(
    cell: Cell, product: Product, at_step: Sequence[Any], constants: Constants, h: Tensor, states: tuple[Tensor, ...]
) -> tuple[Tensor, tuple[Tensor, ...], Tensor, tuple[Tensor, ...]]:
    """A step, whose ``Series`` is ``at_step``, after ``h`` [B,P] and the other ``states`` [B,H]: the new ones, the
    output [B,P], and what the cell saves.
    """
    gates_t, resets, alive, inputs_t = at_step
    weight, bias, projection, params = constants
    dtype, compute = gates_t.dtype, weight.dtype
    if resets is not None:
        reset = resets.unsqueeze(-1)
        h, states = h.masked_fill(reset, 0), tuple(state.masked_fill(reset, 0) for state in states)
    inputs_t = None if inputs_t is None else inputs_t.to(compute)
    if alive is not None:
        alive = alive.unsqueeze(-1)
        # What stands in the padding may be NaN; without the mask its gradient would be 0 * NaN.
        gates_t = gates_t.masked_fill(~alive, 0)
        inputs_t = None if inputs_t is None else inputs_t.masked_fill(~alive, 0)
    gates_h = product(h.to(compute), weight, bias)
    h_new, states_new, output, saved = cell.step(gates_t.to(compute), gates_h, h.to(compute), states, params, inputs_t)
    outputs_h = output is h_new
    if projection is not None:
        saved, h_new = (h_new, *saved), h_new @ projection
    h_new = h_new.to(dtype)
    output = h_new if outputs_h else output.to(dtype)
    if alive is None:
        return h_new, states_new, output, saved
    states = tuple(torch.where(alive, new, old) for new, old in zip(states_new, states, strict=True))
    return torch.where(alive, h_new, h), states, torch.where(alive, output, torch.zeros_like(output)), saved


def in_order(operands: Operands, reverse: bool) -> tuple[Tensor, Tensor | None]:
    """x and resets in the order of the recurrence."""
    x, lengths, resets = operands.x, operands.lengths, operands.resets
    return (reverse_steps(x, lengths), reverse_resets(resets, lengths)) if reverse else (x, resets)


def resets_within(resets: Tensor | None, lengths: Tensor | None) -> Tensor | None:
    """Resets [T,B] without those past a sample's length, where its state is left alone."""
    if resets is None or lengths is None:
        return resets
    return resets & within(lengths, resets.shape[0])


def within(lengths: Tensor, T: int) -> Tensor:
    """[T,B]: whether a step is one of its sample's."""
    return torch.arange(T, device=lengths.device).unsqueeze(-1) < lengths


def reverse_steps(x: Tensor, lengths: Tensor | None) -> Tensor:
    """x [T,B,*] with each sample's valid steps in reverse order; its padding stays where it is. Its own inverse."""
    if lengths is None:
        return x.flip(0)
    t = torch.arange(x.shape[0], device=x.device).unsqueeze(-1)
    lengths = lengths.clamp(0, x.shape[0])  # their values have not been checked, and an index must not be beyond T
    index = torch.where(t < lengths, lengths - 1 - t, t)
    return x.gather(0, index.reshape(*index.shape, *(1,) * (x.dim() - 2)).expand_as(x))


def reverse_resets(resets: Tensor | None, lengths: Tensor | None) -> Tensor | None:
    """Resets [T,B] for the reversed sequence: the boundary before step t lies after step t from that side."""
    if resets is None:
        return None
    shifted = torch.cat((resets[1:], resets.new_zeros((1, resets.shape[1]))))
    backwards = reverse_steps(shifted, lengths)
    return torch.cat((backwards.new_zeros((1, backwards.shape[1])), backwards[1:]))
