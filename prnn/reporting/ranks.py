"""The processes of a run beside each other: who is slow, who waits.

A record of kind ``ranks`` holds, for each process, the milliseconds of its steps since the record before (min, p50,
p95, max), the shares of the time it waited for data and for communication, and its memory.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from prnn.reporting import ticks
from prnn.reporting.chart import Chart, Curve
from prnn.reporting.runs import Point, Run, number

MOST_CURVES, MOST_ROWS = 8, 16
COLUMNS = ("rank", "host", "median step", "p95", "slowest step", "data wait", "exposed communication", "memory")


@dataclass
class Rank:
    """One process over the run; milliseconds."""

    rank: int
    host: str
    p50: list[Point]
    p95: list[Point]
    slowest: float | None
    shares: dict[str, float | None]  # data_wait, exposed_comm: the median over the records
    memory_mib: float | None

    @property
    def typical(self) -> float:
        """The median of its p50, 0 where none is known."""
        return _median(y for _, y in self.p50) or 0.0


def ranks(run: Run) -> list[Rank]:
    """The processes of a run, slowest first; empty for a run that recorded none."""
    entries: dict[int, list[tuple[int, dict[str, Any]]]] = {}
    for record in run.of_kind("ranks"):
        listed = record.get("ranks")
        for entry in listed if isinstance(listed, list) else []:
            if isinstance(entry, dict) and type(entry.get("rank")) is int:
                entries.setdefault(entry["rank"], []).append((record["step"], entry))
    return sorted((_rank(rank, found) for rank, found in entries.items()), key=lambda each: -each.typical)


def _rank(rank: int, entries: list[tuple[int, dict[str, Any]]]) -> Rank:
    def times(name: str) -> list[Point]:
        steps = ((step, entry.get("step_ms")) for step, entry in entries)
        return [(float(step), number(ms.get(name)) if isinstance(ms, dict) else None) for step, ms in steps]

    latest = entries[-1][1]
    return Rank(
        rank,
        str(latest.get("host") or ""),
        times("p50"),
        times("p95"),
        max((y for _, y in times("max") if y is not None), default=None),
        {name: _median(number(entry.get(name)) for _, entry in entries) for name in ("data_wait", "exposed_comm")},
        number(latest.get("memory_mib")),
    )


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def chart(run: Run, found: list[Rank]) -> Chart:
    """Each process's p50 with a band up to its p95; of many processes, the slowest, the fastest and the median."""
    if len(found) <= MOST_CURVES:
        by_number = sorted(found, key=lambda each: each.rank)
        curves = [Curve(f"rank {each.rank}", each.p50, index, "bold", each.p95) for index, each in enumerate(by_number)]
        note = "milliseconds: line p50, band up to p95"
    else:
        slowest, fastest = found[0], found[-1]
        curves = [
            Curve(f"slowest: rank {slowest.rank}", slowest.p50, 0, "bold", slowest.p95),
            Curve(f"median of {len(found)}", _middle(found), 1),
            Curve(f"fastest: rank {fastest.rank}", fastest.p50, 2),
        ]
        note = "milliseconds: lines p50, band up to the slowest's p95"
    return Chart(f"Step time of each process: {run.label}", "optimizer step", curves, note, whole=True)


def _middle(found: list[Rank]) -> list[Point]:
    """The median of all processes' p50 at each step."""
    by_step: dict[float, list[float | None]] = {}
    for each in found:
        for step, value in each.p50:
            by_step.setdefault(step, []).append(value)
    return [(step, _median(values)) for step, values in sorted(by_step.items())]


def sentence(found: list[Rank]) -> str:
    """Who is slowest, and by how much."""
    middle = statistics.median(each.typical for each in found)
    slowest = found[0]
    host = f" on {slowest.host}" if slowest.host else ""
    ratio = f", {slowest.typical / middle:.2f} times the median process" if middle > 0 else ""
    return f"Slowest: rank {slowest.rank}{host}, {slowest.typical:.4g} ms a step{ratio}."


def rows(found: list[Rank]) -> list[list[str]]:
    """The table of the slowest ``MOST_ROWS``, under ``COLUMNS``."""
    return [
        [
            str(each.rank),
            each.host or "–",
            f"{each.typical:.4g} ms" if each.typical else "–",
            _ms(_median(y for _, y in each.p95)),
            _ms(each.slowest),
            _percent(each.shares["data_wait"]),
            _percent(each.shares["exposed_comm"]),
            "–" if each.memory_mib is None else f"{ticks.exact(each.memory_mib)} MiB",
        ]
        for each in found[:MOST_ROWS]
    ]


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g} ms"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.3g} %"
