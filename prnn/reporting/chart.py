"""Chart geometry, which page.html renders as SVG: user units of about a CSS pixel, y downwards."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from prnn.reporting import ticks
from prnn.terminal import visible
from prnn.training.observe.curves import Point, segments

COLORS = 8  # in page.css, --c0 to --c7; further curves reuse them, dashed
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 10, 34  # margins for the tick labels
_LEAST_LOG = 1e-30  # smaller values count as 0, which has no logarithm
_DOTS_UP_TO, _DENSE_FROM = 40, 150  # points per curve: with dots up to the first, with a thin line from the second


@dataclass
class Curve:
    """One line; ``band`` is an upper bound, filled down to the line. ``style``: fine or bold."""

    name: str
    points: list[Point]
    color: int = 0
    style: str = "bold"
    band: list[Point] = field(default_factory=list)


@dataclass
class Chart:
    """The content of a chart. ``percent`` formats fractions as percentages."""

    title: str
    x_label: str
    curves: list[Curve]
    note: str = ""
    percent: bool = False
    whole: bool = False  # the y axis starts at 0
    scale_x: float = 1.0  # the page shows x / scale_x


@dataclass
class Axis:
    """An axis: maps values to page coordinates."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        """The page coordinate of ``value``."""
        low, high = self._map(self.low), self._map(self.high)
        fraction = (self._map(value) - low) / (high - low)
        return round(self.start + fraction * (self.end - self.start), 1)

    def _map(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def values(self) -> list[float]:
        """The tick values."""
        if self.log and len(decades := ticks.logarithmic(self.low, self.high)) > 1:
            return decades
        return [each for each in ticks.linear(self.low, self.high) if not self.log or each > 0]


def x_axis(charted: Chart, width: int) -> Axis:
    """The x axis: from 0 to the last point."""
    values = [x for curve in charted.curves for x, _ in curve.points]
    return Axis(min(0.0, *values), max(values) if max(values) > 0 else 1.0, _LEFT, width - _RIGHT)


def y_axis(charted: Chart, height: int) -> Axis:
    """The y axis: the range of the values with a margin; logarithmic if they span orders of magnitude."""
    curves = [*(curve.points for curve in charted.curves), *(curve.band for curve in charted.curves)]
    values = [y for points in curves for _, y in points if y is not None]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    start, end = height - _BOTTOM, _TOP
    if low > _LEAST_LOG and high / low >= ticks.LOG_FROM and not charted.whole:
        return Axis(low / 1.2, high * 1.2, start, end, log=True)
    if charted.whole:
        low, high = min(low, 0.0), max(high, 1e-9)
    if high - low <= 1e-9 * abs(high):  # one value only
        low, high = low - (abs(low) * 0.1 or 1.0), high + (abs(high) * 0.1 or 1.0)
    margin = 0.04 * (high - low)
    return Axis(low if charted.whole and low == 0 else low - margin, high + margin, start, end)


def drawing(charted: Chart, width: int = 480, height: int = 260) -> dict[str, Any] | None:
    """The chart's geometry for the template; None if there is nothing to draw.

    ``data`` is for the tooltip: the axes, and the points of each curve as drawn.
    """
    curves = [_scaled(curve, charted.scale_x) for curve in charted.curves if _has_values(curve.points)]
    if not curves:
        return None
    charted = replace(charted, curves=curves)
    x, y = x_axis(charted, width), y_axis(charted, height)
    dots = all(len(curve.points) <= _DOTS_UP_TO for curve in curves if curve.style == "bold")
    return {
        "title": charted.title,
        "note": charted.note,
        "x_label": charted.x_label,
        "width": width,
        "height": height,
        "box": {"left": _LEFT, "right": width - _RIGHT, "top": _TOP, "bottom": height - _BOTTOM},
        "log": y.log,
        "x_ticks": [(x.place(value), ticks.short(value)) for value in x.values()],
        "y_ticks": [(y.place(value), _label(value, charted.percent)) for value in y.values()],
        "curves": [_drawn(curve, x, y, dots) for curve in curves],
        "data": {
            "x": [x.low, x.high, x.start, x.end],
            "y": [y.low, y.high, y.start, y.end],
            "log": y.log,
            "percent": charted.percent,
            "label": visible(charted.x_label),
            "curves": [
                {
                    "name": curve.name,
                    "color": curve.color % COLORS,
                    "points": [[_digits(a), _digits(b)] for a, b in curve.points],
                }
                for curve in curves
            ],
        },
    }


def _has_values(points: Iterable[Point]) -> bool:
    return any(y is not None for _, y in points)


def _scaled(curve: Curve, scale_x: float) -> Curve:
    """The curve in the page's unit of x, with control characters in its name escaped."""
    points, band = ([(x / scale_x, y) for x, y in each] for each in (curve.points, curve.band))
    return replace(curve, name=visible(curve.name), points=points, band=band)


def _drawn(curve: Curve, x: Axis, y: Axis, dots: bool) -> dict[str, Any]:
    pieces = segments(curve.points)
    # A point without neighbours has no line, and would be invisible.
    marked = pieces if dots and curve.style == "bold" else [piece for piece in pieces if len(piece) == 1]
    return {
        "name": curve.name,
        "color": curve.color % COLORS,
        "style": " ".join(_styles(curve)),
        "lines": [_path(piece, x, y) for piece in pieces if len(piece) > 1],
        "dots": [(x.place(a), y.place(b)) for piece in marked for a, b in piece],
        "bands": _bands(curve, x, y),
    }


def _styles(curve: Curve) -> list[str]:
    again, dense = curve.color >= COLORS, len(curve.points) >= _DENSE_FROM
    return [curve.style, *(["again"] if again else []), *(["dense"] if dense else [])]


def _path(points: Sequence[tuple[float, float]], x: Axis, y: Axis) -> str:
    return " ".join(f"{x.place(a):g},{y.place(b):g}" for a, b in points)


def _bands(curve: Curve, x: Axis, y: Axis) -> list[str]:
    """The polygon between the curve and its upper bound; a single one, as gaps in either are rare and bridged."""
    lower = [(a, b) for a, b in curve.points if b is not None]
    upper = [(a, b) for a, b in curve.band if b is not None]
    return [_path([*lower, *reversed(upper)], x, y)] if len(lower) > 1 and len(upper) > 1 else []


def _label(value: float, percent: bool) -> str:
    return f"{100 * value:.4g} %" if percent else ticks.short(value)


def _digits(value: float | None) -> float | None:
    """Round to six digits: enough for the tooltip, and half the page size."""
    if value is None:
        return None
    rounded = float(f"{value:.6g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded
