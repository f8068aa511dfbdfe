"""Derivatives by torch's autograd engine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def differentiate(
    outputs: Sequence[Tensor], grad_outputs: Sequence[Tensor], leaves: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """What torch.autograd.grad does; given grad_outputs, that imports sympy, which takes a second.

    None for a leaf on which the outputs do not depend.
    """
    engine = torch.autograd.Variable._execution_engine
    return engine.run_backward(tuple(outputs), tuple(grad_outputs), False, False, tuple(leaves), True, False)
