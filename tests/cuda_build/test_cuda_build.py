"""The CUDA kernels compile, and none for sm_90a spills; their step loops; the binding compiles against torch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch

from benchmarks.sass.disassembly import NoDisassembler, instruction
from tests.cuda_build import build

# Integer divisions by unknown divisors, some 35 instructions each, and accesses of local memory. The goal is 12, 0, 0.
MOST_DIVISIONS, MOST_DIVISIONS_IN_STEP, MOST_LOCAL_IN_STEP = 12, 0, 0

CELL_FILES = sorted(path.name for path in build.CUDA.glob("kernels_*.cu") if "memory" not in path.name)


def of_cell(name: str) -> int:
    """The kernels of a cell: elements, shapes, schemes of both passes; sums are exchanged for several gates."""
    return 3 * 3 * (4 if "rnn" in name else 5)


OF_MEMORIES = 2 * 2  # elements, passes
# The LSTM needs most registers: it stands for the other cells on the older generation, whose ways through the code
# the emulator tests. What is built for sm_100a takes sm_90a's. By hand all are built.
COMPILED = [
    *((build.CUDA / name, "90a", of_cell(name)) for name in CELL_FILES),
    (build.CUDA / "kernels_lstm.cu", "80", of_cell("lstm")),
    (build.CUDA / "kernels_memory.cu", "90a", OF_MEMORIES),
    (build.CUDA / "launch.cu", "90a", 0),
    (build.MICRO, "90a", 0),
]


def test_each_cell_has_a_file() -> None:
    assert {name.replace("_", "") for name in CELL_FILES} == {f"kernels{cell.lower()}.cu" for cell in build.CELLS}


@pytest.mark.slow(seconds=45)
@pytest.mark.parametrize(("source", "architecture", "count"), COMPILED, ids=lambda value: getattr(value, "stem", value))
def test_kernels_compile_and_none_spills(source: Path, architecture: str, count: int, tmp_path: Path) -> None:
    try:
        recorded = build.recorded_without_spills(architecture)
    except build.NoCompiler as reason:
        pytest.skip(str(reason))
    disassembled = architecture == build.DISASSEMBLED and build.has_steps(source)
    loops = build.recorded_loops() if disassembled else None
    if loops:
        check_loops(*loops)
    if recorded and (loops or not disassembled):
        pytest.skip(f"{build.RECORD.relative_to(build.ROOT)} is of these sources: none spills")
    kernels = build.kernels_of(build.compile_one(source, architecture, tmp_path), architecture)
    print(build.table(kernels))
    assert len(kernels) == len({kernel.name for kernel in kernels}) == count  # a row of the record each
    spilling = [k for k in kernels if k.spills]
    assert not spilling, build.table(spilling)
    if not disassembled:
        return
    try:
        found = build.loops_of_cell(source, tmp_path)
    except NoDisassembler as reason:
        pytest.skip(f"none spills; step loops were not looked at: {reason}")
    print(build.loops_table(found))
    assert len(found) == count and all(loop.instructions for loop in found)
    check_loops(*build.most(found))


def check_loops(divisions: int, in_step: int, local: int, early: int) -> None:
    assert divisions <= MOST_DIVISIONS
    assert in_step <= MOST_DIVISIONS_IN_STEP
    assert local <= MOST_LOCAL_IN_STEP
    assert early == 0


@pytest.mark.parametrize(
    ("texts", "count"),
    [
        (("LDG.E.U16 R4, desc[UR8][R6.64]", "PRMT R5, R4, 0x5410, R9", "HMMA.16816.F32 R8, R8, R12, R8"), 1),
        (("LDG.E.U16 R4, desc[UR8][R6.64]", "HMMA.16816.F32 R8, R8, R12, R8", "PRMT R5, R4, 0x5410, R9"), 0),
        (("LDG.E.U16 R4, desc[UR8][R6.64]", "SHFL.BFLY PT, R4, R5, 0x1, 0x1f", "PRMT R5, R4, 0x5410, R9"), 0),
        (("PRMT R4, R5, 0x7610, R4", "HMMA.16816.F32 R8, R8, R12, R8", "LDG.E.U16 R4, desc[UR8][R6.64]"), 1),
        (
            (
                "IADD3 R4, R5, R6, RZ",
                "PRMT R5, R4, 0x5410, R9",
                "LDG.E.U16 R4, desc[UR8][R6.64]",
                "HMMA R8, R8, R12, R8",
            ),
            0,
        ),
    ],
)
def test_early_permutes(texts: tuple[str, ...], count: int) -> None:
    assert build.early_permutes([instruction(16 * at, text) for at, text in enumerate(texts)]) == count


@pytest.mark.parametrize(
    ("mangled", "name"),
    [
        (
            "_ZN4prnn4cuda18recurrence_forwardINS0_5exact4LstmEfLNS0_6SchemeE1ELi2EEEv",
            "Lstm float32 forward grid shape 2",
        ),
        (
            "_ZN4prnn4cuda19recurrence_backwardINS0_5quick4LstmENS0_8Bfloat16ELNS0_6SchemeE2ELi0EEEv",
            "Lstm Bfloat16 backward sums shape 0",
        ),
    ],
)
def test_names(mangled: str, name: str) -> None:
    assert build.readable(mangled) == name


@pytest.mark.slow(seconds=20)
@pytest.mark.parametrize("name", ["bindings_cuda", "bindings_cuda_memory"])
def test_binding_compiles(name: str) -> None:
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler}")
    include = Path(torch.__file__).parent / "include"
    headers = (include, include / "torch" / "csrc" / "api" / "include", sysconfig.get_path("include"))
    # setup.py cannot be imported without setting up.
    target = re.search(r'TORCH_TARGET = "(\w+)"', (build.ROOT / "setup.py").read_text())[1]
    flags = ["-std=c++20", "-O0", "-fsyntax-only", "-DUSE_CUDA", f"-DTORCH_TARGET_VERSION={target}"]
    source = build.ROOT / "prnn" / "csrc" / f"{name}.cpp"
    command = [compiler, *flags, *(f"-I{path}" for path in headers), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
