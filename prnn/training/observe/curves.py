"""Recorded metrics as arrays, and downsampling of curves to screen resolution that preserves extremes."""

from __future__ import annotations

import math
from array import array
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import numpy as np

from prnn.training.observe.record_reader import LARGEST, number

MOST_POINTS = 600  # of one curve in a picture; a chart is about as many pixels wide

Point = tuple[float, float | None]  # x, y; None is a gap


class Curves:
    """The numeric fields of each kind of record, as float64; NaN where a field holds no number."""

    def __init__(self) -> None:
        # kind -> field names -> rows of the step and one value per name: few records differ in their fields, and a
        # million records must not take minutes.
        self._rows: dict[Hashable, dict[tuple[str, ...], array[float]]] = {}

    def add(self, kind: Hashable, step: int, fields: Mapping[str, Any]) -> None:
        """Add one record; ``{"figures": {"accuracy": 0.5}}`` becomes the field ``figures.accuracy``."""
        if dict in map(type, fields.values()):
            fields = dict(_flat(fields))
        names = tuple(fields)
        kinds = self._rows.setdefault(kind, {})
        rows = kinds.get(names)
        if rows is None:
            rows = kinds[names] = array("d")
        rows.append(step)
        rows.extend([value if type(value) is float else _double(value) for value in fields.values()])

    def names(self, kind: Hashable) -> list[str]:
        """The fields with at least one finite number."""
        names = dict.fromkeys(name for names in self._rows.get(kind, {}) for name in names)
        return [name for name in names if np.isfinite(self.column(kind, name)[1]).any()]

    def column(self, kind: Hashable, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values [N] of one field, sorted by step; N is 0 if no record has it."""
        parts = [np.empty((2, 0))]
        for names, rows in self._rows.get(kind, {}).items():
            if name in names:
                parts.append(np.frombuffer(rows).reshape(-1, len(names) + 1)[:, [0, names.index(name) + 1]].T)
        steps, values = np.concatenate(parts, axis=1)
        values = np.where(np.abs(values) <= LARGEST, values, np.nan)
        if (np.diff(steps) < 0).any():
            order = np.argsort(steps, kind="stable")
            steps, values = steps[order], values[order]
        return steps, values


def _flat(fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{inner}", part) for inner, part in value.items())
        else:
            yield name, value


def _double(value: Any) -> float:
    known = number(value)
    return math.nan if known is None else known


def thin(x: np.ndarray, y: np.ndarray, most: int = MOST_POINTS) -> list[Point]:
    """Downsample the points (x, y), both [N], to at most about ``most``.

    Keeps the minimum and maximum of each interval, the first and last point, and gaps (NaN): ``most`` is exceeded by
    one for each interval with a gap, as a diverged run must not look continuous.
    """
    kept = np.arange(len(x))
    if len(x) > most:
        edges = np.arange(max(most // 2, 1) + 1) * len(x) // max(most // 2, 1)
        indices = {0, len(x) - 1}
        for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            values = y[low:high]
            gaps = np.isnan(values)
            if not gaps.all():
                indices |= {low + int(np.nanargmin(values)), low + int(np.nanargmax(values))}
            if gaps.any():
                indices.add(low + int(gaps.argmax()))
        kept = np.array(sorted(indices))
    return [(a, None if b != b else b) for a, b in zip(x[kept].tolist(), y[kept].tolist(), strict=True)]
