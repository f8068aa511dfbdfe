"""One recurrent layer in one direction: the input projection, the recurrence, and the choice of what runs them.

Shapes: T time steps, B batch, I input size, H hidden size, P projected size (H without projection), G gates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from prnn.ops import backends, library, native_layer, stepwise
from prnn.ops.composite import reverse_resets, reverse_steps
from prnn.ops.recurrence import autocast_enabled, check_operands, run


def layer(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    *,
    cell: str,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reverse: bool = False,
    weight_hr: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """x [T,B,I], weight_ih [G*H,I], weight_hh [G*H,P], biases [G*H] or None, h0 [B,P], c0 [B,H] or None ->
    output [T,B,P], h_n [B,P], c_n [B,H] or None.

    ``lengths``, ``resets`` and ``weight_hr`` as in ``recurrence``; but what stands in x's padding must be finite, for
    where torch's kernels run, the gradient of weight_ih sums over it, times zero. ``reverse`` runs each sample from its
    own last step to its first, the output standing at the steps it belongs to; a reset before step t then clears the
    state between steps t and t-1, the same boundary seen from the other side. Under autocast everything is
    computed in autocast's dtype, as torch.nn's modules do.

    Raises:
        ValueError: a shape, dtype or device that does not fit the others, or an unknown cell.
    """
    if autocast_enabled(x):
        # Cast by hand and switch off: inside, it would cast what must accumulate in float32.
        operands = [_cast(y) for y in (x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0)]
        options = {"lengths": lengths, "resets": resets, "reverse": reverse, "weight_hr": _cast(weight_hr)}
        with torch.autocast(x.device.type, enabled=False):
            return layer(*operands, cell=cell, **options)
    check_operands(x, weight_hh, bias_hh, h0, c0, lengths, resets, cell, weight_hr, weight_ih, bias_ih)
    choice = explain_layer(x, weight_hh, cell=cell, lengths=lengths, resets=resets, weight_hr=weight_hr)
    if choice.library == "aten":
        output, h_n = stepwise.one_step(x, weight_ih, weight_hh, bias_ih, bias_hh, h0.unsqueeze(0), cell)
        return output, h_n.squeeze(0), None
    if choice.library is not None and not torch._C._are_functorch_transforms_active():
        return library.run(x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0, cell, choice.library, reverse)
    if choice.backend in ("cpu", "cuda") and not torch._C._are_functorch_transforms_active():
        weights = (weight_ih, weight_hh, bias_ih, bias_hh)
        state = None if c0 is None else c0.unsqueeze(0)
        output, h_n, c_n = native_layer.run(x, weights, h0.unsqueeze(0), state, lengths, resets, cell, reverse)
        return output, h_n.squeeze(0), None if c_n is None else c_n.squeeze(0)
    if reverse:
        x, resets = reverse_steps(x, lengths), reverse_resets(resets, lengths)
    gates_x = F.linear(x, weight_ih, bias_ih)
    output, h_n, c_n = run(gates_x, weight_hh, bias_hh, h0, c0, lengths, resets, cell, weight_hr, choice.backend)
    return reverse_steps(output, lengths) if reverse else output, h_n, c_n


# weight_ih, weight_hh, bias_ih, bias_hh, weight_hr of one direction
Weights = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


def directions(
    x: Tensor,
    weights: Sequence[Weights],
    h0: Tensor,
    c0: Tensor | None,
    *,
    cell: str,
    autocast: bool,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One layer in its one or two directions: x [T,B,I], h0 [D,B,P], c0 [D,B,H] or None -> output [T,B,D*P],
    h_n [D,B,P], c_n [D,B,H] or None. The second of ``weights`` runs in reverse. Otherwise as ``layer``, but that the
    caller has checked the operands and says whether ``autocast`` is on.

    Where the native kernels run, both directions are one call, side by side where cores allow.
    """
    if autocast:
        weights = [tuple(_cast(y) for y in own) for own in weights]
        x, h0, c0 = _cast(x), _cast(h0), _cast(c0)
        with torch.autocast(x.device.type, enabled=False):
            return directions(x, weights, h0, c0, cell=cell, autocast=False, lengths=lengths, resets=resets)
    choice = backends.choose(backends.Request.of(x, weights[0][1], cell, lengths, resets, weights[0][4]))
    if choice.library == "aten" and len(weights) == 1:  # the shortest way, for calls of 100 us
        return *stepwise.one_step(x, *weights[0][:4], h0, cell), None
    if choice.backend in ("cpu", "cuda") and not torch._C._are_functorch_transforms_active():
        second = weights[1][:4] if len(weights) == 2 else None
        return native_layer.run(x, weights[0][:4], h0, c0, lengths, resets, cell, backward_weights=second)
    outputs, h_n, c_n = [], [], []
    for direction, (weight_ih, weight_hh, bias_ih, bias_hh, weight_hr) in enumerate(weights):
        output, h, c = layer(
            x, weight_ih, weight_hh, bias_ih, bias_hh, h0[direction], None if c0 is None else c0[direction],
            cell=cell, lengths=lengths, resets=resets, reverse=direction == 1, weight_hr=weight_hr,
        )  # fmt: skip
        outputs.append(output)
        h_n.append(h)
        c_n.append(c)
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
    return output, torch.stack(h_n), None if c0 is None else torch.stack([c for c in c_n if c is not None])


def _cast(x: Any) -> Any:
    return None if x is None else x.to(autocast_dtype(x))


def autocast_dtype(x: Tensor) -> torch.dtype:
    """What ``layer`` computes x in: autocast's dtype where it is on and touches x's (never float64), else its own."""
    cast = autocast_enabled(x) and x.is_floating_point() and x.dtype != torch.float64
    return torch.get_autocast_dtype(x.device.type) if cast else x.dtype


def explain_layer(
    x: Tensor,
    weight_hh: Tensor,
    *,
    cell: str,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    weight_hr: Tensor | None = None,
) -> backends.Choice:
    """Which backend ``layer`` uses for x [T,B,I] and weight_hh [G*H,P], and why. Computes nothing."""
    return backends.choose(backends.Request.of(x, weight_hh, cell, lengths, resets, weight_hr))
