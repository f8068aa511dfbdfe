"""A spike with a surrogate derivative, for spiking cells.

Forward: 1 where x > 0, else 0. Backward: one of the derivatives of ``SHAPES``, with slope k:

================ =================================== ===========================================================
fast_sigmoid     1 / (1 + k |x|)^2                   Zenke and Ganguli 2018 (SuperSpike); snntorch's fast_sigmoid
atan             k/2 / (1 + (pi/2 k x)^2)            Fang et al. 2021; SpikingJelly's and snntorch's ATan, alpha = k
sigmoid          k s (1 - s), s = sigmoid(k x)       SpikingJelly's Sigmoid, alpha = k; snntorch's sigmoid
triangle         k max(0, 1 - k |x|)                 Esser et al. 2016; its area is 1, its width 2 / k
boxcar           k/2 where |x| < 1 / k, else 0       its area is 1, its width 2 / k
straight_through 1                                   Bengio et al. 2013; k is not used
================ =================================== ===========================================================

The backward pass is differentiable: a second derivative is that of these formulas.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor

# (x, slope) -> the surrogate derivative of the spike at x, of x's shape
SHAPES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "fast_sigmoid": lambda x, slope: 1 / (1 + slope * x.abs()) ** 2,
    "atan": lambda x, slope: slope / 2 / (1 + (math.pi / 2 * slope * x) ** 2),
    "sigmoid": lambda x, slope: slope * torch.sigmoid(slope * x) * (1 - torch.sigmoid(slope * x)),
    "triangle": lambda x, slope: slope * torch.relu(1 - slope * x.abs()),
    "boxcar": lambda x, slope: slope / 2 * (x.abs() < 1 / slope).to(x.dtype),
    "straight_through": lambda x, slope: torch.ones_like(x),
}


class _Spike(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, slope: float, shape: str) -> Tensor:
        return (x > 0).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, str], output: Tensor) -> None:
        x, ctx.slope, ctx.shape = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return grad * SHAPES[ctx.shape](x, ctx.slope), None, None


def spike(x: Tensor, slope: float = 25.0, shape: str = "fast_sigmoid") -> Tensor:
    """1 where ``x`` > 0, else 0, of x's shape and type, with a surrogate derivative.

    ``shape``: "fast_sigmoid", 1 / (1 + slope |x|)^2; "atan", slope/2 / (1 + (pi/2 slope x)^2); "sigmoid",
    slope s (1 - s) with s = sigmoid(slope x); "triangle", slope max(0, 1 - slope |x|); "boxcar", slope/2 where
    |x| < 1/slope; or "straight_through", 1.

    ValueError for an unknown shape, and for a slope that is not a positive number; TypeError for an ``x`` that is not a
    tensor of floating-point numbers.
    """
    if shape not in SHAPES:
        raise ValueError(f"unknown shape {shape!r} of a surrogate derivative: expected one of {', '.join(SHAPES)}")
    try:
        number = float(slope)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not 0 < number < math.inf:
        given = slope if isinstance(slope, Real) else f"a {type(slope).__name__}"
        raise ValueError(f"a surrogate derivative has slope={given}: expected a positive number")
    if isinstance(x, Real) or (isinstance(x, Tensor) and not x.is_floating_point()):
        given = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else x
        raise TypeError(f"spike takes a tensor of floating-point numbers, got {given}")
    return _Spike.apply(x, number, shape)
