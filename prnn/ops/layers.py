"""Layers one above the other. Native kernels of a CPU run them in one call, where they may run at the same time, each a
few steps behind the one below (csrc/cpu/driver.cpp, ``Wavefront``), in both passes.

Shapes: T time steps, B batch, I input size, H hidden size, D directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from prnn.cell_table import lookup
from prnn.ops import cpu, exported, operator
from prnn.ops.autocast import without_autocast
from prnn.ops.backends import Request, choose
from prnn.ops.layer import layer
from prnn.ops.operands import Operands, Results, Weights

# Of larger batches the threads have samples each. What several layers write at the same time is not freed in between.
_MOST_SAMPLES, _MOST_BYTES = 15, 64 << 20

_WANTED = operator.LENGTH - len(Results._fields)  # operands and derived parameters, of each layer
State = tuple[Tensor, ...]


def layers(
    x: Tensor,
    weights: Sequence[Sequence[Weights]],
    states: Sequence[State],
    cell: str,
    *,
    dropout: float = 0.0,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    inputs: Sequence[Tensor] | None = None,
    checked: bool = False,
) -> tuple[Tensor, list[State]]:
    """Layers, each of whose input is the output of the one before.

    Args:
        x: [T,B,I], the input of the first.
        weights, states, inputs: of each layer what ``layer`` takes.
        dropout: the probability with which an element of an input is zeroed, but for the first layer's.
        cell, lengths, resets, checked: as ``layer``.

    Returns:
        the last layer's output [T,B,D*P], and the final state of each layer.

    Raises:
        ValueError: as ``layer``.

    Example::

        output, ((h_1,), (h_2,)) = layers(x, [[weights_1], [weights_2]], [(h0,), (h0,)], "gru")
    """
    options: Any = {"lengths": lengths, "resets": resets, "checked": checked}
    inputs = inputs or [None] * len(weights)
    if not dropout and checked and run_together(x, weights, cell, lengths, resets):
        try:
            each = zip(weights, states, inputs, strict=True)
            return _together([Operands.of(x, *of, lengths, resets, given) for *of, given in each], cell)
        except RuntimeError:
            pass  # a layer by itself says what does not fit
    final = []
    for number, state in enumerate(states):
        if number and dropout:
            x = F.dropout(x, dropout, training=True)
        x, last = layer(x, weights[number], state, cell, inputs=inputs[number], **options)
        final.append(last)
    return x, final


def run_together(
    x: Tensor, weights: Sequence[Sequence[Weights]], cell: str, lengths: Tensor | None, resets: Tensor | None
) -> bool:
    """Whether ``layers`` runs layers without dropout in one call, at the same time where that is faster."""
    if len(weights) < 2 or len(weights[0]) != 1 or not x.is_cpu or operator.traced(x, weights[0][0].weight_hh):
        return False
    if exported.recording(x) or forward_ad._current_level >= 0 or x.shape[1] > _MOST_SAMPLES:
        return False
    requests = [Request.of(x, each[0], cell, lengths, resets) for each in weights]
    first = requests[0]
    if len(weights) * first.T * first.B * first.H * x.element_size() > _MOST_BYTES:
        return False
    gradients = any(request.gradients for request in requests)
    above = [request._replace(I=first.H, gradients=gradients, whole=True) for request in requests[1:]]
    return all(choose(request).implementation == "cpu" for request in (first, *above))


def _together(operands: list[Operands], cell: str) -> tuple[Tensor, list[State]]:
    call = operator.Call(cell, False, "cpu", True)
    derived = [operator.derived_of(of, lookup(cell)) for of in operands]
    arguments = [x for of, more in zip(operands, derived, strict=True) for x in (*of, *more)]
    wanted = [x is not None and x.requires_grad for x in arguments] if torch.is_grad_enabled() else []
    if any(wanted):
        # The input of a layer is an argument of the first alone.
        wanted = [want and (number == 0 or number % _WANTED > 0) for number, want in enumerate(wanted)]
        found = _Layers.apply(call, operands, derived, wanted, *compress(arguments, wanted))
    else:
        given = [operator.with_derived(of, more) for of, more in zip(operands, derived, strict=True)]
        found = _flat(cpu.layers_forward(given, lookup(cell), False))
    count = len(operands)
    h_n, c_n = found[count : 2 * count], found[2 * count :]
    return found[count - 1], [(h,) if c is None else (h, c) for h, c in zip(h_n, c_n, strict=True)]


def _flat(results: Sequence[Results]) -> tuple[Any, ...]:
    """Every output, every h_n, every c_n."""
    return tuple(getattr(each, name) for name in ("output", "h_n", "c_n") for each in results)


class _Layers(torch.autograd.Function):
    """Every layer's output is a result, though only the last is the caller's: a backward pass that is differentiated in
    turn finds in them how one layer's input depends on the layers below.
    """

    @staticmethod
    def forward(
        ctx: Any,
        call: operator.Call,
        operands: list[Operands],
        derived: list[operator.Derived],
        differentiable: list[bool],
        *_: Tensor,
    ) -> Any:
        given = [operator.with_derived(of, more) for of, more in zip(operands, derived, strict=True)]
        results = cpu.layers_forward(given, lookup(call.cell), True)
        saved: list[Tensor | None] = []
        x = operands[0].x
        for of, result, more in zip(operands, results, derived, strict=True):
            kept = operator.with_lazy_clone(result) if result is results[-1] else result
            saved += operator.Kept(of._replace(x=x), kept, more).flat(call.implementation)
            x = result.output
        ctx.call, ctx.differentiable = call, differentiable
        ctx.save_for_backward(*saved)
        ctx.set_materialize_grads(False)
        return _flat(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = iter(ctx.needs_input_grad[4:])
        all_wanted = [given and next(needed) for given in ctx.differentiable]
        wanted = [all_wanted[i : i + _WANTED] for i in range(0, len(all_wanted), _WANTED)]
        saved, length = ctx.saved_tensors, operator.LENGTH
        kept = [operator.Kept.of(saved[i : i + length]) for i in range(0, len(saved), length)]
        count = len(kept)
        incoming = [operator.incoming_of(of.operands, grads[number::count]) for number, of in enumerate(kept)]
        found: list[Any] = [(None,) * _WANTED] * count
        lowest = next(number for number in range(count) if any(wanted[number]))
        highest = max((number for number in range(count) if not operator.is_absent(incoming[number])), default=-1)
        run = slice(lowest, highest + 1)
        inner = [each.output is not None for each in incoming[:highest]]
        if any(inner) or any(map(operator.through_operator, kept, incoming)):
            found[run] = _one_by_one(ctx.call, kept[run], incoming[run], wanted[run])
        elif highest >= lowest:
            found[run] = _at_once(ctx.call, kept[run], incoming[run], wanted[run])
        return None, None, None, None, *compress([grad for of in found for grad in of], ctx.differentiable)


Found = list[Sequence[Tensor | None]]


def _at_once(
    call: operator.Call, kept: list[operator.Kept], incoming: list[operator.Incoming], wanted: list[list[bool]]
) -> Found:
    needs = [operator.needs_of(of, any(of[len(Operands._fields) :])) for of in wanted]
    of_all = [any(each) for each in zip(*needs, strict=True)]
    of_all[0] = needs[0].x
    given = [each.given() for each in kept]
    with without_autocast(given[0].x):  # the operands have been cast already
        computed = cpu.layers_backward(
            incoming, given, [each.results for each in kept], lookup(call.cell), operator.Needs(*of_all)
        )
    return [operator.in_order(each.operands, grads, of) for each, grads, of in zip(kept, computed, wanted, strict=True)]


def _one_by_one(
    call: operator.Call, kept: list[operator.Kept], incoming: list[operator.Incoming], wanted: list[list[bool]]
) -> Found:
    found: Found = []
    above: Tensor | None = None  # the gradient of the input of the layer above
    for number in reversed(range(len(kept))):
        grad = incoming[number].output
        grad = above if grad is None else grad if above is None else grad + above
        of = [wanted[number][0] or number > 0, *wanted[number][1:]]
        found.append(operator.differentiate(call, kept[number], (grad, *incoming[number][1:]), of))
        above = found[-1][0]
    return found[::-1]
