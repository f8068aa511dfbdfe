"""Calls whose cost is mostly outside the kernels: of few steps, as in reinforcement learning and generation, and of
small layers.

The plain case alone: all layers in one call, of the native operator where no gradient is wanted, or of torch.nn's own
function where that is faster (``ops.choose``). Anything else is left to the modules' general way, and so are checks of
what does not fit.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from prnn import native, ops
from prnn.cell_table import CELLS

if TYPE_CHECKING:
    from prnn.nn.layers import RecurrentLayers


def plain_call(self: RecurrentLayers, x: Any, hx: Any) -> tuple[Tensor, Any] | None:
    """Output and final state of ``self(x, hx)``; None where the general way is to compute them."""
    if torch.compiler.is_compiling() or type(x) is not Tensor or not _is_plain():
        return None
    shape, batch_first, has_c = x.shape, self.batch_first, self._prnn_has_c
    if len(shape) != 3 or not self._prnn_explained or self._prnn_assigned_weights:
        return None
    parameters = self._parameters
    try:
        weights: list[Any] = [parameters[name] for names in self._all_weights for name in names]
    except KeyError:  # one is computed
        return None
    dtype, directions, layers = torch.float32, 2 if self.bidirectional else 1, self.num_layers
    h_shape = (layers * directions, shape[not batch_first], self.hidden_size)
    if hx is None:
        h0 = c0 = torch.zeros(h_shape, dtype=dtype, device=x.device)
    else:
        if has_c and len(hx) != 2:
            return None
        h0, c0 = hx if has_c else (hx, hx)
        if type(h0) is not Tensor or type(c0) is not Tensor or h0.shape != h_shape or c0.shape != h_shape:
            return None
        if h0.dtype != dtype or c0.dtype != dtype:  # torch.lstm_cell would promote
            return None
    first = weights[0]
    if x.dtype != dtype or first.dtype != dtype or self.proj_size:
        return None
    if any(type(each) is not Parameter for each in weights):  # but of another class, or an absent bias
        return None
    if not (x.is_cpu and first.is_cpu and h0.is_cpu and c0.is_cpu) or shape[2] != self.input_size:
        return None
    graph = torch.is_grad_enabled()
    gradients = graph and (first.requires_grad or x.requires_grad)
    cell, dropout = self._prnn_cell, self.dropout if self.training else 0.0
    implementation = _implementation(cell, shape[batch_first], h_shape[1], shape[2], h_shape[2], gradients)
    state = (h0, c0) if has_c else (h0,)
    try:
        if implementation == "aten":
            output, final = ops.torch_layers(x, state, weights, CELLS[cell], layers, dropout, batch_first)
            return output, final if has_c else final[0]
        large = shape[0] * shape[1] * directions * self.hidden_size * 4 >= ops.LEAST_BYTES
        # The general way uses the memory of a large output again.
        if implementation != "cpu" or (dropout and layers > 1) or large:
            return None
        if graph and any(tensor.requires_grad for tensor in (x, h0, c0, *weights)):
            return None
        output, h_n, c_n = torch.ops.prnn_native.stack_forward.default(
            x.transpose(0, 1) if batch_first else x,
            *(h0, c0 if has_c else None, weights, native.cell_id(cell), layers, directions),
        )
    except RuntimeError:  # the general way says what does not fit
        return None
    return output.transpose(0, 1) if batch_first else output, (h_n, c_n) if has_c else h_n


def _is_plain() -> bool:
    """Whether nothing besides autograd sees or changes the tensors' operators, and no backend is forced."""
    return not (
        torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch.is_autocast_enabled("cpu")
        or forward_ad._current_level >= 0
        or ops.forced()
    )


@lru_cache(maxsize=4096)
def _implementation(cell: str, T: int, B: int, I: int, H: int, gradients: bool) -> str:
    if 0 in (T, B):
        return ""
    request = ops.Request(cell, T, B, I, H, torch.float32, "cpu", False, False, False, 0, gradients)
    return ops.choose(request).implementation
