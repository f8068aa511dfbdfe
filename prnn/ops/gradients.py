"""From the serial part of a backward pass to all gradients: the weights' by one matrix product over all steps.

Shapes: T time steps, B batch, I input size, H hidden size, P projected size (H without projection), G gates.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prnn.codegen.gradients import differentiate
from prnn.ops.operands import Weights


class Sequences(NamedTuple):
    """One direction, in the order of time or, with ``reverse``, each sample from its last step to its first."""

    x: Tensor  # [T,B,I]
    output: Tensor  # [T,B,P]
    h0: Tensor  # [B,P]
    lengths: Tensor | None
    resets: Tensor | None
    reverse: bool = False


def of_weights(gates_x: Tensor, gates_h: Tensor, weights: Weights, run: Sequences) -> Weights:
    """The gradients of ``weights``, but for weight_hr, from those of the gates at each step, [T,B,G*H].

    Steps past a sample's length hold zeros. A sum, even of T = B = 1, is a copy: results share no memory.
    """
    d_weight_ih = None if weights.weight_ih is None else gates_x.flatten(0, 1).t() @ run.x.flatten(0, 1)
    d_bias_ih = None if weights.bias_ih is None else gates_x.flatten(0, 1).sum(0)
    d_bias_hh = None if weights.bias_hh is None else gates_h.sum((0, 1))
    return Weights(d_weight_ih, weight_hh(gates_h, run, weights.weight_hh.shape[1]), d_bias_ih, d_bias_hh)


def weight_hh(gates_h: Tensor, run: Sequences, columns: int) -> Tensor:
    """sum_t gates_h[t]^T h_before(t): gates_h [T,B,G*H] -> [G*H,P]; of diagonal blocks, of fewer ``columns``: [G*H,K].

    In reverse, the state before t is the output at t + 1, or h0 at a sample's last step.
    """
    output, h0, resets = run.output, run.h0, run.resets
    T = output.shape[0]
    if T == 0:
        return gates_h.new_zeros((gates_h.shape[2], columns))
    previous = output[1:] if run.reverse else output[:-1]
    if resets is not None:
        previous = previous.masked_fill(resets[1:].unsqueeze(-1), 0)
    if not run.reverse:
        first, rest = gates_h[0], gates_h[1:]
        if resets is not None:
            h0 = h0.masked_fill(resets[0].unsqueeze(-1), 0)
    else:
        first, rest = gates_h[-1], gates_h[:-1]
        if run.lengths is not None:  # a sample without steps has zeros everywhere
            last = (run.lengths.clamp(1, T) - 1).reshape(1, -1, 1).expand(1, -1, gates_h.shape[2])
            first = gates_h.gather(0, last)[0]
    if columns != h0.shape[1]:
        return _of_blocks(torch.cat((first, rest.flatten(0, 1))), torch.cat((h0, previous.flatten(0, 1))), columns)
    return torch.addmm(first.t() @ h0, rest.flatten(0, 1).t(), previous.flatten(0, 1))


def _of_blocks(gates: Tensor, states: Tensor, K: int) -> Tensor:
    """The diagonal blocks of K columns of gates^T states, of each gate: [N,G*H], [N,H] -> [G*H,K]."""
    (N, H), rows = states.shape, gates.shape[1]
    if K == 0:
        return gates.new_zeros((rows, 0))
    G = rows // H
    if K == 1:
        return (gates.float().view(N, G, H) * states.float().unsqueeze(1)).sum(0).view(rows, 1).to(gates.dtype)
    of_heads = gates.view(N, G, H // K, K).permute(2, 1, 3, 0).flatten(1, 2)  # [heads,G*K,N]
    blocks = of_heads @ states.view(N, H // K, K).transpose(0, 1)
    return blocks.view(H // K, G, K, K).transpose(0, 1).reshape(rows, K)


def second_order(
    function: Callable[..., Sequence[Tensor | None]],
    inputs: Sequence[Tensor | None],
    grad_outputs: Sequence[Tensor | None],
    grads_of_grads: Sequence[Tensor | None],
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Differentiate a backward pass: the vector-Jacobian product of ``function``, itself differentiated.

    The backward pass took ``grad_outputs`` and ``inputs`` and gave the gradients of ``inputs``, whose own gradients
    are ``grads_of_grads``. Returns the gradients of ``grad_outputs`` and of ``inputs``; differentiable in turn
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
    """``torch.autograd.grad`` that passes over None: an absent output, or one without an incoming gradient."""
    pairs = [(y, g) for y, g in zip(outputs, grad_outputs, strict=True) if y is not None and g is not None]
    present = [x for x in inputs if x is not None]
    computed = iter(
        torch.autograd.grad(
            [y for y, _ in pairs], present, [g for _, g in pairs], create_graph=create_graph, materialize_grads=True
        )
    )
    return [None if x is None else next(computed) for x in inputs]


def pulled_back(function: Callable[[Tensor], Tensor | None], x: Tensor) -> tuple[Tensor | None, Callable[..., Tensor]]:
    """``function(x)``, and the function that gives the gradient of x from that of the value (None: zero).

    For operators of the dispatcher, in which autograd is excluded.
    """
    with torch._C._ForceDispatchKeyGuard(*_default_dispatch()), torch.enable_grad():
        leaf = x.detach().requires_grad_()
        value = function(leaf)

    def gradient(grad: Tensor | None) -> Tensor:
        if grad is None or value is None or not value.requires_grad:
            return torch.zeros_like(x)
        with torch._C._ForceDispatchKeyGuard(*_default_dispatch()):
            (result,) = differentiate([value], [grad], [leaf])
        return torch.zeros_like(x) if result is None else result

    return None if value is None else value.detach(), gradient


@functools.cache
def _default_dispatch() -> tuple[Any, Any]:
    """The dispatch keys of a thread in which no mode is on."""
    found: list[tuple[Any, Any]] = []

    def read() -> None:
        found.append((torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()))

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    return found[0]
