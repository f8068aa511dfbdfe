"""The alpha-beta model of all-reduce time; its fit to measurements; its overlap with the backward pass.

Letters: n processes, S bytes per process, alpha seconds per message, beta seconds per byte on a link.

    ring    2 (n - 1) alpha + 2 (n - 1) / n S beta      reduce-scatter and all-gather, n - 1 messages of S / n each
    tree    2 ceil(log2 n) alpha + 2 S beta             up and down two trees at once, each with half of S, pipelined

The ring and the model: Thakur, Rabenseifner, Gropp, "Optimization of Collective Communication Operations in MPICH"
(2005). The double binary tree: Sanders, Speck, Traeff, "Two-tree algorithms for full bandwidth broadcast, reduction and
scan" (2009), as NCCL has it since 2.4; an inner node sends what it gets up and, later, down, so that a byte of S
passes a link twice whatever n is. gloo's default is a ring (gloo/allreduce.cc).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

AllReduce = Callable[[float], float]  # bytes -> seconds
Point = tuple[int, int, float]  # processes, bytes, seconds


@dataclass(frozen=True)
class Link:
    """A link between two neighbours: ``alpha`` seconds per message, ``beta`` seconds per byte."""

    alpha: float
    beta: float

    def ring(self, n: int, size: float) -> float:
        """Seconds of an all-reduce of ``size`` bytes over ``n`` processes; nothing for a single one."""
        alphas, betas = ring_terms(n, size)
        return alphas * self.alpha + betas * self.beta

    def tree(self, n: int, size: float) -> float:
        """The same over a double binary tree."""
        if n < 2:
            return 0.0
        return 2 * math.ceil(math.log2(n)) * self.alpha + 2 * size * self.beta


def ring_terms(n: int, size: float) -> tuple[float, float]:
    """The coefficients of alpha and beta in a ring's time."""
    return (0.0, 0.0) if n < 2 else (2.0 * (n - 1), 2.0 * (n - 1) / n * size)


def fit(points: Sequence[Point]) -> Link:
    """The link whose ring is nearest to the points, by least squares of the relative error.

    Relative, for the points span four orders of magnitude and a small message matters as much as a large one. Neither
    constant is negative: where the best would be, it is 0 and the other one is fitted alone.
    """
    if len({ring_terms(n, size) for n, size, _ in points}) < 2:
        raise ValueError("two constants need two different points")
    rows = np.array([np.array(ring_terms(n, size)) / seconds for n, size, seconds in points])
    best, *_ = np.linalg.lstsq(rows, np.ones(len(rows)), rcond=None)
    if best.min() < 0:
        kept = int(best.argmax())
        best = np.zeros(2)
        best[kept] = rows[:, kept].sum() / (rows[:, kept] ** 2).sum()
    return Link(float(best[0]), float(best[1]))


def errors(link: Link, points: Sequence[Point]) -> dict[str, float]:
    """Absolute relative errors of the model at the points: median and maximum."""
    errors = [abs(link.ring(n, size) / seconds - 1) for n, size, seconds in points]
    return {"points": len(errors), "median": round(statistics.median(errors), 4), "max": round(max(errors), 4)}


@dataclass(frozen=True)
class Stage:
    """A part of the backward pass, and the gradients that are ready only at its end.

    For a recurrent layer these are all of its gradients: every time step adds to weight_hh's, which is therefore
    complete only after the first time step, and cannot be communicated earlier.
    """

    seconds: float
    sizes: tuple[int, ...]  # bytes of its parameters, in the order in which DDP fills its buckets


def buckets(stages: Sequence[Stage], cap: float) -> list[tuple[float, int]]:
    """DDP's buckets in launch order: seconds from the start of the backward pass to when it is ready, and its bytes.

    A bucket is closed by the parameter that brings it to ``cap`` bytes; the rest is the last one.
    """
    buckets: list[tuple[float, int]] = []
    now, size = 0.0, 0
    for stage in stages:
        now += stage.seconds
        for each in stage.sizes:
            size += each
            if size >= cap:
                buckets.append((now, size))
                size = 0
    if size:
        buckets.append((now, size))
    return buckets


def exposed(stages: Sequence[Stage], cap: float, all_reduce: AllReduce) -> float:
    """Seconds of exposed communication after the backward pass; buckets are sent one after the other."""
    free = 0.0
    for ready, size in buckets(stages, cap):
        free = max(free, ready) + all_reduce(size)
    return max(0.0, free - sum(stage.seconds for stage in stages))
