"""From the serial part of a backward pass to all gradients: the weights' by one GEMM over all steps.

Shapes: T time steps, B batch, H hidden size, P projected size (H without projection), G gates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class SerialGradients:
    """What a backend computes step by step, from the last step to the first.

    gates_x [T,B,G*H], gates_h [T,B,G*H] (the same tensor where the cell adds the two), projected [T,B,P] (the
    gradient of the projected output; None without projection), h0 [B,P], c0 [B,H] or None.
    Steps past a sample's length hold zeros.
    """

    gates_x: Tensor
    gates_h: Tensor
    projected: Tensor | None
    h0: Tensor
    c0: Tensor | None


def wanted(tensors: Sequence[Tensor | None]) -> bool:
    """Whether a backward pass through any of ``tensors`` may follow, so that its state is worth saving."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def weight_hh(
    gates_h: Tensor,
    output: Tensor,
    h0: Tensor,
    resets: Tensor | None,
    lengths: Tensor | None = None,
    reverse: bool = False,
) -> Tensor:
    """sum_t gates_h[t]^T h_before(t): gates_h [T,B,G*H], output [T,B,P], h0 [B,P], resets [T,B] -> [G*H,P].

    In reverse, the state before t is the output at t + 1, or h0 at a sample's last step.
    """
    T = output.shape[0]
    if T == 0:
        return gates_h.new_zeros((gates_h.shape[2], h0.shape[1]))
    previous = output[1:] if reverse else output[:-1]
    if resets is not None:
        previous = previous.masked_fill(resets[1:].unsqueeze(-1), 0)
    if not reverse:
        first, rest = gates_h[0], gates_h[1:]
        if resets is not None:
            h0 = h0.masked_fill(resets[0].unsqueeze(-1), 0)
    else:
        first, rest = gates_h[-1], gates_h[:-1]
        if lengths is not None:  # a sample without steps has zeros everywhere
            last = (lengths.clamp(1, T) - 1).reshape(1, -1, 1).expand(1, -1, gates_h.shape[2])
            first = gates_h.gather(0, last)[0]
    return torch.addmm(first.t() @ h0, rest.flatten(0, 1).t(), previous.flatten(0, 1))


def weight_hr(projected: Tensor, saved: Tensor, hidden_size: int) -> Tensor:
    """sum_t projected[t]^T (o_t tanh(c_t)): projected [T,B,P], saved [T,B,5H] of the LSTM -> [P,H]."""
    o, c = saved[..., 3 * hidden_size : 4 * hidden_size], saved[..., 4 * hidden_size :]
    unprojected = (o * torch.tanh(c)).to(projected.dtype)
    return projected.flatten(0, 1).t() @ unprojected.flatten(0, 1)


def second_order(
    function: Callable[..., tuple[Tensor | None, ...]],
    inputs: Sequence[Tensor | None],
    grad_outputs: Sequence[Tensor | None],
    grads_of_grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Differentiate a backward pass: the vector-Jacobian product of ``function``, itself differentiated.

    The backward pass took ``grad_outputs`` and ``inputs`` and gave the gradients of ``inputs``, whose own gradients
    are ``grads_of_grads``. Returns the gradients of ``grad_outputs``, then of ``inputs``; differentiable in turn
    where grad mode is on.
    """
    higher_order = torch.is_grad_enabled()
    device_type = next(x.device.type for x in inputs if x is not None)
    # The forward pass ran without autocast (its operands were cast before it), so its derivatives do.
    with torch.enable_grad(), torch.autocast(device_type if device_type != "meta" else "cpu", enabled=False):
        # Fresh aliases: an input may have been computed from another one, and only the direct path counts here.
        variables = [
            None if x is None else (x.view_as(x) if higher_order and x.requires_grad else x.detach().requires_grad_())
            for x in (*grad_outputs, *inputs)
        ]
        aliased_grads, aliased_inputs = variables[: len(grad_outputs)], variables[len(grad_outputs) :]
        first = _grad(function(*aliased_inputs), aliased_inputs, aliased_grads, create_graph=True)
        return _grad(first, variables, grads_of_grads, create_graph=higher_order)


def _grad(
    outputs: Sequence[Tensor | None],
    inputs: Sequence[Tensor | None],
    grad_outputs: Sequence[Tensor | None],
    create_graph: bool,
) -> list[Tensor | None]:
    """``torch.autograd.grad`` that passes over None: an absent output, or one without an incoming gradient."""
    pairs = [(y, g) for y, g in zip(outputs, grad_outputs, strict=True) if y is not None and g is not None]
    present = [x for x in inputs if x is not None]
    found = iter(
        torch.autograd.grad(
            [y for y, _ in pairs], present, [g for _, g in pairs], create_graph=create_graph, materialize_grads=True
        )
    )
    return [None if x is None else next(found) for x in inputs]
