"""Whole layers in one call of a vendor's library: oneDNN's LSTM on the CPU, cuDNN's four cells on CUDA.

Shapes: T time steps, B batch, I input size, H hidden size, G gates.

torch reaches these through ``torch.lstm`` and its like, which torch.compile cannot keep whole and autograd cannot
differentiate twice. Wrapped here as one operator they can be both; the arithmetic is the library's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prnn.ops import cells, composite, gradients
from prnn.ops.operator import operator


def run(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    cell: str,
    library: str,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """x [T,B,I] -> output [T,B,H], h_n [B,H], c_n [B,H] or None, by the ``library`` the table of backends chose."""
    tensors = (x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0)
    save = gradients.wanted(tensors)
    output, h_n, c_n, _, _ = torch.ops.prnn.library_layer.default(*tensors, cell, library, reverse, save)
    return output, h_n, None if c0 is None else c_n


@operator("prnn::library_layer")
def library_layer(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    cell: str,
    library: str,
    reverse: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x [T,B,I] -> output [T,B,H], h_n [B,H], c_n [B,H] (empty without c), and the library's two reserves."""
    spec = cells.CELLS[cell]
    hidden_size = h0.shape[1]
    weights = _weights(weight_ih, weight_hh, bias_ih, bias_hh)
    if library == "onednn":
        assert c0 is not None
        # torch keeps the workspace of the backward pass only where grad mode is on; no graph is recorded in here.
        with torch.set_grad_enabled(save):
            output, h_n, c_n, workspace = torch.ops.aten.mkldnn_rnn_layer.default(
                x.contiguous(), *weights, h0.contiguous(), c0.contiguous(), reverse, [], spec.torch_mode,
                hidden_size, 1, True, False, False, save,
            )  # fmt: skip
        return output, h_n.view_as(h0), c_n.view_as(c0), workspace if save else x.new_empty(0), x.new_empty(0)
    given = x.flip(0) if reverse else x.contiguous()
    output, h_n, c_n, reserve, weight_buffer = torch.ops.aten._cudnn_rnn.default(
        given, weights, 4, None, h0.unsqueeze(0).contiguous(), None if c0 is None else c0.unsqueeze(0).contiguous(),
        spec.torch_mode, hidden_size, 0, 1, False, 0.0, save, False, [], None,
    )  # fmt: skip
    output = output.flip(0) if reverse else output
    return output, h_n.squeeze(0), x.new_empty(0) if c0 is None else c_n.squeeze(0), reserve, weight_buffer


def _weights(weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor | None, bias_hh: Tensor | None) -> list[Tensor]:
    """The four weights of a layer, contiguous; zeros for absent biases, which the libraries' gradients want."""
    zeros = weight_hh.new_zeros(weight_hh.shape[0]) if bias_ih is None or bias_hh is None else None
    biases = (zeros if bias_ih is None else bias_ih, zeros if bias_hh is None else bias_hh)
    return [weight.contiguous() for weight in (weight_ih, weight_hh, *biases) if weight is not None]


@torch.library.register_fake("prnn::library_layer")
def _(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    cell: str,
    library: str,
    reverse: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    def reserve() -> Tensor:
        return x.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.uint8)

    workspace = reserve() if save or library == "cudnn" else x.new_empty(0)
    weight_buffer = x.new_empty(torch.library.get_ctx().new_dynamic_size()) if library == "cudnn" else x.new_empty(0)
    return (
        x.new_empty((*x.shape[:2], h0.shape[1])),
        h0.new_empty(h0.shape),
        x.new_empty(0) if c0 is None else c0.new_empty(c0.shape),
        workspace,
        weight_buffer,
    )


@operator("prnn::library_layer_backward")
def library_layer_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    output: Tensor,
    h_n: Tensor,
    c_n: Tensor,
    workspace: Tensor,
    weight_buffer: Tensor,
    cell: str,
    library: str,
    reverse: bool,
) -> list[Tensor]:
    """Gradients of x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0; an empty tensor for an argument that is None."""
    spec = cells.CELLS[cell]
    hidden_size = h0.shape[1]
    weights = _weights(weight_ih, weight_hh, bias_ih, bias_hh)
    if library == "onednn":
        assert c0 is not None
        d_x, d_ih, d_hh, d_bias_ih, d_bias_hh, d_h0, d_c0 = torch.ops.aten.mkldnn_rnn_layer_backward.default(
            x.contiguous(), *weights, h0.contiguous(), c0.contiguous(), output, h_n, c_n,
            grad_output, grad_h_n, grad_c_n, reverse, spec.torch_mode, hidden_size, 1, True, True, False, [], False,
            workspace,
        )  # fmt: skip
        grads = [d_x, d_ih, d_hh, d_bias_ih, d_bias_hh.clone(), d_h0.view_as(h0), d_c0.view_as(c0)]
    else:
        given, result = (x.flip(0), output.flip(0)) if reverse else (x.contiguous(), output)
        if grad_output is not None and reverse:
            grad_output = grad_output.flip(0)
        d_x, d_h0, d_c0, d_weights = torch.ops.aten._cudnn_rnn_backward.default(
            given, weights, 4, weight_buffer, h0.unsqueeze(0).contiguous(),
            None if c0 is None else c0.unsqueeze(0).contiguous(), result,
            None if grad_output is None else grad_output.contiguous(),
            None if grad_h_n is None else grad_h_n.unsqueeze(0).contiguous(),
            None if grad_c_n is None else grad_c_n.unsqueeze(0).contiguous(),
            spec.torch_mode, hidden_size, 0, 1, False, 0.0, True, False, [], None, workspace, [True] * 4,
        )  # fmt: skip
        # The weights' gradients are views into one buffer; an operator's results may not share memory.
        grads = [
            d_x.flip(0) if reverse else d_x,
            *(weight.clone() for weight in d_weights),
            d_h0.squeeze(0),
            d_c0 if c0 is None else d_c0.squeeze(0),
        ]
    inputs = (x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0)
    return [x.new_empty(0) if given is None else grad for given, grad in zip(inputs, grads, strict=True)]


@torch.library.register_fake("prnn::library_layer_backward")
def _(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    output: Tensor,
    h_n: Tensor,
    c_n: Tensor,
    workspace: Tensor,
    weight_buffer: Tensor,
    cell: str,
    library: str,
    reverse: bool,
) -> list[Tensor]:
    inputs = (x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0)
    return [x.new_empty(0) if given is None else given.new_empty(given.shape) for given in inputs]


def _setup_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.cell, ctx.library, ctx.reverse, _ = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(*output[3:])
    ctx.set_materialize_grads(False)


def _differentiate_forward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    *inputs, output, h_n, c_n, workspace, weight_buffer = ctx.saved_tensors
    grad_output, grad_h_n, grad_c_n = grads[:3]
    found = torch.ops.prnn.library_layer_backward.default(
        grad_output, grad_h_n, grad_c_n if inputs[-1] is not None else None, *inputs,
        output, h_n, c_n, workspace, weight_buffer, ctx.cell, ctx.library, ctx.reverse,
    )  # fmt: skip
    return *(None if x is None else grad for x, grad in zip(inputs, found, strict=True)), None, None, None, None


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    *tensors, ctx.cell, _, ctx.reverse = inputs
    ctx.save_for_backward(*tensors[:10])


def _differentiate_backward(ctx: Any, grads_of_grads: list[Tensor | None]) -> tuple[Any, ...]:
    saved = ctx.saved_tensors

    def equations(*inputs: Any) -> tuple[Tensor | None, ...]:
        return composite.layer(*inputs, cell=ctx.cell, reverse=ctx.reverse)

    return *gradients.second_order(equations, saved[3:], saved[:3], grads_of_grads), *(None,) * 8


torch.library.register_autograd("prnn::library_layer", _differentiate_forward, setup_context=_setup_forward)
torch.library.register_autograd("prnn::library_layer_backward", _differentiate_backward, setup_context=_setup_backward)
