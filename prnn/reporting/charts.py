"""The page's charts as data: what ``browser/*.js`` draws.

Each curve has its steps and values. The other x axes, tokens and seconds, are those of its run at the same step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from prnn.reporting import ranks, words
from prnn.reporting.panels import LOSS, MEMORY, OF_TASK, OPTIMISATION, Panel, derived, panels
from prnn.reporting.runs import Run
from prnn.terminal import visible
from prnn.training.observe.curves import Point

COLORS = 8  # in page.css, --c0 to --c7; further curves reuse them, dashed
POINTS, LEAST, MOST = 30_000, 150, 2000  # of all curves together, which bounds the page's size; of one curve
PROCESSES = "Processes"
_SPLIT = {"train": "training", "val": "validation"}


@dataclass
class Curve:
    """One line of a run; ``upper`` is the upper bound of a band above it. ``fine``: drawn thin, as training is."""

    run: int
    name: str
    color: int
    points: list[Point]
    fine: bool = False
    upper: list[Point] = field(default_factory=list)


def data(runs: list[Run]) -> dict[str, Any]:
    """The runs and charts, as JSON with all text visible."""
    groups = list(_groups(runs))
    shown = [(section, panel, members) for section, members, each in groups for panel in each]
    count = sum(len(members) * len(panel.fields) for _, panel, members in shown)
    most = max(LEAST, min(MOST, POINTS // max(count, 1)))
    charts = [_chart(section, panel, members, runs, most) for section, panel, members in shown]
    return {
        "runs": [_run(run, index) for index, run in enumerate(runs)],
        "colors": COLORS,
        "charts": [*charts, *(_processes(run, index, len(runs)) for index, run in enumerate(runs) if run.ranks())],
    }


def _run(run: Run, index: int) -> dict[str, Any]:
    return {
        "label": visible(run.label),
        "color": index,
        "unit": visible(run.unit),
        "ended": run.ended,
        "positions": {name: [_digits(value, 9) for value in column] for name, column in run.positions().items()},
    }


def _groups(runs: list[Run]) -> Iterator[tuple[str, list[Run], list[Panel]]]:
    """Sections with their runs and panels; of several tasks, sections of each task where the values differ by task."""
    tasks = list(dict.fromkeys(run.task for run in runs))
    for task in tasks:
        members = [run for run in runs if run.task == task]
        found = [*panels(members), *derived(members)]
        for section in OF_TASK:
            name = section if len(tasks) == 1 else f"{words.task(task) or 'other runs'}: {section.lower()}"
            yield name[:1].upper() + name[1:], members, [panel for panel in found if panel.section == section]
    for section in (OPTIMISATION, MEMORY):
        yield section, runs, [panel for panel in panels(runs) if panel.section == section]


def _chart(section: str, panel: Panel, members: list[Run], runs: list[Run], most: int) -> dict[str, Any]:
    """One run: a colour per field; several: a colour per run."""
    curves = []
    for index, run in enumerate(runs):
        if run not in members:
            continue
        for nth, (kind, name) in enumerate(panel.fields):
            points = run.points(kind, name, most)
            if panel.derived is not None:
                points = [(x, None if y is None else panel.derived(y)) for x, y in points]
            split = _SPLIT.get(kind, "") if len(panel.fields) > 1 else ""
            fine = len(panel.fields) > 1 and kind == "train"
            curves.append(Curve(index, split, nth if len(runs) == 1 else index, points, fine))
    note, unit = panel.note, panel.unit
    if len(runs) > 1 and len(panel.fields) > 1:
        note = "thin: training; thick: validation"
    if unit == "tokens/s":
        units = {run.unit for run in members}
        unit = f"{units.pop() if len(units) == 1 else 'tokens'}/s"
    return _described(section, panel.title, curves, note, unit, panel.percent, panel.whole, panel.section == LOSS)


def _processes(run: Run, index: int, count: int) -> dict[str, Any]:
    """The step times of a run's ranks, each with a band up to its p95."""
    curves, note = ranks.curves(ranks.ranks(run))
    title = "Step time of each process" + (f": {run.label}" if count > 1 else "")
    drawn = [Curve(index, each.name, color, each.points, upper=each.upper) for color, each in enumerate(curves)]
    return _described(PROCESSES, title, drawn, note, "ms", whole=True, hero=True)


def _described(
    section: str,
    title: str,
    curves: list[Curve],
    note: str,
    unit: str,
    percent: bool = False,
    whole: bool = False,
    hero: bool = False,
) -> dict[str, Any]:
    return {
        "section": visible(section),
        "title": visible(title),
        "note": note,
        "unit": visible(unit),
        "percent": percent,
        "whole": whole,
        "hero": hero,
        "curves": [_curve(curve) for curve in curves if any(y is not None for _, y in curve.points)],
    }


def _curve(curve: Curve) -> dict[str, Any]:
    return {
        "run": curve.run,
        "name": curve.name,
        "color": curve.color,
        "fine": curve.fine,
        **_columns(curve.points),
        **({"upper": _columns(curve.upper)} if curve.upper else {}),
    }


def _columns(points: list[Point]) -> dict[str, list[float | None]]:
    return {"steps": [_digits(x, 16) for x, _ in points], "values": [_digits(y, 6) for _, y in points]}


def _digits(value: float | None, digits: int) -> float | None:
    """Round to as many digits as a reader sees: half the page's size."""
    if value is None:
        return None
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded
