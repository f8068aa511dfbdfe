"""Per-rank step times: they identify stragglers, as all-reduces make the step time of all ranks equal."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prnn.training.distributed import World

SLOWER = 1.25  # a straggler's threshold, relative to the other ranks' median
LEAST_STEPS = 3  # with fewer, the first step's one-time setup would dominate
_POINTS = {"min": 0, "p50": 50, "p95": 95, "max": 100}


@dataclass
class StepTimes:
    """Seconds of this rank's steps since the last record."""

    took: list[float] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)  # for data
    exposed: list[float] = field(default_factory=list)  # for other processes

    def add(self, took: float, waited: float, exposed: float) -> None:
        """Add one step."""
        self.took.append(took)
        self.waited.append(waited)
        self.exposed.append(exposed)

    @property
    def median_ms(self) -> float | None:
        """The median step time; None without steps."""
        return round(1e3 * statistics.median(self.took), 3) if self.took else None

    def figures(self, memory_mib: float) -> list[float]:
        """This rank's figures for ``gather``, in the order that ``_row`` reads."""
        took = np.array(self.took)
        compute = took - self.waited - self.exposed
        points = [*np.percentile(took, [*_POINTS.values()]), *np.percentile(compute, [*_POINTS.values()])]
        shares = [sum(part) / max(took.sum(), 1e-9) for part in (self.waited, self.exposed)]
        return [*(1e3 * point for point in points), *shares, memory_mib]


def gather(times: StepTimes, memory_mib: float, hosts: list[str], world: World) -> list[dict[str, Any]]:
    """One row per rank, on every rank, by one all-reduce. All ranks have recorded the same steps."""
    local_figures = times.figures(memory_mib)
    width = len(local_figures)
    table = [0.0] * (world.size * width)
    table[world.rank * width : (world.rank + 1) * width] = local_figures
    table = world.all_sum(table)
    return [_row(rank, host, table[rank * width : (rank + 1) * width]) for rank, host in enumerate(hosts)]


def _row(rank: int, host: str, figures: list[float]) -> dict[str, Any]:
    step, compute, (data_wait, exposed, memory) = figures[:4], figures[4:8], figures[8:]
    return {
        "rank": rank,
        "host": host,
        "step_ms": dict(zip(_POINTS, (round(ms, 3) for ms in step), strict=True)),
        # The step time without waiting for data and for other ranks.
        "compute_ms": dict(zip(_POINTS, (round(ms, 3) for ms in compute), strict=True)),
        "data_wait": round(data_wait, 4),  # share of the time
        "exposed_comm": round(exposed, 4),  # share of the time
        "memory_mib": round(memory, 1),
    }


def straggler(rows: list[dict[str, Any]]) -> int | None:
    """The rank that slows the others down by its computation or data loading, if one exceeds ``SLOWER``."""
    if len(rows) < 2:
        return None
    times = [own_ms(row) for row in rows]
    slowest = max(range(len(rows)), key=times.__getitem__)
    return slowest if times[slowest] > SLOWER * statistics.median(times[:slowest] + times[slowest + 1 :]) else None


def own_ms(row: dict[str, Any]) -> float:
    """Milliseconds of a median step that a rank spends on computation and on waiting for data."""
    return row["compute_ms"]["p50"] + row["data_wait"] * row["step_ms"]["p50"]
