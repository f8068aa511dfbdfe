"""Layers by a vendor's library: oneDNN's LSTM on the CPU, cuDNN's cells on CUDA; one direction, no options. And a
few time steps by torch's own function (``few_steps``).

Shapes: T time steps, B batch, I input size, H hidden size.

torch reaches these through ``torch.lstm`` and its like, which torch.compile cannot keep whole and autograd cannot
differentiate twice. As implementations of prnn's operator they can be both; the arithmetic is the library's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from prnn.cell_table import Cell, Vendor
from prnn.ops.operands import Gradients, Incoming, Needs, Operands, Results, Saved, Weights


def onednn_forward(operands: Operands, cell: Cell, reverse: bool, save: bool) -> Results:
    h0, c0 = operands.h0[0], _first(operands.c0)
    assert c0 is not None
    # torch keeps the workspace of the backward pass only where grad mode is on; no graph is recorded in here.
    with torch.set_grad_enabled(save):
        output, h_n, c_n, workspace = torch.ops.aten.mkldnn_rnn_layer.default(
            operands.x.contiguous(), *_weights(operands), h0.contiguous(), c0.contiguous(), reverse, [],
            _of(cell).mode, h0.shape[1], 1, True, False, False, save,
        )  # fmt: skip
    return Results(output, h_n.view_as(operands.h0), c_n.view_as(operands.h0), workspace if save else None)


def onednn_backward(
    incoming: Incoming, operands: Operands, results: Results, cell: Cell, reverse: bool, needs: Needs
) -> Gradients:
    h0, c0 = operands.h0[0], _first(operands.c0)
    assert c0 is not None and results.c_n is not None
    d_x, d_ih, d_hh, d_bias_ih, d_bias_hh, d_h0, d_c0 = torch.ops.aten.mkldnn_rnn_layer_backward.default(
        operands.x.contiguous(), *_weights(operands), h0.contiguous(), c0.contiguous(), results.output,
        results.h_n[0], results.c_n[0], incoming.output, _first(incoming.h_n), _first(incoming.c_n), reverse,
        _of(cell).mode, h0.shape[1], 1, True, True, False, [], False, results.saved,
    )  # fmt: skip
    d_h0, d_c0 = d_h0.view_as(operands.h0), d_c0.view_as(operands.h0)
    return _present(operands, Gradients(d_x, d_ih, d_hh, d_bias_ih, d_bias_hh.clone(), h0=d_h0, c0=d_c0), needs)


def cudnn_forward(operands: Operands, cell: Cell, reverse: bool, save: bool) -> Results:
    x, h0, c0 = operands.x, operands.h0, operands.c0
    output, h_n, c_n, reserve, packed = torch.ops.aten._cudnn_rnn.default(
        x.flip(0) if reverse else x.contiguous(), _weights(operands), 4, None, h0.contiguous(),
        None if c0 is None else c0.contiguous(), _of(cell).mode, h0.shape[2], 0, 1, False, 0.0, save, False, [], None,
    )  # fmt: skip
    return Results(output.flip(0) if reverse else output, h_n, None if c0 is None else c_n, reserve, packed)


def cudnn_backward(
    incoming: Incoming, operands: Operands, results: Results, cell: Cell, reverse: bool, needs: Needs
) -> Gradients:
    x, h0, c0, output, grad_output = operands.x, operands.h0, operands.c0, results.output, incoming.output
    if reverse:
        x, output, grad_output = x.flip(0), output.flip(0), None if grad_output is None else grad_output.flip(0)
    d_x, d_h0, d_c0, d_weights = torch.ops.aten._cudnn_rnn_backward.default(
        x.contiguous(), _weights(operands), 4, results.auxiliary, h0.contiguous(),
        None if c0 is None else c0.contiguous(), output, *(None if g is None else g.contiguous() for g in
        (grad_output, incoming.h_n, incoming.c_n)), _of(cell).mode, h0.shape[2], 0, 1, False, 0.0, True, False, [],
        None, results.saved, [True] * 4,
    )  # fmt: skip
    # The weights' gradients are views into one buffer; an operator's results may not share memory.
    d_ih, d_hh, d_bias_ih, d_bias_hh = (weight.clone() for weight in d_weights)
    d_x = d_x.flip(0) if reverse else d_x
    return _present(operands, Gradients(d_x, d_ih, d_hh, d_bias_ih, d_bias_hh, h0=d_h0, c0=d_c0), needs)


def like_onednn_saved(operands: Operands, cell: Cell, save: bool) -> Saved:
    """Of a size that the library alone knows."""
    size = torch.library.get_ctx().new_dynamic_size
    return operands.x.new_empty(size(), dtype=torch.uint8) if save else None, None


def like_cudnn_saved(operands: Operands, cell: Cell, save: bool) -> Saved:
    size = torch.library.get_ctx().new_dynamic_size
    return operands.x.new_empty(size(), dtype=torch.uint8), operands.x.new_empty(size())


def torch_layers(
    x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor], cell: Cell, layers: int = 1, dropout: float = 0.0,
    batch_first: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...]]:  # fmt: skip
    """All layers by torch's own functions, under autograd: output and the final state, in the shapes of ``state``.

    x is [T,B,I], or [B,T,I] with ``batch_first``; ``state`` is (h0 [L*D,B,H],) or (h0, c0); ``weights`` are those of
    each layer and direction in torch.nn's order; ``dropout`` is between layers. One step is computed as by
    torch.nn's cells, which record half as much for the backward pass as its layers, and read the weights once where
    oneDNN's LSTM packs them; of an LSTM for 64 samples and more, without gradients, by oneDNN's.
    """
    name, rows, time = _of(cell).function, len(state[0]), 1 if batch_first else 0
    each, directions = len(weights) // rows, rows // layers
    many = cell.has_c and x.shape[1 - time] >= 64 and not torch.is_grad_enabled()
    if x.shape[time] > 1 or many:
        output, *final = getattr(torch, name)(
            x,
            state if cell.has_c else state[0],
            weights,
            each == 4,
            layers,
            dropout,
            True,
            directions == 2,
            batch_first,
        )
        return output, tuple(final)
    step = getattr(torch, f"{name}_cell")
    x, h, c = x.squeeze(time), [], []
    for row in range(rows):
        own = weights[each * row : each * row + each]
        if cell.has_c:
            h_n, c_n = step(x, (state[0][row], state[1][row]), *own)
            c.append(c_n)
        else:
            h_n = step(x, state[0][row], *own)
        h.append(h_n)
        if (row + 1) % directions == 0:
            x = h_n if directions == 1 else torch.cat(h[-2:], dim=-1)
            if dropout and row + 1 < rows:
                x = F.dropout(x, dropout, training=True)
    # Stacked, for memory of their own: the caller may change them, and the cells have saved theirs.
    return torch.stack([x], time), (torch.stack(h), torch.stack(c)) if cell.has_c else (torch.stack(h),)


def few_steps(
    x: Tensor, weights: Sequence[Weights], state: Sequence[Tensor], cell: Cell
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One layer by torch's own functions, under autograd: x [T,B,I] and ``state``, (h0 [D,B,H],) or (h0, c0), to output
    [T,B,D*H] and the final state; ``weights`` are those of each of D directions.
    """
    given: list[Tensor] = []
    biased = weights[0].bias_ih is not None or weights[0].bias_hh is not None
    for each in weights:
        assert each.weight_ih is not None
        given += each.weight_ih, each.weight_hh
        if biased:  # torch's functions take both biases or none
            given += [_zeros(each.weight_hh) if bias is None else bias for bias in (each.bias_ih, each.bias_hh)]
    return torch_layers(x, state, given, cell)


def _of(cell: Cell) -> Vendor:
    assert cell.vendor is not None
    return cell.vendor


def _weights(o: Operands) -> list[Tensor]:
    """The four weights of a layer, contiguous; zeros for absent biases, which the libraries' gradients want."""
    biases = (_zeros(o.weight_hh) if bias is None else bias for bias in (o.bias_ih, o.bias_hh))
    return [weight.contiguous() for weight in (o.weight_ih, o.weight_hh, *biases) if weight is not None]


def _zeros(weight_hh: Tensor) -> Tensor:
    return weight_hh.new_zeros(weight_hh.shape[0])


def _first(state: Tensor | None) -> Tensor | None:
    """The state [B,H] of the one direction."""
    return None if state is None else state[0]


def _present(operands: Operands, grads: Gradients, needs: Needs) -> Gradients:
    """Without the gradients of absent operands, and without those that are not wanted: the libraries compute all."""
    return Gradients(*(grad if want else None for grad, want in zip(grads, needs.of(operands), strict=True)))
