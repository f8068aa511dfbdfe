"""Time of gloo's all-reduce by number of processes and bytes: the data for the fit of ``alpha_beta.py``.

    python -m torch.distributed.run --standalone --nproc-per-node=2 -m benchmarks.scaling.allreduce 1024 4096

is the command that ``measure`` starts: a collective on all ranks; rank 0 prints a line of JSON. Results are the median
of ``SAMPLES`` samples with minimum and maximum; a sample starts after a barrier, and has as many calls as take
``SAMPLE_SECONDS``.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.common import stats
from benchmarks.common.files import ROOT
from prnn.config import DistributedConfig, TrainerConfig
from prnn.errors import UserError
from prnn.training import distributed

SIZES = tuple(4**power << 10 for power in range(9))  # 1 KiB to 64 MiB
FITTED = SIZES[::2]  # the others are held out
SAMPLES, SAMPLE_SECONDS = 9, 0.02


def measure(processes: int, sizes: Sequence[int] = SIZES) -> list[dict[str, Any]]:
    """One row per size. Oversubscribed runs, with more processes than cores, are marked."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*launch, "-m", "benchmarks.scaling.allreduce", *map(str, sizes)]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise UserError(
            f"all-reduces among {processes} processes failed: {(done.stderr.strip().splitlines() or [''])[-1]}"
        )
    rows = json.loads(done.stdout.splitlines()[-1])
    return [{**row, "oversubscribed": processes > len(os.sched_getaffinity(0))} for row in rows]


def point(size: int) -> dict[str, float]:
    """Milliseconds of an all-reduce of ``size`` bytes of float32, after its result has been verified."""
    tensor = torch.full((size // 4,), float(dist.get_rank() + 1))
    dist.all_reduce(tensor)
    n = dist.get_world_size()
    if not bool((tensor == n * (n + 1) / 2).all()):
        raise SystemExit(f"the sum of {size} bytes over {n} processes is wrong")
    tensor.zero_()  # so that sums of sums stay what they are
    once = torch.tensor(_seconds(tensor, 3))
    dist.all_reduce(once, dist.ReduceOp.MAX)  # all of them make the same number of calls
    calls = max(1, math.ceil(SAMPLE_SECONDS / once.item()))
    return stats.spread([1e3 * _seconds(tensor, calls) for _ in range(SAMPLES)], 5)


def _seconds(tensor: torch.Tensor, calls: int) -> float:
    dist.barrier()
    began = time.perf_counter()
    for _ in range(calls):
        dist.all_reduce(tensor)
    return (time.perf_counter() - began) / calls


def main() -> None:
    distributed.setup(DistributedConfig(), TrainerConfig(device="cpu", threads=1))  # as in training
    n = dist.get_world_size()
    rows = [{"processes": n, "bytes": int(word), "milliseconds": point(int(word))} for word in sys.argv[1:]]
    if dist.get_rank() == 0:
        print(json.dumps(rows), flush=True)
    distributed.leave(0)


if __name__ == "__main__":
    main()
