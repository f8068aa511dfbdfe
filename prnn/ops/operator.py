"""Defining a dispatcher operator from a typed Python function, with little between the caller and the function.

``torch.library.custom_op`` does the same with some 50 us of checks and wrappers a call, which is more than a whole
layer of a small network takes; ``opcheck`` in the tests makes the same checks once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])


def operator(name: str) -> Callable[[F], F]:
    """Register the decorated function as ``torch.ops.<name>``, which mutates and aliases none of its arguments."""

    def register(function: F) -> F:
        torch.library.define(name, torch.library.infer_schema(function, mutates_args=()))
        torch.library.impl(name, "CompositeExplicitAutograd", function)
        return function

    return register
