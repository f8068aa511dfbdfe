"""Compiles every CUDA kernel without a GPU and reads what ptxas says of it:

    python -m tests.cuda_build.build [--out benchmarks/results/ptxas]

and, where there is an nvdisasm (benchmarks/sass/disassembly.py), counts what the step loops for sm_90a consist of.
With --out both are recorded, together with a hash of the sources: while these and nvcc's release stay the
same, so do the kernels, and the tests do not compile them again.

nvcc is $NVCC, or the one on the PATH, or that of the PyPI packages in NVCC_PACKAGES, whichever is there.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common.arguments import folder
from benchmarks.sass.disassembly import Function, Instruction, NoDisassembler, disassemble, nvdisasm, step_loop
from benchmarks.sass.semantics import bytes_of
from benchmarks.sass.stages import is_division

ROOT = Path(__file__).resolve().parents[2]
CUDA = ROOT / "prnn" / "csrc" / "cuda"
MICRO = ROOT / "benchmarks" / "gpu_check" / "micro.cu"
CELLS = re.findall(r"^  X\((\w+), \w+\)", (CUDA / "cuda_cells.h").read_text(), re.MULTILINE)
SCHEMES = re.findall(r"\w+", re.search(r"enum class Scheme : int {(.*?)}", (CUDA / "cuda_cells.h").read_text())[1])
ARCHITECTURES = ("80", "90a", "100a")  # setup.py builds for these generations
FLAGS = ("-std=c++17", "-O3", "-Xptxas", "-v")
RECORD = ROOT / "benchmarks" / "results" / "ptxas" / "kernels.md"
NVCC_PACKAGES = ("nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-nvvm", "nvidia-cuda-runtime")
DISASSEMBLED = "90a"
WIDTHS = (8, 16, 32, 64, 128)  # bits
JOBS = 2


class NoCompiler(Exception):
    """There is no nvcc on this machine."""


@dataclass(frozen=True)
class Kernel:
    """One kernel for one architecture: what ptxas gave it."""

    name: str
    architecture: str
    registers: int
    stack_bytes: int
    spilled_bytes: int

    @property
    def spills(self) -> bool:
        return self.spilled_bytes > 0 or self.stack_bytes > 0


@dataclass(frozen=True)
class StepLoop:
    """What the machine code of one kernel has in its step loop, in numbers of instructions."""

    name: str
    divisions: int  # integer divisions by unknown divisors, in the whole kernel
    divisions_in_loop: int
    instructions: int
    local: int  # accesses of local memory
    fences: int  # of the GPU or the system
    permutes: int
    early: int  # ``early_permutes``
    loads: tuple[int, ...]  # of data in global memory, by WIDTHS; not the words of an exchange
    stores: tuple[int, ...]

    @classmethod
    def of(cls, function: Function, name: str | None = None, has_product: bool = True) -> StepLoop:
        loop = step_loop(function, has_product)

        def named(*names: str) -> int:
            return sum(it.name in names for it in loop)

        def widths(name: str) -> tuple[int, ...]:
            data = [8 * bytes_of(it) for it in loop if it.name == name and "STRONG" not in it.modifiers]
            return tuple(data.count(width) for width in WIDTHS)

        return cls(
            name=name or readable(function.name),
            divisions=sum(map(is_division, function.code)),
            divisions_in_loop=sum(map(is_division, loop)),
            instructions=len(loop),
            local=named("LDL", "STL"),
            fences=sum(it.name == "MEMBAR" and "CTA" not in it.modifiers for it in loop),
            permutes=named("PRMT"),
            early=early_permutes(loop) if has_product else 0,
            loads=widths("LDG"),
            stores=widths("STG"),
        )


def early_permutes(loop: list[Instruction]) -> int:
    """Prefetched 16-bit elements that a PRMT reads, for which it waits, before the next product or fence.

    In the order of the code, which goes around: about that of a step.
    """
    found = 0
    for at, load in enumerate(loop):
        if load.name != "LDG" or "U16" not in load.modifiers:
            continue
        to = load.operands[0]
        for it in loop[at + 1 :] + loop[:at]:
            written = it.operands[1:2] if it.name == "SHFL" else it.operands[:1]  # after its predicate
            if it.name in ("HMMA", "HGMMA", "MEMBAR") or (to in written and it.name != "PRMT"):
                break
            if it.name == "PRMT" and any(operand.lstrip("-|~").split(".")[0] == to for operand in it.operands[1:]):
                found += 1
                break
    return found


def nvcc() -> str:
    """The compiler; raises NoCompiler."""
    packaged = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin/nvcc"))
    for found in (os.environ.get("NVCC"), shutil.which("nvcc"), *map(str, packaged)):
        if found and Path(found).exists():
            return found
    raise NoCompiler(f"no nvcc: install a CUDA toolkit, or pip install {' '.join(NVCC_PACKAGES)}")


def release() -> str:
    """nvcc's release, such as "13.0"."""
    version = subprocess.run([nvcc(), "--version"], capture_output=True, text=True).stdout
    return re.search(r"release ([\d.]+)", version)[1]


def recipe() -> str:
    """What the kernels are made of: nvcc's release, the flags and a hash of the sources."""
    headers = [path for path in CUDA.parent.glob("*.h") if not path.name.startswith("bindings")]
    sources = [MICRO, *MICRO.parent.glob("*.cuh"), *headers, *CUDA.glob("*.[hc]*")]
    hashed = hashlib.sha256()
    for path in sorted(sources):
        hashed.update(f"{path.relative_to(ROOT)}\0{path.read_text()}\0".encode())
    return f"nvcc {release()} {' '.join(FLAGS)}, sources {hashed.hexdigest()[:32]}"


def cubins(source: Path, architecture: str, folder: Path) -> Path:
    """Where compile_one leaves a file's machine code, among the compiler's other intermediate files."""
    return folder / f"{source.stem}_{architecture}"


def compile_one(source: Path, architecture: str, folder: Path) -> str:
    """ptxas' words about a file; RuntimeError with the compiler's where it fails."""
    target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    command = [nvcc(), *FLAGS, target, f"-I{CUDA}", "-c", str(source)]
    kept = cubins(source, architecture, folder)
    kept.mkdir(exist_ok=True)
    command += ["--keep", "--keep-dir", str(kept), "-o", str(folder / f"{source.stem}_{architecture}.o")]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{source.name} for sm_{architecture}:\n{done.stdout}")
    return done.stdout


def readable(mangled: str) -> str:
    """recurrence_forward<Lstm, Bfloat16, Scheme::grid, 0> of a mangled name, or memory_forward_kernel<double>."""
    kind = "forward" if "_forward" in mangled else "backward"
    if "memory_" in mangled:
        return f"memories {'float64' if 'kernelId' in mangled else 'float32'} {kind}"
    cell = next(cell for cell in CELLS if f"{len(cell)}{cell}" in mangled)
    element = next((name for name in ("Bfloat16", "Float16") if name in mangled), "float32")
    scheme, shape = re.search(r"SchemeE(\d)ELi(\d)E", mangled).groups()
    return f"{cell} {element} {kind} {SCHEMES[int(scheme)]} shape {shape}"


def kernels_of(said: str, architecture: str) -> list[Kernel]:
    found = []
    for part in said.split("Compiling entry function '")[1:]:
        mangled = part.split("'", 1)[0]
        if "recurrence_" not in mangled and "memory_" not in mangled:  # of benchmarks/gpu_check/micro.cu
            continue
        name = readable(mangled)
        stack, stores, loads = (
            int(re.search(rf"(\d+) bytes {what}", part)[1]) for what in ("stack frame", "spill stores", "spill loads")
        )
        registers = int(re.search(r"Used (\d+) registers", part)[1])
        found.append(Kernel(name, architecture, registers, stack, stores + loads))
    return found


def has_steps(source: Path) -> bool:
    return source.stem.startswith("kernels_") and "memory" not in source.stem


def loops_of_cell(source: Path, folder: Path) -> list[StepLoop]:
    """Of the kernels of a cell that compile_one has compiled for DISASSEMBLED; raises NoDisassembler."""
    (cubin,) = cubins(source, DISASSEMBLED, folder).glob("*.cubin")
    return [StepLoop.of(function) for function in disassemble(cubin) if "recurrence_" in function.name]


def sources() -> list[Path]:
    return sorted(CUDA.glob("kernels_*.cu"), key=lambda path: "lstm" not in path.name)  # the slowest first


def build(folder: Path) -> list[Kernel]:
    """All kernels for all architectures."""
    jobs = [(source, name) for source in (*sources(), CUDA / "launch.cu") for name in ARCHITECTURES]
    jobs.append((MICRO, "90a"))
    with ThreadPoolExecutor(JOBS) as pool:
        output = list(pool.map(lambda job: compile_one(*job, folder), jobs))
    return [k for (_, name), text in zip(jobs, output, strict=True) for k in kernels_of(text, name)]


def table(kernels: list[Kernel]) -> str:
    """Registers of each kernel, an architecture a column; a spill is said."""
    lines = ["| kernel | " + " | ".join(f"sm_{name}" for name in ARCHITECTURES) + " |"]
    lines.append("|---" * (len(ARCHITECTURES) + 1) + "|")
    by_name: dict[str, dict[str, Kernel]] = {}
    for kernel in kernels:
        by_name.setdefault(kernel.name, {})[kernel.architecture] = kernel
    for name, row in sorted(by_name.items()):
        cells = []
        for architecture in ARCHITECTURES:
            if architecture not in row:
                cells.append("not built")
                continue
            kernel = row[architecture]
            spill = f", {kernel.spilled_bytes} B spilled" if kernel.spills else ""
            cells.append(f"{kernel.registers}{spill}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def verdict(kernels: list[Kernel], architecture: str) -> str:
    """How many kernels of an architecture spill, in a line of the record."""
    here = [kernel.spills for kernel in kernels if kernel.architecture == architecture]
    return f"- sm_{architecture}: {sum(here) or 'none'} of {len(here)} kernels spill."


def loops_table(loops: list[StepLoop]) -> str:
    of_widths = "/".join(map(str, WIDTHS))
    head = ["kernel", "divisions", "in the step loop", "instructions", "local", "fences", "PRMT", "early"]
    head += [f"loads of {of_widths} bits", "stores"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for loop in sorted(loops, key=lambda loop: loop.name):
        counts = (loop.divisions, loop.divisions_in_loop, loop.instructions, loop.local, loop.fences)
        counts += (loop.permutes, loop.early)
        widths = ("/".join(map(str, several)) for several in (loop.loads, loop.stores))
        lines.append(f"| {loop.name} | " + " | ".join([*map(str, counts), *widths]) + " |")
    return "\n".join(lines) + "\n"


def most(loops: list[StepLoop]) -> tuple[int, int, int, int]:
    """The most divisions in a kernel; in a step loop divisions, accesses of local memory and ``early_permutes``."""
    return (
        max(loop.divisions for loop in loops),
        max(loop.divisions_in_loop for loop in loops),
        max(loop.local for loop in loops),
        max(loop.early for loop in loops),
    )


def verdict_of_loops(loops: list[StepLoop]) -> str:
    """A line of the record."""
    divisions, inside, local, early = most(loops)
    return (
        f"- sm_{DISASSEMBLED}, machine code: at most {divisions} integer divisions in a kernel, {inside} in a step "
        f"loop; {local} accesses of local memory in a step loop, {early} early permutes."
    )


def recorded_loops() -> tuple[int, int, int, int] | None:
    """``most`` as RECORD has it, if that is of these sources and this compiler."""
    text = RECORD.read_text() if RECORD.exists() else ""
    pattern = rf"^- sm_{DISASSEMBLED}, machine code: \D*(\d+) integer divisions\D*(\d+) in a step loop; (\d+) \D*(\d+) "
    found = re.search(pattern, text, re.MULTILINE)
    if not found or f"{recipe()}.\n" not in text:
        return None
    divisions, inside, local, early = map(int, found.groups())
    return divisions, inside, local, early


def recorded_without_spills(architecture: str) -> bool:
    """Whether RECORD is of these sources and this compiler and says that no kernel of the architecture spills."""
    text = RECORD.read_text() if RECORD.exists() else ""
    return f"{recipe()}.\n" in text and f"- sm_{architecture}: none of " in text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=folder, help="folder for kernels.md")
    options = parser.parse_args()
    try:
        made_of = recipe()
    except NoCompiler as reason:
        print(reason, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as temporary:
        kernels = build(Path(temporary))
        text, loops = table(kernels), []
        try:
            nvdisasm()
            loops = [
                loop for source in sources() if has_steps(source) for loop in loops_of_cell(source, Path(temporary))
            ]
            text += f"\nThe step loops for sm_{DISASSEMBLED}, counts of instructions:\n\n{loops_table(loops)}"
        except NoDisassembler as reason:
            print(f"{reason}: the step loops are not counted", file=sys.stderr)
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        head = (
            "Registers a thread of every kernel, of 255. Shared memory is a plan's: docs/kernels.md.\n"
            "grid: of the grid regime; sums: of clusters in backward passes of several gates; local: of the rest.\n"
        )
        head += f"Made of: {made_of}.\n\n"
        head += "".join(verdict(kernels, name) + "\n" for name in ARCHITECTURES)
        head += verdict_of_loops(loops) + "\n" if loops else ""
        (options.out / RECORD.name).write_text(f"{head}\n{text}")
    return 1 if any(k.spills for k in kernels) else 0


if __name__ == "__main__":
    sys.exit(main())
