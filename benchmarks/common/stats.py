"""Timing: contenders are interleaved in one process; results are the median with minimum and maximum."""

from __future__ import annotations

import gc
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from benchmarks.common import files

SETTLE_SECONDS = 0.005  # thread pools keep spinning after their work and must not compete with the next contender


def spread(values: list[float], digits: int = 3) -> dict[str, float]:
    return {k: round(f(values), digits) for k, f in (("median", statistics.median), ("min", min), ("max", max))}


def milliseconds(seconds: list[float]) -> dict[str, float]:
    return spread([1e3 * value for value in seconds], 4)


def ratios(peer: list[float], ours: list[float]) -> dict[str, float]:
    """Speedup over the peer: its time over ours, per round."""
    return spread([a / b for a, b in zip(peer, ours, strict=True)])


def once(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def interleave(
    contenders: Mapping[str, Callable[[], object]], rounds: int, sample_seconds: float = 0.02
) -> dict[str, list[float]]:
    """Seconds a call of each contender in each round.

    A first call warms up; a second one determines the number of calls in a sample of at least ``sample_seconds``. In
    each round every contender has its turn (the order rotates by one each round): a pause, an uncounted call that
    brings its weights back into the caches, and the sample.
    """
    repeats = {}
    for name, run in contenders.items():
        run()
        repeats[name] = max(1, math.ceil(sample_seconds / once(run)))
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    collects = gc.isenabled()
    for _ in range(rounds):
        gc.collect()
        gc.disable()
        for name in order:
            run = contenders[name]
            time.sleep(SETTLE_SECONDS)
            run()
            began = time.perf_counter()
            for _ in range(repeats[name]):
                run()
            seconds[name].append((time.perf_counter() - began) / repeats[name])
        if collects:
            gc.enable()
        order.append(order.pop(0))
    return seconds


def relative_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The maximum difference over the largest expected element (over 1 if all are 0); inf for NaN or another shape."""
    if actual.shape != expected.shape:
        return math.inf
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    scale = expected.abs().max().item() or 1.0
    difference = (actual - expected).abs().max().item() / scale
    return difference if math.isfinite(difference) else math.inf


def norm_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The relative error in the L2 norm (absolute if the expected norm is 0); inf for NaN or another shape."""
    if actual.shape != expected.shape:
        return math.inf
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    difference = (actual - expected).norm().item() / (expected.norm().item() or 1.0)
    return difference if math.isfinite(difference) else math.inf


Difference = Callable[[torch.Tensor, torch.Tensor], float]


def disagreement(
    actual: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    difference: Difference = relative_difference,
) -> tuple[float, str]:
    """The largest difference over all expected tensors, and the tensor's name; inf for a missing tensor."""
    worst = (0.0, "nothing")
    for name, tensor in expected.items():
        worst = max(worst, (difference(actual[name], tensor) if name in actual else math.inf, name))
    return worst


def limit_threads(threads: int) -> None:
    """Bind all contenders to the same ``threads`` cores of this process's affinity mask, as ``taskset`` would.

    XLA sizes its pool by PJRT_NPROC at the first computation, torch by set_num_threads; onnxruntime is configured by
    its peer. Must be called before any of them runs.
    """
    os.environ["PJRT_NPROC"] = str(threads)
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if threads > len(cores):
            raise SystemExit(f"--threads {threads}: this process may run on {len(cores)} cores only")
        os.sched_setaffinity(0, cores[:threads])


def write(out: Path, name: str, record: Mapping[str, object]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.json"
    files.write(path, json.dumps(record, indent=2) + "\n")
    print(f"written to {path}")
