"""A chart as geometry: what page.html draws as SVG, in its own units (about CSS pixels), y downwards."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from prnn.reporting import ticks
from prnn.terminal import visible
from prnn.training.observe.curves import Point, segments

COLORS = 8  # of page.css, --c0 to --c7; further curves begin again, dashed
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 10, 34  # margins, for the ticks' labels
_LEAST_LOG = 1e-30  # smaller values are as good as 0, which has no logarithm
_DOTS_UP_TO, _DENSE_FROM = 40, 150  # points of a curve: each is marked; the line is thinner


@dataclass
class Curve:
    """One line; ``band`` is an upper edge at the same x, filled down to the line. ``style``: fine or bold."""

    name: str
    points: list[Point]
    color: int = 0
    style: str = "bold"
    band: list[Point] = field(default_factory=list)


@dataclass
class Chart:
    """What is drawn, and where. ``title`` and ``note`` are texts; ``percent`` writes shares as percentages."""

    title: str
    x_label: str
    curves: list[Curve]
    note: str = ""
    percent: bool = False
    whole: bool = False  # the y axis begins at 0
    scale_x: float = 1.0  # the page shows x / scale_x


@dataclass
class Axis:
    """One direction: from values to places on the page."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        """Where ``value`` is drawn."""
        low, high = self._map(self.low), self._map(self.high)
        share = (self._map(value) - low) / (high - low)
        return round(self.start + share * (self.end - self.start), 1)

    def _map(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def values(self) -> list[float]:
        """Where its ticks are."""
        if self.log and len(logarithmic := ticks.logarithmic(self.low, self.high)) > 1:
            return logarithmic
        return [each for each in ticks.linear(self.low, self.high) if not self.log or each > 0]


def x_axis(charted: Chart, width: int) -> Axis:
    """From 0 to the last point."""
    values = [x for curve in charted.curves for x, _ in curve.points]
    return Axis(min(0.0, *values), max(values) if max(values) > 0 else 1.0, _LEFT, width - _RIGHT)


def y_axis(charted: Chart, height: int) -> Axis:
    """From the smallest to the largest value and a little more; logarithmic where they are far apart."""
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
    room = 0.04 * (high - low)
    return Axis(low if charted.whole and low == 0 else low - room, high + room, start, end)


def drawing(charted: Chart, width: int = 480, height: int = 260) -> dict[str, Any] | None:
    """The chart's places, for the template; None where there is nothing to draw.

    ``data`` is what the tooltip shows: the axes, and each curve's points as they are drawn.
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
    """The curve in the page's unit of x, with a name that can be read."""
    points, band = ([(x / scale_x, y) for x, y in each] for each in (curve.points, curve.band))
    return replace(curve, name=visible(curve.name), points=points, band=band)


def _drawn(curve: Curve, x: Axis, y: Axis, dots: bool) -> dict[str, Any]:
    pieces = segments(curve.points)
    # A point without neighbours makes no line, and would not be seen.
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
    """Closed outlines between the curve and its upper edge; one, as a gap in either is rare and then bridged."""
    lower = [(a, b) for a, b in curve.points if b is not None]
    upper = [(a, b) for a, b in curve.band if b is not None]
    return [_path([*lower, *reversed(upper)], x, y)] if len(lower) > 1 and len(upper) > 1 else []


def _label(value: float, percent: bool) -> str:
    return f"{100 * value:.4g} %" if percent else ticks.short(value)


def _digits(value: float | None) -> float | None:
    """Six digits tell the pointer enough, and halve the page."""
    if value is None:
        return None
    rounded = float(f"{value:.6g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded
