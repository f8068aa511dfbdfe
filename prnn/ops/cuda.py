"""Layers on a GPU: the recurrence in prnn's own kernels, and before and after it large products, which are torch's.

Shapes: T time steps, B batch, I input size, H hidden size, G gates, S saved; D directions; of a cell written in Python
N parameters and M inputs. Both directions of a layer are one product and one launch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from prnn import cuda_plan, native
from prnn.cell_table import Cell
from prnn.cuda_plan import tf32
from prnn.ops import gradients
from prnn.ops.cpu import kernel_state, like_c0
from prnn.ops.operands import Gradients, Incoming, Needs, Operands, Results

Pass = TypeVar("Pass", bound=Callable[..., Any])


def _guarded(function: Pass) -> Pass:
    """The error of a call on a GPU that an earlier kernel has lost is that kernel's, whichever call notices."""

    @wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except RuntimeError as error:
            fault = native.cuda_fault()
            if fault is None:
                raise
            raise RuntimeError(fault) from error

    return run  # type: ignore[return-value]


@_guarded
def forward(operands: Operands, cell: Cell, reverse: bool, save: bool, regime: str = "") -> Results:
    """By the cheapest plan, of a regime if one is named."""
    gates_x = operands.x
    if operands.weight_ih is not None:
        bias = None if operands.bias_ih is None else _both(operands.bias_ih, operands.bias_ih_reverse)
        gates_x = F.linear(operands.x, _both(operands.weight_ih, operands.weight_ih_reverse), bias)
    o, (c0, lengths) = operands, kernel_state(operands)
    output, h_n, c_n, saved, hidden = _run(
        serial_forward, cell, o, gates_x, o.weight_hh, o.bias_hh, o.h0, c0, lengths, o.resets, o.weight_hh_reverse,
        o.bias_hh_reverse, _number(cell, o), reverse, save, tf32(), regime=regime, **_of_user(o),
    )  # fmt: skip
    return Results(output, h_n, like_c0(c_n, o.c0), saved, hidden)


@_guarded
def backward(
    incoming: Incoming, operands: Operands, results: Results, cell: Cell, reverse: bool, needs: Needs, regime: str = ""
) -> Gradients:
    o, (c0, lengths) = operands, kernel_state(operands)
    grad_c_n = None if incoming.c_n is None else incoming.c_n.float()
    of_user = _of_user(o) | {"hidden": results.auxiliary, "need_params": needs.params, "need_inputs": needs.inputs}
    grad_gates_x, grad_gates_h, grad_h0, grad_c0, grad_params, grad_inputs = _run(
        serial_backward, cell, o, incoming.output, incoming.h_n, grad_c_n, o.weight_hh, o.h0, c0, lengths, o.resets,
        o.weight_hh_reverse, results.output, results.saved, _number(cell, o), reverse, tf32(), regime=regime,
        **of_user,
    )  # fmt: skip
    if not grad_gates_h.numel():
        grad_gates_h = grad_gates_x
    grad_x = None
    if needs.x:
        grad_x = grad_gates_x
        if o.weight_ih is not None:
            grad_x = grad_gates_x @ _both(o.weight_ih, o.weight_ih_reverse)
    grads = Gradients(grad_x, h0=grad_h0, c0=like_c0(grad_c0, o.c0))
    rows, H = o.weight_hh.shape[0], o.h0.shape[2]
    hidden = results.auxiliary if results.auxiliary is not None and results.auxiliary.numel() else results.output
    for d, weights in enumerate(o.weights if needs.weights else ()):
        of_x, of_h = (grad[..., d * rows : (d + 1) * rows] for grad in (grad_gates_x, grad_gates_h))
        states = hidden[..., d * H : (d + 1) * H]
        run = gradients.Sequences(o.x, states, o.h0[d], lengths, o.resets, reverse or d == 1)
        of_weights = gradients.of_weights(of_x, of_h, weights, run)._asdict()
        grads = grads._replace(**{name + "_reverse" * d: grad for name, grad in of_weights.items()})
    if o.params is not None and needs.params:
        of_params = grad_params.sum(1)  # over the samples, by torch in an order that is always the same
        grads = grads._replace(params=of_params[0])
        if o.params_reverse is not None:
            grads = grads._replace(params_reverse=of_params[1])
    if o.inputs is not None and needs.inputs:
        of_inputs = grad_inputs[0] if len(grad_inputs) == 1 else grad_inputs.sum(0)
        grads = grads._replace(inputs=of_inputs.to(o.inputs.dtype))
    return grads


def _of_user(o: Operands) -> dict[str, Any]:
    """The arguments for a cell written in Python, of those that the cell has."""
    inputs = None if o.inputs is None else o.inputs.float()
    return {"params": o.params, "params_r": o.params_reverse, "inputs": inputs}


def _number(cell: Cell, operands: Operands) -> int:
    return cuda_plan.number(cell, max(operands.x.get_device(), 0))


def _run(function: Callable[..., Any], cell: Cell, operands: Operands, *arguments: Any, **options: Any) -> Any:
    x = operands.x
    return cuda_plan.with_kernels(cell, x.dtype, max(x.get_device(), 0), partial(function, *arguments, **options))


def serial_forward(*operands: Any, regime: str = "", **of_user: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The kernels' forward pass (csrc/bindings_cuda.cpp), on the multiprocessors that plans may use now."""
    return torch.ops.prnn_native.cuda_recurrence_forward(*operands, _multiprocessors(operands), regime, **of_user)


def serial_backward(*operands: Any, regime: str = "", **of_user: Any) -> tuple[Tensor, ...]:
    """grad_gates_x, grad_gates_h [T,B,D*G*H] (the latter empty where it is the former), grad_h0, grad_c0 (or empty); of
    the parameters for each sample, [D,B,N,H], and of the inputs for each direction, [D,T,B,M*H] (or empty).
    """
    return torch.ops.prnn_native.cuda_recurrence_backward(*operands, _multiprocessors(operands), regime, **of_user)


def _multiprocessors(operands: tuple[Any, ...]) -> int:
    device = next(x.get_device() for x in operands if isinstance(x, Tensor))
    return cuda_plan.multiprocessors(device)[0]


def _both(one: Tensor, other: Tensor | None) -> Tensor:
    return one if other is None else torch.cat((one, other))
