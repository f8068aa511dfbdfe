"""Tick values of an axis, and number formatting."""

from __future__ import annotations

import math
from typing import Any

from prnn.training.observe.record_reader import number

LOG_FROM = 100  # ratio of the largest to the smallest value from which an axis is logarithmic


def linear(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` multiples of 1, 2 or 5 times a power of ten between ``low`` and ``high``."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    return [round(index * step, 12 - math.floor(math.log10(step))) for index in _between(low / step, high / step)]


def logarithmic(low: float, high: float, most: int = 6) -> list[float]:
    """Powers of ten between ``low`` and ``high`` (both positive); every second, third, ... if there are many."""
    exponents = list(_between(math.log10(low), math.log10(high)))
    every = max(1, math.ceil(len(exponents) / most))
    return [10.0**exponent for exponent in exponents[::every]]


def _between(low: float, high: float) -> range:
    return range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)


def short(value: float) -> str:
    """Format for an axis: 1500 is 1,500, two million is 2M, a ten-thousandth is 1e-4."""
    size = abs(value)
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            divisor = 1e3 if letter == "k" else limit
            return f"{value / divisor:.4g}{letter}" if size < 1e13 else f"{value:.3g}"
    if 0 < size < 1e-3:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:,.6g}" if size < 1000 else f"{value:,.0f}"


def exact(value: Any) -> str:
    """Format for a table: five digits, integers in full, a dash for None."""
    if value is None:
        return "–"
    if number(value) is None:
        return str(value)
    if abs(value) >= 1e4 or (isinstance(value, int) and abs(value) < 1e15):
        return f"{value:,.0f}"
    return f"{value:.5g}"


def duration(seconds: float | None) -> str:
    """Format a duration: 3725 seconds are 1 h 02 min."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
