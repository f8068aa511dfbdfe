"""Comparison of a run's ranks: step times, waiting and memory.

A record of kind ``ranks`` holds, for each rank, the milliseconds of its steps since the last record (min, p50, p95,
max), the fractions of the time it waited for data and for communication, and its memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prnn.reporting.numbers import exact
from prnn.reporting.runs import RANKS, Run
from prnn.reporting.tables import Cell, Table
from prnn.training.observe.curves import Point, thin
from prnn.training.observe.record_reader import number

MOST_CURVES, MOST_ROWS = 8, 16
_COLUMNS = ("rank", "host", "median step", "p95", "slowest step", "data wait", "exposed communication", "memory")


Column = tuple[np.ndarray, np.ndarray]  # steps and values [N], NaN for missing values


@dataclass
class Rank:
    """One rank over the run; times in milliseconds."""

    rank: int
    host: str
    p50: Column
    p95: Column
    slowest: float | None
    shares: dict[str, float | None]  # data_wait, exposed_comm: the median over the records
    memory_mib: float | None

    @property
    def typical(self) -> float:
        """The median of its p50; 0 if unknown."""
        return _median(self.p50) or 0.0


def ranks(run: Run) -> list[Rank]:
    """The ranks of a run, slowest first; empty for a run that recorded none."""
    return sorted((_rank(run, rank) for rank in run.ranks()), key=lambda each: -each.typical)


def _rank(run: Run, rank: int) -> Rank:
    kind, latest = (RANKS, rank), run.latest((RANKS, rank))
    _, slowest = run.known(kind, "step_ms.max")
    return Rank(
        rank,
        str(latest.get("host") or ""),
        run.column(kind, "step_ms.p50"),
        run.column(kind, "step_ms.p95"),
        slowest.max().item() if len(slowest) else None,
        {name: _median(run.column(kind, name)) for name in ("data_wait", "exposed_comm")},
        number(latest.get("memory_mib")),
    )


def _median(column: Column) -> float | None:
    known = column[1][np.isfinite(column[1])]
    return float(np.median(known)) if len(known) else None


@dataclass
class Times:
    """A curve of step times, and the upper bound of a band above it."""

    name: str
    points: list[Point]
    upper: list[Point]


def curves(processes: list[Rank]) -> tuple[list[Times], str]:
    """Each rank's p50 with a band up to its p95; of many ranks, the slowest, the fastest and the median. And a note."""
    if len(processes) <= MOST_CURVES:
        by_number = sorted(processes, key=lambda each: each.rank)
        found = [Times(f"rank {each.rank}", thin(*each.p50), thin(*each.p95)) for each in by_number]
        return found, "line p50, band up to p95"
    slowest, fastest = processes[0], processes[-1]
    found = [
        Times(f"slowest: rank {slowest.rank}", thin(*slowest.p50), thin(*slowest.p95)),
        Times(f"median of {len(processes)}", _middle(processes), []),
        Times(f"fastest: rank {fastest.rank}", thin(*fastest.p50), []),
    ]
    return found, "lines p50, band up to the slowest's p95"


def _middle(processes: list[Rank]) -> list[Point]:
    """The median of all ranks' p50 at each step."""
    steps = np.unique(np.concatenate([each.p50[0] for each in processes]))
    values = np.full((len(processes), len(steps)), np.nan)
    for row, each in zip(values, processes, strict=True):
        row[np.searchsorted(steps, each.p50[0])] = each.p50[1]
    known = np.isfinite(values).any(0)
    middle = np.full(len(steps), np.nan)
    middle[known] = np.nanmedian(values[:, known], axis=0)
    return thin(steps, middle)


def sentence(processes: list[Rank]) -> str:
    """A sentence about the slowest rank, relative to the median."""
    middle = float(np.median([each.typical for each in processes]))
    slowest = processes[0]
    host = f" on {slowest.host}" if slowest.host else ""
    ratio = f", {slowest.typical / middle:.2f} times the median process" if middle > 0 else ""
    return f"Slowest: rank {slowest.rank}{host}, {slowest.typical:.4g} ms a step{ratio}."


def table(processes: list[Rank]) -> Table:
    """The slowest ``MOST_ROWS`` ranks."""
    rows = [
        [
            Cell(str(each.rank), each.rank),
            Cell(each.host or "–"),
            _in(each.typical or None, "ms"),
            _in(_median(each.p95), "ms"),
            _in(each.slowest, "ms"),
            _percent(each.shares["data_wait"]),
            _percent(each.shares["exposed_comm"]),
            Cell("–" if each.memory_mib is None else f"{exact(each.memory_mib)} MiB", each.memory_mib),
        ]
        for each in processes[:MOST_ROWS]
    ]
    return Table(list(_COLUMNS), rows)


def _in(value: float | None, unit: str) -> Cell:
    return Cell("–" if value is None else f"{value:.4g} {unit}", value)


def _percent(share: float | None) -> Cell:
    return Cell("–" if share is None else f"{100 * share:.3g} %", share)
