"""Numbers and durations as text."""

from __future__ import annotations

from typing import Any

from prnn.training.observe.record_reader import number


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
