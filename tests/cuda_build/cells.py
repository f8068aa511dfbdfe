"""Compiles CUDA kernels of ready cells (``prnn.cells``) without a GPU, and reads what ptxas says of them:

    python -m tests.cuda_build.cells [--out benchmarks/results/ptxas]

By NVRTC, as for a user: every scheme, pass and shape, for each architecture. Where there is an nvdisasm, the step loops
for sm_90 are counted as those of the built-in cells. With --out the table is recorded, together with a hash of the
sources, of which a test asks that they be these.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch

from benchmarks.common.arguments import folder
from benchmarks.sass.disassembly import NoDisassembler, disassemble, nvdisasm
from prnn import cells
from prnn.codegen import gpu, nvrtc
from prnn.codegen.build import CSRC, CannotCompile
from prnn.codegen.definition import struct_name
from prnn.codegen.headers import cuda_digest
from tests.cuda_build.build import JOBS, RECORD, StepLoop, loops_table, most, nvcc, verdict_of_loops

CELLS = ("leaky", "lif", "alif", "slstm", "ligru", "zoneout_lstm")
ARCHITECTURES = (80, 90, 100)
DTYPES = (torch.bfloat16, torch.float32)
DISASSEMBLED = 90
CELLS_RECORD = RECORD.with_name("cells.md")


@dataclass(frozen=True)
class CompiledKernel:
    """A kernel of a cell for one architecture."""

    cell: str
    dtype: torch.dtype
    key: gpu.KernelKey
    architecture: int
    compiled: gpu.Compiled
    resident: int

    @property
    def name(self) -> str:
        scheme, kind = gpu.SCHEMES[self.key.scheme], "backward" if self.key.backward else "forward"
        return f"{self.cell} {str(self.dtype).removeprefix('torch.')} {kind} {scheme} shape {self.key.shape}"


def keys() -> list[gpu.KernelKey]:
    """The kernels that a plan may need: of sums, backward ones; without a product, of one shape."""
    return [
        key
        for key in gpu.kernel_keys()
        if not (gpu.SCHEMES[key.scheme] == "sums" and not key.backward)
        and not (gpu.SCHEMES[key.scheme] == "units" and key.shape > 0)
    ]


NVRTC = gpu.Compiler("NVRTC", gpu.by_nvrtc)
NVCC = gpu.Compiler("nvcc", lambda text, architecture, flags: gpu.by_nvcc(text, architecture, flags, nvcc()))


def source_of(cell: str) -> gpu.Source:
    definition = getattr(cells, cell)
    return gpu.Source(definition.cell.generated[0], struct_name(definition.function), cell)


def make(
    cell: str, dtype: torch.dtype, key: gpu.KernelKey, architecture: int, compiler: gpu.Compiler = NVRTC
) -> CompiledKernel:
    compiled, resident = source_of(cell).fitted(compiler, dtype, key, architecture)
    return CompiledKernel(cell, dtype, key, architecture, compiled, resident)


def loop_of(made: CompiledKernel) -> StepLoop:
    """Raises NoDisassembler."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "cell.cubin"
        cubin.write_bytes(made.compiled.image)
        (function,) = (each for each in disassemble(cubin) if "prnn_user_kernel" in each.name)
        return StepLoop.of(function, made.name, gpu.SCHEMES[made.key.scheme] != "units")


def recipe() -> str:
    """What the kernels are made of. Raises CannotCompile where there is no NVRTC."""
    try:
        version = nvrtc.load().version
    except OSError as error:
        raise CannotCompile(str(error)) from None
    texts = [source_of(cell).emitted.digest for cell in CELLS]
    table = [source_of(cell).resident(dtype, key) for cell, dtype, key in _all()]
    hashed = hashlib.sha256(f"{cuda_digest(CSRC)} {texts} {table}".encode())
    return f"NVRTC {version}, sources {hashed.hexdigest()[:32]}"


def _all() -> Iterator[tuple[str, torch.dtype, gpu.KernelKey]]:
    yield from product(CELLS, DTYPES, keys())


def is_recorded() -> bool:
    """Whether the record is of these sources and this compiler."""
    return CELLS_RECORD.exists() and f"Made of: {recipe()}.\n" in CELLS_RECORD.read_text()


def table(kernels: list[CompiledKernel]) -> str:
    """Registers of each kernel, and its resident fragments; a spill is said."""
    rows: dict[str, dict[int, CompiledKernel]] = {}
    for made in kernels:
        rows.setdefault(made.name, {})[made.architecture] = made
    lines = ["| kernel | " + " | ".join(f"sm_{name}" for name in ARCHITECTURES) + " |", "|---|---|---|---|"]
    for name, row in sorted(rows.items()):
        texts = []
        for made in (row[architecture] for architecture in ARCHITECTURES):
            spilled = made.compiled.spilled_bytes
            texts.append(f"{made.compiled.registers}, {made.resident}" + (f", {spilled} B spilled" if spilled else ""))
        lines.append(f"| {name} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=folder, help="folder for cells.md")
    options = parser.parse_args()
    try:
        made_of = recipe()
        with ThreadPoolExecutor(JOBS) as pool:
            jobs = list(product(_all(), ARCHITECTURES))
            print(f"{len(jobs)} kernels: about 20 minutes on two cores", file=sys.stderr)
            kernels = list(pool.map(lambda job: make(*job[0], job[1]), jobs))
    except CannotCompile as reason:
        print(reason, file=sys.stderr)
        return 2
    spilling = sum(made.compiled.spilled_bytes > 0 for made in kernels)
    head = [f"- {spilling or 'none'} of {len(kernels)} kernels spill."]
    text = table(kernels)
    try:
        nvdisasm()
        loops = [loop_of(made) for made in kernels if made.architecture == DISASSEMBLED]
        head.append(verdict_of_loops(loops).replace("sm_90a", f"sm_{DISASSEMBLED}"))
        assert most(loops)
        text += f"\nThe step loops for sm_{DISASSEMBLED}, counts of instructions:\n\n{loops_table(loops)}"
    except NoDisassembler as reason:
        print(f"{reason}: the step loops are not counted", file=sys.stderr)
    page = (
        "Registers a thread of the kernels of ready cells, of 255, and how many fragments of the weights are in them, "
        "for each tile of 16 rows.\ngrid: of the grid regime; sums: of clusters in backward passes;"
        " units: of diagonal recurrences; local: of the rest."
        f"\nMade of: {made_of}.\n\n" + "\n".join(head) + f"\n\n{text}"
    )
    print(page)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / CELLS_RECORD.name).write_text(page)
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main())
