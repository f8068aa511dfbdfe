"""Roofline of this machine, measured in the same run, and the lower bound on the time of a case.

The fp32 peak is the larger of that of a small C program (floors.c) with fused multiply-adds and of torch's best GEMM.
With PRNN_CPU_ISA=avx2 the program is compiled for that; ATEN_CPU_CAPABILITY=avx2, ONEDNN_MAX_CPU_ISA=AVX2 and
MKL_ENABLE_INSTRUCTIONS=AVX2 limit torch likewise, and show what a machine without AVX-512 does.
Read bandwidth is measured with arrays that fit the L2 and L3 caches and with one that fits neither. Without a C
compiler torch's GEMM and torch.sum are used instead, and the record notes that.

A case's floor is the longer of two times: its FLOPs at the peak, and reading the recurrent weights from the nearest
memory level that holds them, once per step and pass. Weights that fit the L1 caches have no such memory bound: two
loads per cycle feed two multiply-adds per cycle. A kernel that keeps them in registers could beat the second time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.common.stats import once
from benchmarks.kernels.cases import Case

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
DRAM_BYTES = 128 << 20  # of each thread: more than any third-level cache we know
GEMM_SIZES = {torch.float32: (1024, 2048), torch.bfloat16: (512,)}  # without instructions for it, bf16 takes seconds


@dataclass(frozen=True)
class Floors:
    """FLOP/s and bytes/s of all ``threads`` together; caches in bytes, L1 and L2 of one core, L3 of the machine."""

    threads: int
    source: str
    flops: float
    gemm_flops: float
    gemm_bf16_flops: float
    l1_bytes: int
    l2_bytes: int
    l3_bytes: int
    l2_read: float
    l3_read: float
    dram_read: float

    def record(self) -> dict[str, object]:
        return asdict(self)

    def seconds(self, case: Case, train: bool) -> tuple[float, str]:
        """The floor of a case, and what sets it: "arithmetic" or the place the weights come from."""
        peak = self.flops if case.dtype == "float32" else max(self.flops, self.gemm_bf16_flops)
        arithmetic = case.flops(train) / peak
        each = case.recurrent_bytes() / self.threads  # the best a kernel can do: every core its own part
        if each <= self.l1_bytes:
            return arithmetic, "arithmetic"
        if each <= self.l2_bytes:
            place, rate = "L2", self.l2_read
        elif case.recurrent_bytes() <= self.l3_bytes:
            place, rate = "L3", self.l3_read
        else:
            place, rate = "DRAM", self.dram_read
        streaming = case.streamed_bytes(train) / rate
        return (streaming, f"weights from {place}") if streaming > arithmetic else (arithmetic, "arithmetic")


def measure(threads: int) -> Floors:
    """Measure the floors, in a second or two, on an otherwise idle machine."""
    l1, l2, l3 = (_cache_bytes(index) for index in (0, 2, 3))
    sizes = {"l2_read": l2 // 2, "l3_read": max(l3 // 4 // threads, 2 * l2), "dram_read": DRAM_BYTES}
    gemm, gemm_bf16 = _gemm(torch.float32), _gemm(torch.bfloat16)
    program = _run_program(threads, list(sizes.values()))
    if program is None:
        source, flops = "torch GEMM and torch.sum", 0.0
        rates = {name: _sum_rate(threads * size) for name, size in sizes.items()}
    else:
        source, flops = "floors.c and torch GEMM", program[0]
        rates = dict(zip(sizes, program[1:], strict=True))
    return Floors(threads, source, max(flops, gemm), gemm, gemm_bf16, l1, l2, l3, **rates)


def _cache_bytes(index: int) -> int:
    """Data caches by Linux's index (0: L1, 2: L2, 3: L3); a common size where the system does not say."""
    try:
        return int((CACHES / f"index{index}" / "size").read_text().strip().removesuffix("K")) << 10
    except (OSError, ValueError):
        return {0: 32 << 10, 2: 1 << 20, 3: 32 << 20}[index]


def _run_program(threads: int, sizes: list[int]) -> list[float] | None:
    """FLOP/s, then bytes/s of each size; None where there is no C compiler with OpenMP."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "floors"
        source = Path(__file__).with_name("floors.c")
        try:
            build = [compiler, "-O3", *_target(), "-fopenmp", str(source), "-o", str(program)]
            subprocess.run(build, check=True, capture_output=True)
            command = [str(program), str(threads), *map(str, sizes)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        except (OSError, subprocess.CalledProcessError):
            return None
    return [float(line.split()[-1]) for line in output.splitlines()]


def _target() -> list[str]:
    """The instruction set of the kernels: this processor's, or that which PRNN_CPU_ISA limits them to."""
    targets = {"avx2": ["-mavx2", "-mfma"], "portable": []}
    return targets.get(os.environ.get("PRNN_CPU_ISA", ""), ["-march=native"])


def _gemm(dtype: torch.dtype) -> float:
    best = 0.0
    for size in GEMM_SIZES[dtype]:
        a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
        tries = [once(partial(torch.mm, a, b)) for _ in range(6)]
        best = max(best, 2 * size**3 / min(tries))
    return best


def _sum_rate(size: int) -> float:
    array = torch.ones(size // 4)
    return size / min(once(array.sum) for _ in range(30))
