"""Whole layers in one call of the native kernels, one direction or both: ``torch.ops.prnn_native``.

Shapes: T time steps, B batch, I input size, H hidden size, G gates, S saved; D directions.

The operators do the input's projection, the recurrence, and in the backward pass the weights' gradients as well: on
the CPU all of it in the kernels (csrc/bindings.cpp), on a GPU as ``cuda_layer`` says. Here they get their derivatives
of every order and their fake kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prnn.ops import (
    cells,
    composite,
    cuda_layer,  # noqa: F401  (registers the operators' implementations on a GPU)
    gradients,
    native,
)

# weight_ih, weight_hh, bias_ih, bias_hh of one direction
Weights = tuple[Tensor | None, Tensor, Tensor | None, Tensor | None]


def run(
    x: Tensor,
    weights: Weights,
    h0: Tensor,
    c0: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    cell: str,
    reverse: bool = False,
    backward_weights: Weights | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """x [T,B,I] -> output [T,B,D*H], h_n [D,B,H], c_n [D,B,H] or None; h0, c0 [D,B,H].

    Without weight_ih x is the input's share of the gates, [T,B,G*H]. ``backward_weights`` are those of the second,
    reversed direction; ``reverse`` turns a single direction round.
    """
    second = (None, None, None, None) if backward_weights is None else backward_weights
    state = c0 if c0 is None or c0.dtype == torch.float32 else c0.float()  # the cell state is float32 whatever c0 is
    if lengths is not None and lengths.dtype != torch.int64:
        lengths = lengths.to(torch.int64)
    # A graph that is exported may be given gradients later on, whatever mode it is traced in.
    save = gradients.wanted((x, *weights, h0, c0, *second)) or torch.compiler.is_exporting()
    arguments = (x, *weights, h0, state, lengths, resets, *second, native.cell_id(cell), reverse, save)
    if torch.compiler.is_compiling() or torch.compiler.is_exporting():
        output, h_n, c_n, _ = torch.ops.prnn_native.differentiable_forward.default(*arguments)
    elif save:
        output, h_n, c_n = _Layer.apply(*arguments)
    else:
        output, h_n, c_n, _ = torch.ops.prnn_native.layer_forward.default(*arguments)
    if c0 is None:
        return output, h_n, None
    return output, h_n, c_n if c_n.dtype == c0.dtype else c_n.to(c0.dtype)


class _Layer(torch.autograd.Function):
    """The same derivatives as those registered for the operator below, at a third of the cost of a call: 40 instead
    of 140 us on a 2.4 GHz Zen 3, where a layer of 8 units takes 2 us a step.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        output, h_n, c_n, saved = torch.ops.prnn_native.layer_forward.default(*arguments)
        _setup_forward(ctx, arguments, (output, h_n, c_n, saved))
        return output, h_n, c_n

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return _differentiate_forward(ctx, *grads)


def _fake_forward(x: Tensor, *operands: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    h0, c0, cell, save = operands[4], operands[5], cells.CELLS[native.cells()[operands[12]]], operands[14]
    T, B, _ = x.shape
    directions, _, hidden_size = h0.shape
    saved = (directions, T, B, cell.saved_size * hidden_size) if save and cell.saved_size else (0,)
    return (
        x.new_empty((T, B, directions * hidden_size)),
        h0.new_empty(h0.shape),
        x.new_empty(0) if c0 is None else c0.new_empty(c0.shape),
        x.new_empty(saved),
    )


def _fake_backward(*operands: Any) -> list[Tensor]:
    x, *rest = operands[3:16]
    need_x, need_weights = operands[-2:]
    weights, state, second = rest[:4], rest[4:6], rest[8:]

    def like(tensor: Tensor | None, wanted: bool) -> Tensor:
        return x.new_empty(0) if tensor is None or not wanted else tensor.new_empty(tensor.shape)

    return [
        like(x, need_x),
        *(like(weight, need_weights) for weight in weights),
        *(like(tensor, True) for tensor in state),
        *(like(weight, need_weights) for weight in second),
    ]


def _setup_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.cell, ctx.reverse, _ = inputs
    ctx.save_for_backward(*tensors, output[0], output[3])
    ctx.set_materialize_grads(False)


# Where the differentiable operands stand among the thirteen, and what the backward operator gives for them.
_DIFFERENTIABLE = (0, 1, 2, 3, 4, 5, 6, 9, 10, 11, 12)


def _differentiate_forward(
    ctx: Any, grad_output: Tensor | None, grad_h_n: Tensor | None, grad_c_n: Tensor | None, *_: Tensor | None
) -> tuple[Tensor | None, ...]:
    *operands, output, saved = ctx.saved_tensors
    if operands[6] is None:
        grad_c_n = None
    found: list[Tensor | None] = [None] * 16
    if grad_output is None and grad_h_n is None and grad_c_n is None:
        return tuple(found)
    needs = ctx.needs_input_grad
    twice = torch.is_grad_enabled()  # is this backward pass to be differentiated in turn?
    native_ops = torch.ops.prnn_native
    backward = native_ops.differentiable_backward if twice else native_ops.layer_backward
    grads = backward.default(
        grad_output, grad_h_n, grad_c_n, *operands, output, saved, ctx.cell, ctx.reverse,
        twice or needs[0], twice or any(needs[i] for i in (1, 2, 3, 4, 9, 10, 11, 12)),
    )  # fmt: skip
    for i, grad in zip(_DIFFERENTIABLE, grads, strict=True):
        if needs[i]:
            found[i] = grad
    return tuple(found)


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    *tensors, ctx.cell, ctx.reverse, _, _ = inputs
    ctx.save_for_backward(*tensors[:16])


def _differentiate_backward(ctx: Any, grads_of_grads: list[Tensor]) -> tuple[Any, ...]:
    """Second order: the gradient of the backward pass, as a function of its incoming gradients and of the operands.

    ``output`` and ``saved`` are functions of the operands too: the reference recomputes them, so the operands get the
    total derivative, and those two get none.
    """
    grad_output, grad_h_n, grad_c_n, *operands = ctx.saved_tensors
    lengths, resets = operands[7], operands[8]
    cell = native.cells()[ctx.cell]

    def equations(*variables: Any) -> tuple[Tensor | None, ...]:
        x, w_ih, w_hh, b_ih, b_hh, h0, c0, *second = variables
        options = {"cell": cell, "lengths": lengths, "resets": resets}
        c_first, c_second = (None, None) if c0 is None else (c0[0], c0[-1])
        output, h_n, c_n = composite.layer(x, w_ih, w_hh, b_ih, b_hh, h0[0], c_first, reverse=ctx.reverse, **options)
        if second[1] is None:
            return output, h_n[None], None if c_n is None else c_n[None]
        w_ih, w_hh, b_ih, b_hh = second
        last, h_last, c_last = composite.layer(x, w_ih, w_hh, b_ih, b_hh, h0[1], c_second, reverse=True, **options)
        both = None if c_n is None or c_last is None else torch.stack((c_n, c_last))
        return torch.cat((output, last), dim=-1), torch.stack((h_n, h_last)), both

    variables = [operands[i] for i in _DIFFERENTIABLE]
    grads = gradients.second_order(equations, variables, (grad_output, grad_h_n, grad_c_n), grads_of_grads)
    found: list[Tensor | None] = [*grads[:3], *[None] * 19]
    for i, grad in zip(_DIFFERENTIABLE, grads[3:], strict=True):
        found[3 + i] = grad
    return tuple(found)


def _setup_operator(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _setup_forward(ctx, inputs, output)
    ctx.mark_non_differentiable(output[3])


if native.status()[0]:
    for kind in ("layer", "differentiable"):
        torch.library.register_fake(f"prnn_native::{kind}_forward")(_fake_forward)
        torch.library.register_fake(f"prnn_native::{kind}_backward")(_fake_backward)
    torch.library.register_autograd(
        "prnn_native::differentiable_forward", _differentiate_forward, setup_context=_setup_operator
    )
    torch.library.register_autograd(
        "prnn_native::differentiable_backward", _differentiate_backward, setup_context=_setup_backward
    )
