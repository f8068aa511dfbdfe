"""One recurrent layer, in one direction or both: its checks, and the choice of what runs it.

Shapes: T time steps, B batch, I input size, H hidden size, P projected size (H without projection), G gates,
D directions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prnn.cell_table import CELLS, lookup
from prnn.ops import backends, operator, reference, vendor
from prnn.ops.autocast import autocast_dtype, autocast_enabled
from prnn.ops.operands import Operands, Results, Weights, check


def layer(
    x: Tensor,
    weights: Sequence[Weights],
    state: Sequence[Tensor],
    cell: str,
    *,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reverse: bool = False,
    checked: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One layer over all time steps.

    Args:
        x: [T,B,I]; or [T,B,G*H], the input's share of the gates, ``x_t weight_ih^T + bias_ih``, where the weights have
            no ``weight_ih``. Gate order as in torch.nn.
        weights: of each direction; the second runs in reverse.
        state: (h0 [D,B,P],) or, for an LSTM, (h0, c0 [D,B,H]).
        cell: a name of ``CELLS``: "rnn_tanh", "rnn_relu", "gru" or "lstm".
        lengths: [B] integers or None. Steps at or past a sample's length leave its state alone, give zero
            output and take no gradient. What stands in x's padding must be finite: where torch's kernels run, the
            gradient of weight_ih sums over it, times zero.
        resets: [T,B] booleans or None. ``resets[t, b]`` zeroes the state of sample b before step t.
        reverse: run a single direction from each sample's last step to its first, the output standing at the steps it
            belongs to; a reset before step t clears the state between steps t and t-1, the same boundary.
        checked: the caller has checked the operands.

    Returns:
        output [T,B,D*P] and the final state, as ``state``.

    Differentiable, to any order, in x, weights and state. float32, float64, and bfloat16 and float16 with accumulation
    and cell state in float32; under autocast everything is computed in its dtype, as torch.nn's modules do. The same
    call gives the same bits.

    Raises:
        ValueError: a shape, dtype or device that does not fit the others, or an unknown cell.

    Example::

        output, (h_n,) = layer(x, [Weights(weight_ih, weight_hh, bias_ih, bias_hh)], (torch.zeros(1, B, H),), "gru")
    """
    if autocast_enabled(x):
        weights = [Weights(*(None if w is None else _cast(w) for w in each)) for each in weights]  # type: ignore[arg-type]
        x, state = _cast(x), [_cast(each) for each in state]
        with torch.autocast(x.device.type, enabled=False):
            return layer(x, weights, state, cell, lengths=lengths, resets=resets, reverse=reverse, checked=checked)
    operands = Operands.of(x, weights, state, lengths, resets)
    if not checked:
        if len(weights) not in (1, 2) or (reverse and len(weights) == 2):
            raise ValueError(f"weights must be of one or two directions, of one with reverse, got {len(weights)}")
        check(operands, lookup(cell))
    choice = backends.choose(backends.Request.of(x, weights[0], cell, lengths, resets))
    output, h_n, c_n, *_ = _run(operands, cell, reverse, choice.implementation)
    return output, (h_n,) if c_n is None else (h_n, c_n)


def _run(operands: Operands, cell: str, reverse: bool, implementation: str) -> Results:
    if implementation == "aten":
        return vendor.one_step(operands, CELLS[cell])
    if implementation == "reference" or (torch._C._are_functorch_transforms_active() and _derivative_by_functorch()):
        return reference.layer(operands, CELLS[cell], reverse)
    if operands.weight_hh_reverse is None or operator.BACKENDS[implementation].bidirectional:
        return operator.run(operands, cell, reverse, implementation)
    each = []
    for d, weights in enumerate(operands.weights):
        state = [part[d : d + 1] for part in (operands.h0, operands.c0) if part is not None]
        one = Operands.of(operands.x, [weights], state, operands.lengths, operands.resets)
        each.append(operator.run(one, cell, d == 1, implementation))
    first, second = each
    c_n = None if first.c_n is None or second.c_n is None else torch.cat((first.c_n, second.c_n))
    output = torch.cat((first.output, second.output), dim=-1)
    return Results(output, torch.cat((first.h_n, second.h_n)), c_n)


def _derivative_by_functorch() -> bool:
    """Whether torch.func takes a derivative, forward or backward; a vmap alone is none."""
    stack = torch._C._functorch.get_interpreter_stack() or []
    return any(level.key() != torch._C._functorch.TransformType.Vmap for level in stack)


def _cast(x: Tensor) -> Tensor:
    return x.to(autocast_dtype(x))
