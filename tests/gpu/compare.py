"""How far a result is from what is right, in three figures, and whether that is too far.

    norm    ‖found - right‖ / ‖right‖
    slice   the same of the worst slice (a sample, a unit, a step, ...) over ‖right‖ of a slice on average: what is
            wrong in one place alone is lost in the norm of a large tensor
    bias    <found - right, right> / <right, right>: roundings cancel in it, what is systematic does not

Each is taken over several draws of one problem together, for a result of a few elements may be small by cancellation.
The bounds are the worst that right kernels reach (bounds.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

Figures = dict[str, object]
FIGURES = ("norm", "slice", "bias")
Bounds = tuple[float, float, float]  # of norm, slice and bias


class Wrong(AssertionError):
    """A result is not what it must be. ``figures`` as a check returns them."""

    def __init__(self, message: str, figures: Figures | None = None) -> None:
        super().__init__(message)
        self.figures: Figures = figures or {}


def require(condition: bool, message: str) -> None:
    if not condition:
        raise Wrong(message)


class Error:
    """The error of one result, over several draws of the same shape."""

    def __init__(self) -> None:
        self.wrong = self.right = self.along = 0.0
        self.slices: list[Tensor] = []  # of each axis, the sum of squared errors of each slice

    def add(self, found: Tensor, right: Tensor, what: str) -> None:
        """``right`` in float64. Raises Wrong if the shapes differ or something found is no number."""
        found = found.detach().cpu().double()
        require(found.shape == right.shape, f"{what}: {list(found.shape)}, expected {list(right.shape)}")
        if not bool(found.isfinite().all()):
            raise Wrong(f"{what} holds NaN or infinity", {"of": what, "finite": False})
        wrong = found - right
        squares = wrong * wrong
        self.wrong += squares.sum().item()
        self.right += (right * right).sum().item()
        self.along += (wrong * right).sum().item()
        axes = range(squares.dim())
        sums = [squares.sum([other for other in axes if other != axis]) if len(axes) > 1 else squares for axis in axes]
        self.slices = [a + b for a, b in zip(self.slices, sums, strict=True)] if self.slices else sums

    def figures(self) -> Bounds:
        """norm, slice and bias (with its sign)."""
        if self.right == 0:
            return (math.inf, math.inf, math.inf) if self.wrong else (0.0, 0.0, 0.0)
        worst = max((sums.max().item() * sums.numel() for sums in self.slices if sums.numel()), default=self.wrong)
        return math.sqrt(self.wrong / self.right), math.sqrt(worst / self.right), self.along / self.right


def judged(errors: Mapping[str, Error], bounds: Mapping[str, Bounds]) -> Figures:
    """Each figure where it comes nearest to its bound, and of which result; Wrong if one is beyond it.

    ``share`` is the largest of a figure over its bound.
    """
    shares = {
        (abs(value) / bound, figure, what): (value, bound)
        for what, error in errors.items()
        for figure, value, bound in zip(FIGURES, error.figures(), bounds[what], strict=True)
    }
    share, figure, what = max(shares)
    found: Figures = {f: shares[max(key for key in shares if key[1] == f)][0] for f in FIGURES}
    found |= {"of": what, "share": share}
    if share > 1:
        value, bound = shares[share, figure, what]
        raise Wrong(f"{what}: {figure} of the error {value:.2g}, at most {bound:.2g}", found)
    return found
