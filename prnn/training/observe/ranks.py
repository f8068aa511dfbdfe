"""Step times of every process: what tells a straggler when all-reduces make all steps equally long."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prnn.training.distributed import World

SLOWER = 1.25  # times the other ranks' median: clearly above it
LEAST_STEPS = 3  # below, the first step's preparations would be the finding
_POINTS = {"min": 0, "p50": 50, "p95": 95, "max": 100}


@dataclass
class StepTimes:
    """Seconds of this process's steps since the last record."""

    took: list[float] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)  # for data
    exposed: list[float] = field(default_factory=list)  # for other processes

    def add(self, took: float, waited: float, exposed: float) -> None:
        """One more step."""
        self.took.append(took)
        self.waited.append(waited)
        self.exposed.append(exposed)

    @property
    def median_ms(self) -> float | None:
        """Of a whole step."""
        return round(1e3 * statistics.median(self.took), 3) if self.took else None

    def figures(self, memory_mib: float) -> list[float]:
        """What is sent to the other ranks, in the order ``_row`` reads it."""
        took = np.array(self.took)
        compute = took - self.waited - self.exposed
        points = [*np.percentile(took, [*_POINTS.values()]), *np.percentile(compute, [*_POINTS.values()])]
        shares = [sum(part) / max(took.sum(), 1e-9) for part in (self.waited, self.exposed)]
        return [*(1e3 * point for point in points), *shares, memory_mib]


def gather(times: StepTimes, memory_mib: float, hosts: list[str], world: World) -> list[dict[str, Any]]:
    """One row for each rank, on every rank, by one all-reduce. All of them have had the same steps."""
    local = times.figures(memory_mib)
    table = [0.0] * (world.size * len(local))
    table[world.rank * len(local) : (world.rank + 1) * len(local)] = local
    table = world.all_sum(table)
    return [_row(rank, host, table[rank * len(local) : (rank + 1) * len(local)]) for rank, host in enumerate(hosts)]


def _row(rank: int, host: str, figures: list[float]) -> dict[str, Any]:
    step, compute, (data_wait, exposed, memory) = figures[:4], figures[4:8], figures[8:]
    return {
        "rank": rank,
        "host": host,
        "step_ms": dict(zip(_POINTS, (round(ms, 3) for ms in step), strict=True)),
        # The step without its waiting for data and for other processes.
        "compute_ms": dict(zip(_POINTS, (round(ms, 3) for ms in compute), strict=True)),
        "data_wait": round(data_wait, 4),  # share of the time
        "exposed_comm": round(exposed, 4),  # share of the time
        "memory_mib": round(memory, 1),
    }


def straggler(rows: list[dict[str, Any]]) -> int | None:
    """The rank that keeps the others waiting by its computing or its data, if one does so clearly."""
    if len(rows) < 2:
        return None
    busy_ms = [own_ms(row) for row in rows]
    slowest = max(range(len(rows)), key=busy_ms.__getitem__)
    return (
        slowest if busy_ms[slowest] > SLOWER * statistics.median(busy_ms[:slowest] + busy_ms[slowest + 1 :]) else None
    )


def own_ms(row: dict[str, Any]) -> float:
    """Milliseconds of a typical step that a rank spends on its own: on computing and on its data."""
    return row["compute_ms"]["p50"] + row["data_wait"] * row["step_ms"]["p50"]
