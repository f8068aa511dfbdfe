"""The recurrence operator: ``torch.ops.prnn.recurrence``, its gradients of every order, its fake kernels.

Shapes: T time steps, B batch, H hidden size, P projected size (H without projection), G gates (RNN 1, GRU 3, LSTM 4).

Two dispatcher operators, forward and backward, each opaque to torch.compile, step through time with torch's own
kernels (the `torch` backend); the native kernels have operators of their own (``native_layer``). The backward of the
backward goes through the reference equations, which autograd can differentiate as often as it is asked to. Under
functorch transforms (vmap, jvp, torch.func.grad) the reference equations run directly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prnn.ops import backends, cells, gradients, native_layer, reference, stepwise
from prnn.ops.gradients import SerialGradients
from prnn.ops.operator import operator


def recurrence(
    gates_x: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    cell: str,
    *,
    weight_hr: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run one layer's recurrence over all time steps, given the input's share of the gates.

    Args:
        gates_x: [T,B,G*H], ``x_t weight_ih^T + bias_ih`` for every step; gate order as in torch.nn.
        weight_hh: [G*H,P].
        bias_hh: [G*H] or None. Apart from gates_x because GRU's reset gate acts on ``h weight_hh^T + bias_hh``.
        h0: [B,P]; c0: [B,H] for LSTM, None for the others.
        lengths: [B] integers or None. Steps at or past a sample's length leave its state alone, give zero
            output and take no gradient.
        resets: [T,B] booleans or None. ``resets[t, b]`` zeroes the state of sample b before step t.
        cell: "rnn_tanh", "rnn_relu", "gru" or "lstm".
        weight_hr: [P,H] or None; LSTM with projection (Sak et al., 2014).

    Returns:
        output [T,B,P], h_n [B,P], c_n [B,H] (None for cells without c).

    Differentiable, to any order, in gates_x, weight_hh, bias_hh, h0, c0 and weight_hr. float32, float64, and
    bfloat16 and float16 with accumulation and cell state in float32. The same call gives the same bits.

    Raises:
        ValueError: a shape, dtype or device that does not fit the others, or an unknown cell.
    """
    check_operands(gates_x, weight_hh, bias_hh, h0, c0, lengths, resets, cell, weight_hr)
    if gates_x.shape[2] != weight_hh.shape[0]:
        raise ValueError(f"gates_x must be [T,B,{weight_hh.shape[0]}] to go with weight_hh, got {list(gates_x.shape)}")
    if autocast_enabled(gates_x):
        with torch.autocast(gates_x.device.type, enabled=False):  # it would cast what must accumulate in float32
            return recurrence(gates_x, weight_hh, bias_hh, h0, c0, lengths, resets, cell, weight_hr=weight_hr)
    choice = backends.choose(backends.Request.of(gates_x, weight_hh, cell, lengths, resets, weight_hr))
    return run(gates_x, weight_hh, bias_hh, h0, c0, lengths, resets, cell, weight_hr, choice.backend)


def run(
    gates_x: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    cell: str,
    weight_hr: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """``recurrence`` on a backend already chosen, its arguments already checked."""
    if backend == "reference" or torch._C._are_functorch_transforms_active():
        return reference.recurrence(gates_x, weight_hh, bias_hh, h0, c0, lengths, resets, weight_hr, cell)
    if backend in ("cpu", "cuda"):
        state = None if c0 is None else c0.unsqueeze(0)
        weights = (None, weight_hh, None, bias_hh)
        output, h_n, c_n = native_layer.run(gates_x, weights, h0.unsqueeze(0), state, lengths, resets, cell)
        return output, h_n.squeeze(0), None if c_n is None else c_n.squeeze(0)
    save = gradients.wanted((gates_x, weight_hh, bias_hh, h0, c0, weight_hr))
    output, h_n, c_n, _ = torch.ops.prnn.recurrence.default(
        gates_x, weight_hh, bias_hh, h0, c0, lengths, resets, weight_hr, cell, save
    )
    return output, h_n, c_n if cells.CELLS[cell].has_c else None


def autocast_enabled(x: Tensor) -> bool:
    """Whether autocast is on where x is; it knows nothing of some devices, such as "meta", and says so by an error."""
    if x.is_cpu:  # the shortest way: asking for the name of the device and about it takes 8 us of a call
        return torch.is_autocast_enabled("cpu")
    if x.is_cuda:  # torch.compile of torch 2.11 does not trace the question below
        return torch.is_autocast_enabled("cuda")
    return torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type)


_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_operands(
    x: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    cell: str,
    weight_hr: Tensor | None,
    weight_ih: Tensor | None = None,
    bias_ih: Tensor | None = None,
) -> None:
    """Raise ValueError unless everything fits x [T,B,*] and weight_hh [G*H,P] in shape, dtype, layout and device."""
    spec = cells.lookup(cell)
    if weight_hr is not None and not spec.has_c:
        raise ValueError(f"weight_hr (a projection) goes with an LSTM, not with {cell}")
    if spec.has_c != (c0 is not None):
        raise ValueError(f"cell {cell} {'needs' if spec.has_c else 'takes no'} c0")
    for name, given, form, dims in (("x", x, "[T,B,*]", 3), ("weight_hh", weight_hh, "[G*H,*]", 2)):
        if given.dim() != dims:
            raise ValueError(f"{name} must be {form}, got {list(given.shape)}")
    if weight_hr is not None and weight_hr.dim() != 2:
        raise ValueError(f"weight_hr must be [P,H], got {list(weight_hr.shape)}")
    if x.dtype not in _FLOATS:
        raise ValueError(f"the input must be float32, float64, bfloat16 or float16, got {x.dtype}")
    T, B, I = x.shape
    rows = weight_hh.shape[0]
    H = rows // spec.gates
    P = H if weight_hr is None else weight_hr.shape[0]
    expected: list[tuple[str, Tensor | None, tuple[int, ...]]] = [
        ("x", x, (T, B, I)),
        ("weight_ih", weight_ih, (rows, I)),
        ("bias_ih", bias_ih, (rows,)),
        ("weight_hh", weight_hh, (spec.gates * H, P)),
        ("bias_hh", bias_hh, (rows,)),
        ("h0", h0, (B, P)),
        ("weight_hr", weight_hr, (P, H)),
        ("c0", c0, (B, H)),
        ("lengths", lengths, (B,)),
        ("resets", resets, (T, B)),
    ]
    for name, tensor, shape in expected:
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(f"{name} must be {list(shape)} for cell {cell} with H={H}, got {list(tensor.shape)}")
        if tensor.layout != torch.strided:
            raise ValueError(f"{name} must be a dense tensor, got {tensor.layout}")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, the input on {x.device}")
        if name not in ("lengths", "resets", "c0") and tensor.dtype != x.dtype:
            raise ValueError(f"{name} is {tensor.dtype}, the input is {x.dtype}")
    if c0 is not None and c0.dtype not in _FLOATS:
        raise ValueError(f"c0 must be of floating point, got {c0.dtype}")
    if lengths is not None and (lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool):
        raise ValueError(f"lengths must be integers, got {lengths.dtype}")
    if resets is not None and resets.dtype != torch.bool:
        raise ValueError(f"resets must be booleans, got {resets.dtype}")


@operator("prnn::recurrence")
def _forward(
    gates_x: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    weight_hr: Tensor | None,
    cell: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """output, h_n, c_n (empty for cells without c), and what is saved for the backward pass."""
    output, h_n, c_n, saved = stepwise.forward(
        gates_x, weight_hh, bias_hh, h0, c0, lengths, resets, weight_hr, cell, save
    )
    # An operator's results may alias neither its arguments (T = 0) nor each other.
    h_n, c_n = h_n.clone(), None if c_n is None else c_n.clone()
    return output, h_n, gates_x.new_empty(0) if c_n is None else c_n, saved


@torch.library.register_fake("prnn::recurrence")
def _(
    gates_x: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    weight_hr: Tensor | None,
    cell: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    spec = cells.CELLS[cell]
    T, B, rows = gates_x.shape
    shape = stepwise.saved_shape(spec, T, B, rows // spec.gates, save)
    return (
        gates_x.new_empty((T, *h0.shape)),
        h0.new_empty(h0.shape),
        gates_x.new_empty(0) if c0 is None else c0.new_empty(c0.shape),
        gates_x.new_empty(shape, dtype=reference.compute_dtype(gates_x.dtype)),
    )


@operator("prnn::recurrence_backward")
def _backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    gates_x: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    weight_hr: Tensor | None,
    output: Tensor,
    saved: Tensor,
    cell: str,
) -> list[Tensor]:
    """Gradients of gates_x, weight_hh, bias_hh, h0, c0, weight_hr; an empty tensor for an argument that is None."""
    inputs = (gates_x, weight_hh, bias_hh, h0, c0, weight_hr)
    serial = stepwise.backward(
        grad_output, grad_h_n, grad_c_n, weight_hh, h0, c0, lengths, resets, weight_hr, output, saved, cell
    )
    grads = _all_gradients(serial, inputs, output, saved, resets)
    return [gates_x.new_empty(0) if grad is None else grad for grad in grads]


def _all_gradients(
    serial: SerialGradients, inputs: tuple[Tensor | None, ...], output: Tensor, saved: Tensor, resets: Tensor | None
) -> list[Tensor | None]:
    _, weight_hh, bias_hh, h0, c0, weight_hr = inputs
    assert weight_hh is not None and h0 is not None
    grad_weight_hr = None
    if weight_hr is not None and serial.projected is not None:
        grad_weight_hr = gradients.weight_hr(serial.projected, saved, weight_hr.shape[1])
    grad_bias = None
    if bias_hh is not None:
        # A sum, even of T = B = 1, is a copy: an operator's results may not share memory with each other.
        grad_bias = serial.gates_h.sum((0, 1))
    return [
        serial.gates_x,
        gradients.weight_hh(serial.gates_h, output, h0, resets),
        grad_bias,
        serial.h0.to(h0.dtype),
        None if c0 is None or serial.c0 is None else serial.c0.to(c0.dtype),
        grad_weight_hr,
    ]


@torch.library.register_fake("prnn::recurrence_backward")
def _(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    gates_x: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    weight_hr: Tensor | None,
    output: Tensor,
    saved: Tensor,
    cell: str,
) -> list[Tensor]:
    inputs = (gates_x, weight_hh, bias_hh, h0, c0, weight_hr)
    return [gates_x.new_empty(0) if x is None else x.new_empty(x.shape) for x in inputs]


def _setup_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.cell, _ = inputs
    ctx.save_for_backward(*tensors, output[0], output[3])
    ctx.mark_non_differentiable(output[3])
    ctx.set_materialize_grads(False)


def _differentiate_forward(
    ctx: Any, grad_output: Tensor | None, grad_h_n: Tensor | None, grad_c_n: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    gates_x, weight_hh, bias_hh, h0, c0, lengths, resets, weight_hr, output, saved = ctx.saved_tensors
    if c0 is None:
        grad_c_n = None
    if grad_output is None and grad_h_n is None and grad_c_n is None:
        return (None,) * 10
    grads = torch.ops.prnn.recurrence_backward.default(
        grad_output, grad_h_n, grad_c_n, gates_x, weight_hh, bias_hh, h0, c0, lengths, resets, weight_hr,
        output, saved, ctx.cell,
    )  # fmt: skip
    inputs = (gates_x, weight_hh, bias_hh, h0, c0, weight_hr)
    d_gates_x, d_weight_hh, d_bias_hh, d_h0, d_c0, d_weight_hr = (
        None if x is None else grad for x, grad in zip(inputs, grads, strict=True)
    )
    return d_gates_x, d_weight_hh, d_bias_hh, d_h0, d_c0, None, None, d_weight_hr, None, None


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    *tensors, ctx.cell = inputs
    ctx.save_for_backward(*tensors[:11])


def _differentiate_backward(ctx: Any, grads_of_grads: list[Tensor | None]) -> tuple[Any, ...]:
    """Second order: the gradient of ``_backward``, as a function of its incoming gradients and of the inputs.

    ``output`` and ``saved`` are functions of the inputs too: the reference recomputes them, so the inputs get the
    total derivative, and those two get none.
    """
    grad_output, grad_h_n, grad_c_n, *inputs, lengths, resets, weight_hr = ctx.saved_tensors

    def equations(*variables: Tensor | None) -> tuple[Tensor | None, ...]:
        gates_x, weight_hh, bias_hh, h0, c0, weight_hr = variables
        assert gates_x is not None and weight_hh is not None and h0 is not None
        return reference.recurrence(gates_x, weight_hh, bias_hh, h0, c0, lengths, resets, weight_hr, ctx.cell)

    *grads, d_weight_hr = gradients.second_order(
        equations, (*inputs, weight_hr), (grad_output, grad_h_n, grad_c_n), grads_of_grads
    )
    return (*grads, None, None, d_weight_hr, None, None, None)


torch.library.register_autograd("prnn::recurrence", _differentiate_forward, setup_context=_setup_forward)
torch.library.register_autograd("prnn::recurrence_backward", _differentiate_backward, setup_context=_setup_backward)
