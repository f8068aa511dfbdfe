"""The pictures of docs/reproductions.md: of each group, the published figures and ours with their spread."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.common import files
from benchmarks.reproduce import records
from benchmarks.reproduce.records import Series
from benchmarks.reproduce.rows import Figure, Group, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, THEIRS = "#0072B2", "#D55E00"  # of a palette safe for the colour-blind
STYLE = {"svg.hashsalt": "prnn", "svg.fonttype": "none", "font.size": 9}  # the same bytes for the same records
Panel = list[tuple[Row, Figure]]


def name_of(group: Group) -> str:
    return f"reproductions_{re.sub(r'[^a-z]+', '_', group.title.lower())}.svg"


def can_be_drawn(group: Group, current: Mapping[str, Series]) -> bool:
    return bool(panels(group, current))


def panels(group: Group, current: Mapping[str, Series]) -> dict[str, Panel]:
    """The rows of each panel, by what their figures are, in the order of the page; without ours there is none."""
    found: dict[str, Panel] = {}
    for row in group.rows:
        for figure in row.figures:
            if figure.drawn and _ours(row, figure, current):
                found.setdefault(figure.what, []).append((row, figure))
    return found


def draw(group: Group, current: Mapping[str, Series], path: Path) -> None:
    """Draw the panels one above the other, or remove the picture if there is nothing to show."""
    shown = panels(group, current)
    if not shown:
        path.unlink(missing_ok=True)
        return
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Canvas
    from matplotlib.lines import Line2D

    heights = [len(panel) + 1.6 for panel in shown.values()]
    with rc_context(STYLE):
        size = (8.0, 0.26 * sum(heights) + 0.5)
        figure = Canvas(figsize=size)
        axes = figure.subplots(len(shown), 1, height_ratios=heights, squeeze=False)
        for (what, panel), each in zip(shown.items(), axes[:, 0], strict=True):
            _panel(each, what, panel, current)
        looks = {"ours, each seed and their mean": ("o", OURS), "published": ("D", THEIRS)}
        handles = [Line2D([], [], ls="", marker=marker, color=colour) for marker, colour in looks.values()]
        figure.legend(handles, list(looks), loc="upper right", ncols=2, frameon=False)
        figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / size[1]))
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
        files.write(path, drawn.getvalue())


def _panel(axes: Axes, what: str, panel: Panel, current: Mapping[str, Series]) -> None:
    for y, (row, figure) in enumerate(panel):
        ours = _ours(row, figure, current)
        mean = sum(ours) / len(ours)
        axes.plot([min(ours), max(ours)], [y, y], color=OURS, lw=1.5, alpha=0.5)
        axes.plot(ours, [y] * len(ours), "o", color=OURS, ms=3.5, alpha=0.4, mew=0)
        axes.plot([mean], [y], "o", color=OURS, ms=6)
        theirs = [each.value for each in figure.published if each.value is not None]
        axes.plot(theirs, [y] * len(theirs), "D", color=THEIRS, ms=5, mfc="none", mew=1.5)
    axes.set_yticks(range(len(panel)), [row.name for row, _ in panel])
    axes.set_ylim(len(panel) - 0.4, -0.6)
    axes.set_title(what, loc="left", fontsize=9, fontweight="bold")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _ours(row: Row, figure: Figure, current: Mapping[str, Series]) -> list[float]:
    return records.values(current[row.name], figure) if row.name in current else []
