"""Curves thinned to what a screen can show, without losing their extremes."""

from __future__ import annotations

from collections.abc import Sequence

from prnn.reporting.runs import Point

MOST_POINTS = 600  # of one curve on the page; a chart is about as many pixels wide


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most about ``most`` points: of each stretch the smallest and the largest, the first and last of all, and gaps.

    ``most`` is exceeded by a gap (None) for each stretch that has one, as a diverged run must not look whole.
    """
    if len(points) <= most:
        return list(points)
    kept = {0, len(points) - 1}
    stretches = max(most // 2, 1)
    for stretch in range(stretches):
        indices = range(stretch * len(points) // stretches, (stretch + 1) * len(points) // stretches)
        values = [(value, index) for index in indices if (value := points[index][1]) is not None]
        if values:
            kept |= {min(values)[1], max(values)[1]}
        kept |= set([index for index in indices if points[index][1] is None][:1])
    return [points[index] for index in sorted(kept)]


def segments(points: Sequence[Point]) -> list[list[tuple[float, float]]]:
    """The unbroken pieces of a curve."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is None:
            pieces.append([])
        else:
            pieces[-1].append((x, y))
    return [piece for piece in pieces if piece]
