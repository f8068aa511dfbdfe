"""Peak memory of forward+backward: prnn against torch.nn, each case in a separate process.

The process imports everything, builds the module and the input, and runs one tiny problem of the same widths, so that
libraries, threads and one-time tables are allocated. malloc_trim then returns freed memory, which would otherwise serve
the first megabytes unnoticed. The memory in use is the baseline, to which the kernel's high-water mark is reset.
Forward+backward runs twice (the second time with what the first has left behind, as in training), and the result is the
growth of the mark: VmHWM of /proc/self/status if the mark can be reset, else ru_maxrss, relative to its previous
maximum. Not timed.

    python -m benchmarks.kernels.peak_memory prnn|torch.nn NAME    the process of one case of the table; prints MiB
"""

from __future__ import annotations

import ctypes
import gc
import re
import resource
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.kernels.cases import TABLE, Case
from benchmarks.kernels.peers import OURS, REFERENCE, Problem, torch_nn

BUILD = {OURS: torch_nn.build_prnn, REFERENCE: torch_nn.build}
TIMES = 2


def run(chosen: Iterable[Case], threads: int) -> dict[str, object]:
    print("peak memory of forward+backward above module and input, MiB")
    records = []
    for case in chosen:
        mib, method = {}, ""
        for name in BUILD:
            command = [sys.executable, "-m", "benchmarks.kernels.peak_memory", name, case.name, str(threads)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            mib[name], method = float(output[0]), output[1]
        ratio = round(mib[OURS] / mib[REFERENCE], 3) if mib[REFERENCE] else None
        records.append({"name": case.name, "mib": mib, "ours_over_torch": ratio, "method": method})
        print(f"{case.name:34} prnn {mib[OURS]:8.1f}   torch.nn {mib[REFERENCE]:8.1f}   {ratio}", flush=True)
    return {"cases": records}


def peak_mib(case: Case, build: object, threads: int) -> tuple[float, str]:
    """The growth, and the counter it was read from."""
    torch.set_num_threads(threads)
    tiny = replace(case, T=4, B=2)
    build(Problem.of(tiny, True, threads)).run()
    contender = build(Problem.of(case, True, threads))
    before, method = _reset()
    for _ in range(TIMES):
        contender.run()
    return round((_mark(method) - before) / 1024, 1), method


def _reset() -> tuple[float, str]:
    """Reset the high-water mark to the memory in use; returns KiB in use, and a function that reads the mark."""
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _mark("ru_maxrss"), "ru_maxrss"
    return _mark("VmHWM"), "VmHWM"


def _mark(method: str) -> float:
    if method == "ru_maxrss":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text()).group(1))


if __name__ == "__main__":
    case_named = {case.name: case for case in TABLE}[sys.argv[2]]
    print(*peak_mib(case_named, BUILD[sys.argv[1]], int(sys.argv[3])))
