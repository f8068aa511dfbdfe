"""Long lists of cases, of which continuous integration takes some; PRNN_EVERY_CASE=1 takes all."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def thinned(cases: Iterable[T], step: int = 2, begin: int = 0) -> list[T]:
    """One case in ``step`` from number ``begin`` on, or all of them."""
    return list(cases) if os.environ.get("PRNN_EVERY_CASE") == "1" else list(cases)[begin::step]
