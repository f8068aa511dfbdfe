"""Tables of a GPU check (check.json of benchmarks/gpu_check) and of benchmarks.kernels' suite gpu (gpu.json), rendered
by benchmarks/report.py.

Shapes: T time steps.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks.common.markdown import table
from benchmarks.kernels.peers import OURS

Record = dict[str, Any]
MICRO = ("name", "ns", "cycles", "mhz", "spread")  # of a measurement; its other keys are parameters


def where(check: Record) -> str:
    """The GPU and versions of a check."""
    driver = check["nvidia_smi"].get("driver_version", "unknown")
    return f"{check['gpu']}, driver {driver}; torch {check['torch']}, CUDA {check['cuda']}; commit {check['commit']}"


def tables(check: Record) -> Iterator[str]:
    """The tables of a check: parts, operators, whole module calls, microbenchmarks."""
    yield table(("part", "status", "items", "seconds"), map(_part, check["parts"].items()))
    layers = by_layer(check)
    if layers:
        yield (
            "Our operators alone, timed with CUDA events: the chosen plan, the cost model's prediction for it, and "
            "the fastest of all plans that were tried. Microseconds per step."
        )
        head = ("layer", "pass", "plan chosen", "us", "expected", "quickest plan", "us")
        yield table(head, (_layer(name, results) for name, results in layers.items()))
    calls = [result for result in check["results"].get("kernels", {}).values() if "milliseconds" in result]
    if calls:
        yield from whole_calls(calls)
    micro = [entry for entry in check["parts"].get("micro", {}).get("measured", []) if "ns" in entry]
    if micro:
        yield "Microbenchmarks of the kernels' primitives (benchmarks/gpu_check/micro.cu):"
        yield table(("what", "with", "ns", "cycles"), map(_micro, micro))


def whole_calls(cases: Iterable[Record]) -> Iterator[str]:
    """Whole module calls against their peers, in microseconds per time step."""
    yield "Whole module calls, microseconds per step; in brackets the median speedup of prnn."
    timed = [case for case in cases if "milliseconds" in case]
    peers = list(dict.fromkeys(name for case in timed for name in case["milliseconds"] if name != OURS))
    yield table(("layer", "mode", OURS, *peers), (_call(case, peers) for case in cases))


def by_layer(check: Record) -> dict[tuple[str, str], list[Record]]:
    """(layer, pass) -> its measurements of whole sequences with correct results."""
    measurements: dict[tuple[str, str], list[Record]] = {}
    for part in ("measure", "plans"):
        for name, result in check["results"].get(part, {}).items():
            layer, which, what = name.split(" | ")
            if what != "short" and result.get("correct") is True:
                measurements.setdefault((layer, which), []).append(result)
    return measurements


def plan(result: Record) -> str:
    regime, teams, blocks = (result["plan"][key] for key in ("regime", "teams", "blocks"))
    rows = result["plan"]["row_warps"]
    return f"{regime} {teams} x {blocks}, shape {result['plan']['shape']}, {rows} x {8 // rows} warps"


def _part(item: tuple[str, Record]) -> list[str]:
    name, part = item
    counts = ", ".join(f"{count} {status}" for status, count in part.get("counts", {}).items())
    return [name, part["status"], counts or part.get("why", ""), f"{part.get('seconds', 0):.0f}"]


def _layer(name: tuple[str, str], results: list[Record]) -> list[str]:
    best = min(results, key=lambda result: float(result["microseconds_per_step"]))
    chosen = [
        [plan(result), f"{result['microseconds_per_step']:.2f}", f"{result['plan']['microseconds']:.2f}"]
        for result in results
        if result["forced"] is None
    ]
    return [*name, *(chosen or [["not measured", "", ""]])[0], plan(best), f"{best['microseconds_per_step']:.2f}"]


def _call(case: Record, peers: list[str]) -> list[str]:
    if "disagreement" in case or "milliseconds" not in case:
        why = "; ".join(case.get("disagreement", ["skipped"]))
        return [case["name"], case["mode"], f"wrong: {why}" if "disagreement" in case else why, *[""] * len(peers)]
    steps = case.get("T") or int(re.search(r"\bT(\d+)\b", case["name"])[1])  # type: ignore[index]
    took = {name: f"{1e3 * ms['median'] / steps:.2f}" for name, ms in case["milliseconds"].items()}
    times = {name: f" ({ratio['median']:.2f})" for name, ratio in case["ratios"].items()}
    return [case["name"], case["mode"], took[OURS], *(took.get(p, "n/a") + times.get(p, "") for p in peers)]


def _micro(entry: Record) -> list[str]:
    parameters = ", ".join(f"{key} {value:g}" for key, value in entry.items() if key not in MICRO)
    return [entry["name"], parameters, f"{entry['ns']:,.1f}", f"{entry['cycles']:,.1f}"]
