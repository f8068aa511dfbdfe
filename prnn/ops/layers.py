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
from prnn.ops.operands import Operands, Results, Weights, check

# Larger batches are no wavefront (csrc/cpu/driver.cpp): one call for all layers would only keep more memory at a time,
# and so would outputs of more bytes.
_MOST_SAMPLES, _MOST_BYTES = 15, 64 << 20

State = tuple[Tensor, ...]
Gradients = list[Sequence[Tensor | None]]  # of each layer: those of its operands and derived parameters


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
        dropout: the probability with which an element of an input is zeroed, except for the first layer's.
        cell, lengths, resets, checked: as ``layer``.

    Returns:
        the last layer's output [T,B,D*P], and the final state of each layer.

    Raises:
        ValueError: as ``layer``.

    Example::

        output, ((h_1,), (h_2,)) = layers(x, [[weights_1], [weights_2]], [(h0,), (h0,)], "gru")
    """
    at_steps: Sequence[Tensor | None] = [None] * len(weights) if inputs is None else inputs
    of_layers = list(zip(weights, states, at_steps, strict=True))
    if run_together(x, weights, cell, lengths, resets, dropout, checked, states):
        operands = [Operands.of(x, of, state, lengths, resets, own) for of, state, own in of_layers]
        try:
            return _together(operands, cell)
        except RuntimeError:
            _check(operands, cell)  # a parameter that does not fit is named
            raise
    final = []
    for number, (of, state, own) in enumerate(of_layers):
        if number and dropout:
            x = F.dropout(x, dropout, training=True)
        x, last = layer(x, of, state, cell, lengths=lengths, resets=resets, inputs=own, checked=checked)
        final.append(last)
    return x, final


def run_together(
    x: Tensor,
    weights: Sequence[Sequence[Weights]],
    cell: str,
    lengths: Tensor | None,
    resets: Tensor | None,
    dropout: float,
    checked: bool,
    states: Sequence[State] = (),
) -> bool:
    """Whether ``layers`` runs these in one call, at the same time where that is faster. Under autocast, where operands
    are not ``checked``, it does not.
    """
    if len(weights) < 2 or len(weights[0]) != 1 or dropout or not checked or not x.is_cpu:
        return False
    if any(operator.traced(x, each[0].weight_hh) for each in weights):
        return False
    if exported.recording(x) or forward_ad._current_level >= 0 or x.shape[1] > _MOST_SAMPLES:
        return False
    requests = [Request.of(x, each[0], cell, lengths, resets) for each in weights]
    T, B, H = requests[0].T, requests[0].B, requests[0].H
    if len(weights) * T * B * H * x.element_size() > _MOST_BYTES:
        return False
    # As each layer would be asked about by itself, with the output of the one before as its x.
    depends = torch.is_grad_enabled() and x.requires_grad
    for number, request in enumerate(requests):
        asked = request._replace(gradients=request.gradients or depends)
        if choose(asked._replace(I=H) if number else asked).implementation != "cpu":
            return False
        operands = (*weights[number][0], *(states[number] if states else ()))
        depends |= torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in operands)
    return True


def _check(operands: list[Operands], cell: str) -> None:
    """Raise ValueError for what does not fit in any layer."""
    x = operands[0].x
    for of_layer in operands:
        check(of_layer._replace(x=x), lookup(cell))
        x = x.new_empty((*x.shape[:2], of_layer.h0.shape[2]))


def _together(operands: list[Operands], cell: str) -> tuple[Tensor, list[State]]:
    """``x`` of all operands is the input of the first layer."""
    derived = [operator.derived_of(each, lookup(cell)) for each in operands]
    arguments = [(*each, *more) for each, more in zip(operands, derived, strict=True)]
    differentiable = [[each is not None and each.requires_grad for each in of_layer] for of_layer in arguments]
    for of_layer in differentiable[1:]:
        of_layer[0] = False
    if torch.is_grad_enabled() and any(map(any, differentiable)):
        call = operator.Call(cell, False, "cpu", True)
        flat = compress(_last_first(arguments), _last_first(differentiable))
        results = _Layers.apply(call, operands, derived, differentiable, *flat)
    else:
        given = [operator.with_derived(*each) for each in zip(operands, derived, strict=True)]
        results = _flat(cpu.layers_forward(given, lookup(cell), save_from=len(operands)))
    count = len(operands)
    h_n, c_n = results[count : 2 * count], results[2 * count :]
    return results[count - 1], [(h,) if c is None else (h, c) for h, c in zip(h_n, c_n, strict=True)]


def _last_first(of_layers: Sequence[Sequence[Any]]) -> list[Any]:
    """Flat, the last layer's first: autograd adds up the gradients of a tensor that several layers share in the order
    of the arguments, and that of layers in calls of their own is this.
    """
    return [each for of_layer in reversed(of_layers) for each in of_layer]


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
        differentiable: list[list[bool]],
        *_: Tensor,
    ) -> Any:
        first = next(number for number, each in enumerate(differentiable) if any(each))
        given = [operator.with_derived(*each) for each in zip(operands, derived, strict=True)]
        results = cpu.layers_forward(given, lookup(call.cell), save_from=first)
        inputs = [operands[0].x, *(each.output for each in results)]
        kept = [*results[:-1], operator.with_lazy_clone(results[-1])]
        saved: list[Tensor | None] = []
        for number in range(first, len(operands)):
            of_layer = operands[number]._replace(x=inputs[number])
            saved += operator.Kept(of_layer, kept[number], derived[number]).flat(call.implementation)
        ctx.save_for_backward(*saved)
        ctx.mark_non_differentiable(*(each for each in _flat(results[:first]) if each is not None))
        ctx.set_materialize_grads(False)
        ctx.call, ctx.first, ctx.differentiable = call, first, differentiable[first:]
        return _flat(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = iter(ctx.needs_input_grad[4:])
        wanted = [[flag and next(needed) for flag in flags] for flags in reversed(ctx.differentiable)][::-1]
        saved, length = ctx.saved_tensors, operator.LENGTH
        kept = [operator.Kept.of(saved[i : i + length]) for i in range(0, len(saved), length)]
        of_results = [grads[number :: ctx.first + len(kept)] for number in range(ctx.first, ctx.first + len(kept))]
        incoming = [operator.incoming_of(each.operands, own) for each, own in zip(kept, of_results, strict=True)]
        lowest = next(number for number, each in enumerate(wanted) if any(each))
        end = max((number + 1 for number, each in enumerate(incoming) if not operator.is_absent(each)), default=0)
        gradients: Gradients = [(None,) * len(each) for each in wanted]
        if lowest < end:
            run = slice(lowest, end)
            inner = any(each.output is not None for each in incoming[lowest : end - 1])
            single = inner or any(map(operator.through_operator, kept[run], incoming[run]))
            compute = _one_by_one if single else _at_once
            gradients[run] = compute(ctx.call, kept[run], incoming[run], wanted[run])
        return None, None, None, None, *compress(_last_first(gradients), _last_first(ctx.differentiable))


def _at_once(
    call: operator.Call, kept: list[operator.Kept], incoming: list[operator.Incoming], wanted: list[list[bool]]
) -> Gradients:
    needs = [operator.needs_of(each, any(each[len(Operands._fields) :])) for each in wanted]
    operands, results = [each.given() for each in kept], [each.results for each in kept]
    with without_autocast(operands[0].x):  # the operands have been cast already
        computed = cpu.layers_backward(incoming, operands, results, lookup(call.cell), needs)
    return [operator.in_order(*each) for each in zip([of.operands for of in kept], computed, wanted, strict=True)]


def _one_by_one(
    call: operator.Call, kept: list[operator.Kept], incoming: list[operator.Incoming], wanted: list[list[bool]]
) -> Gradients:
    gradients: Gradients = []
    above: Tensor | None = None  # the gradient of the input of the layer above
    for number in reversed(range(len(kept))):
        grad = incoming[number].output
        grad = above if grad is None else grad if above is None else grad + above
        own = [wanted[number][0] or number > 0, *wanted[number][1:]]
        gradients.append(operator.differentiate(call, kept[number], (grad, *incoming[number][1:]), own))
        above = gradients[-1][0]
    return gradients[::-1]
