"""One recurrent layer, in one direction or both: its checks, and the choice of what runs it.

Shapes: T time steps, B batch, I input size, H hidden size, P projected size (H without projection), G gates,
D directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prnn.cell_table import CELLS, lookup
from prnn.ops import exported, operator, vendor
from prnn.ops.autocast import autocast_dtype, autocast_enabled
from prnn.ops.backends import Request, choose
from prnn.ops.operands import Operands, Weights, check


def layer(
    x: Tensor,
    weights: Sequence[Weights],
    state: Sequence[Tensor],
    cell: str,
    *,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    inputs: Tensor | None = None,
    reverse: bool = False,
    checked: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One layer over all time steps.

    Args:
        x: [T,B,I]; or [T,B,G*H], the input's share of the gates, ``x_t weight_ih^T + bias_ih``, where the weights have
            no ``weight_ih``. Gate order as in torch.nn.
        weights: of each direction; the second runs in reverse.
        state: (h0 [D,B,P],) or, for an LSTM, (h0, c0 [D,B,H]); for a cell with K > 1 states besides h, c0 [K,D,B,H].
        cell: a name of ``CELLS``: "rnn_tanh", "rnn_relu", "gru" or "lstm"; or of a cell written in Python.
        lengths: [B] integers or None. Steps at or past a sample's length leave its state alone, give zero
            output and take no gradient. What stands in x's padding must be finite: where torch's kernels run, the
            gradient of weight_ih sums over it, times zero.
        resets: [T,B] booleans or None. ``resets[t, b]`` zeroes the state of sample b before step t.
        inputs: [T,B,M*H], of a cell that has inputs at each step besides x.
        reverse: run a single direction from each sample's last step to its first, the output standing at the steps it
            belongs to; a reset before step t clears the state between steps t and t-1, the same boundary.
        checked: the caller has checked the operands, and autocast is off.

    Returns:
        output [T,B,D*P] and the final state, as ``state``.

    Differentiable, to any order, in x, weights, state and inputs. float32, float64, and bfloat16 and float16 with
    accumulation and cell state in float32; under autocast everything is computed in its dtype, as torch.nn's modules
    do. The same call gives the same bits.

    Raises:
        ValueError: a shape, dtype or device that does not fit the others, or an unknown cell.

    Example::

        output, (h_n,) = layer(x, [Weights(weight_ih, weight_hh, bias_ih, bias_hh)], (torch.zeros(1, B, H),), "gru")
    """
    if not checked:
        if autocast_enabled(x):
            # What a user's cell has besides the weights and h stays float32: a decay near 1 has no bfloat16.
            count = len(state) if cell in CELLS else 1
            weights = [_cast_weights(each) for each in weights]
            x, state = _cast(x), [_cast(part) if i < count else part for i, part in enumerate(state)]
            with torch.autocast(x.device.type, enabled=False):
                return layer(x, weights, state, cell, lengths=lengths, resets=resets, inputs=inputs, reverse=reverse)
        if len(weights) not in (1, 2) or (reverse and len(weights) == 2):
            raise ValueError(f"weights must be of one or two directions, of one with reverse, got {len(weights)}")
        check(Operands.of(x, weights, state, lengths, resets, inputs), lookup(cell))
    operands = Operands.of(x, weights, state, lengths, resets, inputs)
    if exported.recording(x):
        return exported.call(operands, cell, reverse)
    name = choose(Request.of(x, weights[0], cell, lengths, resets, len(weights))).implementation
    try:
        if name == "aten":
            if not torch._C._are_functorch_transforms_active():
                return vendor.few_steps(x, weights, state, lookup(cell))
            name = "stepwise"  # vmap has no rule for torch's functions
        results = operator.run(operands, cell, reverse, name)
    except RuntimeError:
        check(operands, lookup(cell))  # a parameter that does not fit is named
        raise
    return results.output, (results.h_n,) if results.c_n is None else (results.h_n, results.c_n)


exported.register(layer)


def _cast_weights(weights: Weights) -> Weights:
    cast: dict[str, Any] = {name: _cast(weight) for name, weight in weights._asdict().items() if weight is not None}
    return weights._replace(**cast | {"params": weights.params})


def _cast(x: Tensor) -> Tensor:
    return x.to(autocast_dtype(x))
