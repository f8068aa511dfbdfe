"""How far a result is from what is right, in three figures, and whether that is too far.

    norm    ‖found - right‖ / ‖right‖
    slice   the same of the worst slice (a sample, a unit, a step, ...) over ‖right‖ of a slice on average: what is
            wrong in one place alone is lost in the norm of a large tensor
    bias    Σ (found - right) sign(right) / Σ |right|: roundings cancel in it, what is systematic does not. (Weighted by
            squares, as in a projection on what is right, a few large elements would decide.)

Each is taken over several draws of a problem together, for a result of a few elements may be small by cancellation.
The bounds are the worst that right kernels reach (bounds.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Figures = dict[str, object]
FIGURES = ("norm", "slice", "bias")
Measure = tuple[float, float, float]  # norm, slice and bias, the latter with its sign
Results = dict[str, Tensor]
Errors = dict[str, Measure]  # by the name of the result


class Wrong(AssertionError):
    """A result is not what it must be. ``figures`` as a check returns them."""

    def __init__(self, message: str, figures: Figures | None = None) -> None:
        super().__init__(message)
        self.figures: Figures = figures or {}


def require(condition: bool, message: str) -> None:
    if not condition:
        raise Wrong(message)


def error(found: Tensor, right: Tensor, what: str) -> Measure:
    """Of what was found in several draws, both [draws,*], ``right`` in float64. Raises Wrong if the shapes differ or
    something found is no number.
    """
    found = found.detach().cpu().double()
    require(found.shape == right.shape, f"{what}: {list(found.shape)}, expected {list(right.shape)}")
    if not bool(found.isfinite().all()):
        raise Wrong(f"{what} holds NaN or infinity", {"of": what, "finite": False})
    wrong = found - right
    squares, scale = wrong * wrong, (right * right).sum().item()
    bias = (wrong * right.sign()).sum().item() / max(right.abs().sum().item(), 1e-300)
    axes = range(squares.dim())
    slices = [squares.sum([other for other in axes if other != axis]) for axis in axes[1:]]
    total = squares.sum().item()
    if scale == 0:
        return (math.inf, math.inf, math.inf) if total else (0.0, 0.0, 0.0)
    worst = max((sums.max().item() * sums.numel() for sums in slices), default=total)
    return math.sqrt(total / scale), math.sqrt(worst / scale), bias


def errors(found: Sequence[Results], again: Sequence[Results], right: Results) -> Errors:
    """Of all results of several draws, by name; ``right`` holds them stacked. Raises Wrong where the second run gave
    other bits.
    """
    figures: Errors = {}
    for what, expected in right.items():
        mine, repeated = (torch.stack([results[what] for results in run]) for run in (found, again))
        figures[what] = error(mine, expected, what)
        if not torch.equal(mine, repeated):
            raise Wrong(f"{what}: another run gave other bits", {"of": what, "repeats": False})
    return figures


def judged(errors: Errors, bounds: Mapping[str, Measure]) -> Figures:
    """Each figure where it comes nearest to its bound, and of which result; Wrong if one is beyond it.

    ``share`` is the largest of a figure over its bound.
    """
    shares = {
        (abs(value) / bound, figure, what): (value, bound)
        for what, values in errors.items()
        for figure, value, bound in zip(FIGURES, values, bounds[what], strict=True)
    }
    share, figure, what = max(shares)
    found: Figures = {f: shares[max(key for key in shares if key[1] == f)][0] for f in FIGURES}
    found |= {"of": what, "share": share}
    if share > 1:
        value, bound = shares[share, figure, what]
        raise Wrong(f"{what}: {figure} of the error {value:.2g}, at most {bound:.2g}", found)
    return found
