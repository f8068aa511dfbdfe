"""A worker of the GPU check; the supervisor sends the names of its items on standard input.

python -m benchmarks.gpu_check.worker SUITE [ROUNDS]      checks, sanitizer, measure, plans, cells, kernels or graphed
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

from benchmarks.gpu_check.workers import Result, serve

MODES = ("forward", "forward+backward")


def check(name: str, of_cells: bool = False) -> Result:
    """Run one check of tests/gpu; a wrong result keeps its figures."""
    from tests.gpu import cell_checks
    from tests.gpu.checks import CHECKS, DoesNotFit, Wrong

    try:
        return {"status": "passed", "figures": (cell_checks.CHECKS if of_cells else CHECKS)[name]()}
    except DoesNotFit as reason:
        return {"status": "does not fit", "why": str(reason)}
    except Wrong as error:
        return {"status": "wrong", "why": str(error).splitlines()[0], "figures": error.figures}


def measure(name: str, rounds: int) -> Result:
    from benchmarks.gpu_check import measure as measurements

    return measurements.run(name, rounds)


def cells(name: str, rounds: int) -> Result:
    """A check of a cell written in Python, or the time of a layer of one."""
    peers = ("graphed-loop", "compiled-step", "scan", "snntorch", "spikingjelly")
    return kernels(name, rounds, peers) if " | " in name else check(name, of_cells=True)


def kernels(name: str, rounds: int, peers: tuple[str, ...]) -> Result:
    """Time a whole module call against its peers: a case and mode of benchmarks.kernels."""
    import torch

    from benchmarks.kernels.__main__ import measure_gpu_case
    from benchmarks.kernels.cases import GPU, GPU_CELLS

    # By default cuDNN uses tf32 for float32: disabled for a fair comparison.
    torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.rnn.fp32_precision = "ieee"
    case_name, mode = name.split(" | ")
    case = next(case for case in (*GPU, *GPU_CELLS) if case.name == case_name)
    began = time.monotonic()
    record = measure_gpu_case(case, mode == MODES[1], peers, rounds)
    status = "wrong" if "disagreement" in record else "measured" if "milliseconds" in record else "skipped"
    return {"status": status, "T": case.T, **record, "window": [began, time.monotonic()]}


def gpu_is_lost() -> bool:
    """Whether the GPU is unusable for this process, as after a fault in a kernel."""
    import torch

    try:
        torch.cuda.synchronize()
        torch.ones(1, device="cuda").item()
    except Exception:
        return True
    return False


def suites(rounds: int) -> dict[str, Callable[[str], Result]]:
    return {
        "checks": check,
        "sanitizer": lambda name: check(name.split(": ", 1)[1]),  # after the tool's name
        "measure": partial(measure, rounds=rounds),
        "plans": partial(measure, rounds=min(rounds, 5)),
        "cells": partial(cells, rounds=min(rounds, 5)),
        "kernels": partial(kernels, rounds=rounds, peers=("fp16", "flashrnn")),
        "graphed": partial(kernels, rounds=min(rounds, 5), peers=("graph",)),
    }


def main(arguments: list[str]) -> int:
    import torch

    torch.set_num_threads(2)  # workers run in parallel, and references of a few samples gain nothing from more
    suite, rounds = arguments[0], int(arguments[1]) if len(arguments) > 1 else 9
    return serve(suites(rounds)[suite], gpu_is_lost)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
