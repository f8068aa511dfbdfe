"""The parallel part of a backward pass: the weights' gradients, as one matrix product over all steps.

Shapes: T time steps, B batch, I input size, H hidden size, P projected size (H without projection), G gates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from prnn.ops.operands import Weights


class Sequences(NamedTuple):
    """One direction, forward in time or, with ``reverse``, each sample from its last step to its first."""

    x: Tensor  # [T,B,I]
    output: Tensor  # [T,B,P]
    h0: Tensor  # [B,P]
    lengths: Tensor | None
    resets: Tensor | None
    reverse: bool = False


def of_weights(gates_x: Tensor, gates_h: Tensor, weights: Weights, sequences: Sequences) -> Weights:
    """The gradients of ``weights`` except weight_hr, from those of the gates at each step, [T,B,G*H].

    Steps past a sample's length hold zeros. A sum, even for T = B = 1, is a copy: results share no memory.
    """
    d_weight_ih = None if weights.weight_ih is None else gates_x.flatten(0, 1).t() @ sequences.x.flatten(0, 1)
    d_bias_ih = None if weights.bias_ih is None else gates_x.flatten(0, 1).sum(0)
    d_bias_hh = None if weights.bias_hh is None else gates_h.sum((0, 1))
    return Weights(d_weight_ih, weight_hh(gates_h, sequences), d_bias_ih, d_bias_hh)


def weight_hh(gates_h: Tensor, sequences: Sequences) -> Tensor:
    """sum_t gates_h[t]^T h_prev(t): gates_h [T,B,G*H] -> [G*H,P].

    In reverse, h_prev(t) is the output at t + 1, or h0 at a sample's last step.
    """
    output, h0, resets = sequences.output, sequences.h0, sequences.resets
    T = output.shape[0]
    if T == 0:
        return gates_h.new_zeros((gates_h.shape[2], h0.shape[1]))
    previous = output[1:] if sequences.reverse else output[:-1]
    if resets is not None:
        previous = previous.masked_fill(resets[1:].unsqueeze(-1), 0)
    if not sequences.reverse:
        first, rest = gates_h[0], gates_h[1:]
        if resets is not None:
            h0 = h0.masked_fill(resets[0].unsqueeze(-1), 0)
    else:
        first, rest = gates_h[-1], gates_h[:-1]
        if sequences.lengths is not None:  # a sample without steps has zeros everywhere
            last = (sequences.lengths.clamp(1, T) - 1).reshape(1, -1, 1).expand(1, -1, gates_h.shape[2])
            first = gates_h.gather(0, last)[0]
    return torch.addmm(first.t() @ h0, rest.flatten(0, 1).t(), previous.flatten(0, 1))


def second_order(
    function: Callable[..., Sequence[Tensor | None]],
    inputs: Sequence[Tensor | None],
    grad_outputs: Sequence[Tensor | None],
    grads_of_grads: Sequence[Tensor | None],
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Double backward of ``function``: the derivative of its vector-Jacobian product.

    The backward pass took ``grad_outputs`` and ``inputs`` and returned the gradients of ``inputs``, whose own
    gradients are ``grads_of_grads``. Returns the gradients of ``grad_outputs`` and of ``inputs``, differentiable in
    grad mode.
    """
    higher_order = torch.is_grad_enabled()
    device_type = next(x.device.type for x in inputs if x is not None)
    # The forward pass ran without autocast (its operands were cast beforehand), and so do its derivatives.
    with torch.enable_grad(), torch.autocast(device_type if device_type != "meta" else "cpu", enabled=False):
        # Fresh aliases: an input may have been computed from another one, and only the direct path counts here.
        variables = [
            None if x is None else (x.view_as(x) if higher_order and x.requires_grad else x.detach().requires_grad_())
            for x in (*grad_outputs, *inputs)
        ]
        count = len(grad_outputs)
        first = _grad(function(*variables[count:]), variables[count:], variables[:count], create_graph=True)
        second = _grad(first, variables, grads_of_grads, create_graph=higher_order)
    return second[:count], second[count:]


def _grad(
    outputs: Sequence[Tensor | None],
    inputs: Sequence[Tensor | None],
    grad_outputs: Sequence[Tensor | None],
    create_graph: bool,
) -> list[Tensor | None]:
    """``torch.autograd.grad`` that skips None: an absent output, or one without an incoming gradient."""
    pairs = [(y, g) for y, g in zip(outputs, grad_outputs, strict=True) if y is not None and g is not None]
    present = [x for x in inputs if x is not None]
    grads = iter(
        torch.autograd.grad(
            [y for y, _ in pairs], present, [g for _, g in pairs], create_graph=create_graph, materialize_grads=True
        )
    )
    return [None if x is None else next(grads) for x in inputs]
