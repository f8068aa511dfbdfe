"""How far rounding may take a result, and on which side of a threshold; measured, with runs of the same equations.

The runs: the exact one, in float64, and *witnesses*, which round: in the type of the call, and in float64 on operands
that were changed in their last places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from prnn.check.values import Results

FACTOR = 12  # that a kernel may be further off than a witness, and a threshold must be away
PLACES = 8  # a kernel may be off by so many last places of a tensor's largest element even so
SHARE = 0.1  # a gradient of a smaller share of the largest one is compared as if it had this: its sum may cancel
WILD = 1e6  # a result beyond it says nothing in float32


def _difference(a: Any, b: Any, **_: Any) -> Tensor:
    return _double(a) - _double(b)


def _clamp(x: Tensor, min: Any = None, max: Any = None) -> Tensor:
    return torch.stack([_double(x) - _double(bound) for bound in (min, max) if bound is not None])


# What each operator with a jump or a kink in its result compares, and how far the two are apart.
_DISTANCES: dict[str, Callable[..., Tensor]] = dict.fromkeys(
    ("gt", "ge", "lt", "le", "eq", "ne", "maximum", "minimum"), _difference
)
_DISTANCES |= dict.fromkeys(("relu", "abs", "sign", "sgn"), lambda x: _double(x))
_DISTANCES |= {"clamp": _clamp, "clamp_min": lambda x, min: _clamp(x, min)}
_DISTANCES |= {
    "floor": lambda x: _double(x) - _double(x).round(),
    "round": lambda x: _double(x) - _double(x).floor() - 0.5,
}


def _double(x: Any) -> Tensor:
    return x.double() if isinstance(x, Tensor) else torch.tensor(float(x), dtype=torch.float64)


class Thresholds(TorchDispatchMode):
    """Records how far from its threshold every comparison is, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.distances: list[Tensor] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # skipping it means to import it, which takes seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        distance = _DISTANCES.get(func._schema.name.rpartition("::")[2].rstrip("_"))
        if distance is not None:
            self.distances.append(distance(*args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))


def near(exact: Thresholds, witnesses: Sequence[Thresholds]) -> bool:
    """Whether rounding might take a comparison to its other side. Equal operands are, if they are so in all runs."""
    for right, *others in zip(exact.distances, *(each.distances for each in witnesses), strict=True):
        moved = torch.stack([(other - right).abs() for other in others])
        if moved.numel() and (right.abs() < FACTOR * moved.nan_to_num(0, 0, 0).max()).any():
            return True
    return False


def fault(computed: Results, exact: Results, witnesses: Sequence[Results], dtype: torch.dtype) -> str | None:
    """Which tensor of a call in ``dtype`` is off by more than rounding explains; None if none is."""
    gradients = [tensor for name, tensor in exact.items() if "gradient" in name]
    least = SHARE * max(map(_largest, gradients), default=0.0)
    for name, right in exact.items():
        ours = computed[name]
        if ours.shape != right.shape:
            return f"{name} is {[*ours.shape]}, not {[*right.shape]}"
        largest = max(_largest(right), least if "gradient" in name else 0.0)
        rounding = max(_largest(witness[name].double() - right) for witness in witnesses)
        bound = FACTOR * rounding + PLACES * torch.finfo(dtype).eps * largest
        off = _largest(ours.double() - right)
        if not off <= bound:
            return f"{name} is off by {off:.3g}, of {largest:.3g}, where rounding explains {bound:.3g}"
    return None


def says_something(exact: Results, witnesses: Sequence[Results]) -> bool:
    """Whether the results are of numbers that the type of the call can compute."""
    return all(_largest(tensor) <= WILD for run in (exact, *witnesses) for tensor in run.values())


def _largest(x: Tensor) -> float:
    """NaN if there is one."""
    return x.abs().max().item() if x.numel() else 0.0
