"""Simulates a step of the CUDA kernels of ready cells (``prnn.cells``), as ``benchmarks.sass`` does of built-in ones:

    python -m benchmarks.sass.cells [--out FILE.md]

NVRTC compiles them for sm_90, each with the plan for an H200; the microseconds are predictions.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import torch

from benchmarks.common.arguments import file
from benchmarks.common.files import ROOT, write
from benchmarks.sass import launches, report
from benchmarks.sass.__main__ import version
from benchmarks.sass.disassembly import Elf, NoDisassembler, disassemble, nvdisasm
from benchmarks.sass.launches import Case, Launch
from benchmarks.sass.machine import Fault, Machine, Unknown
from benchmarks.sass.results import Result, result_of
from prnn import cells
from prnn.codegen import gpu, nvrtc
from prnn.codegen.build import CannotCompile
from prnn.codegen.definition import struct_name

NAMES = ("leaky", "alif", "slstm")
WITHOUT_PRODUCT = ("leaky", "alif")  # with a diagonal recurrence: a layer of spiking neurons, in most networks
ARCHITECTURE = 90


def cases() -> Iterator[Case]:
    for name, H, B, backward in product(NAMES, (256, 768), (16, 64), (False, True)):
        yield Case(f"{name}, H {H}, B {B}", name, "bfloat16", B, H, backward=backward)
    for name, backward in product(WITHOUT_PRODUCT, (False, True)):
        yield Case(f"{name}, diagonal, H 768, B 64", name, "bfloat16", 64, 768, backward=backward, K=1, T=48)


def _with_lines(text: str, architecture: int, flags: Sequence[str]) -> gpu.Compiled:
    """By NVRTC, with line information, from which the stages of a step are derived."""
    return gpu.by_nvrtc(text, architecture, (*flags, "-lineinfo"))


def planned(built: Path, case: Case) -> tuple[Launch, bytes]:
    """The launch of the case's plan, and the machine code of the kernel that it wants."""
    definition = getattr(cells, case.cell)
    source = gpu.Source(definition.cell.generated[0], struct_name(definition.function), case.cell)
    dtype, compiler = getattr(torch, case.dtype), gpu.Compiler("NVRTC", _with_lines)
    table = {key: source.resident(dtype, key) for key in gpu.kernel_keys()}
    while True:  # a plan may change with the number of resident fragments, which compiling tells
        text = " ".join(map(str, (case.cell, *source.sizes, *table.values())))
        launch = launches.launch(built, dataclasses.replace(case, cell=text))
        key = gpu.KernelKey(launch.values["scheme"], case.backward, launch.values["shape"])
        compiled, fits = source.fitted(compiler, dtype, key, ARCHITECTURE)
        if fits == table[key]:
            return launch, compiled.image
        table[key] = fits


def simulate(built: Path, case: Case) -> Result:
    launch, image = planned(built, case)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "cell.cubin"
        cubin.write_bytes(image)
        elf = Elf(image)
        name = next(name for name in elf.sections if name == ".text.prnn_user_kernel").removeprefix(".text.")
        function = disassemble(cubin, lines=True, only=name)[0]
    machine = Machine(function, launch, elf.parameters(name), 0, constants=elf.constants(name))
    machine.run()
    return result_of(case, machine)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=file, help="FILE.md")
    options = parser.parse_args()
    try:
        nvdisasm()
        nvrtc.load()
        with tempfile.TemporaryDirectory() as folder:
            built = launches.program(ROOT, Path(folder))
            results = [simulate(built, case) for case in cases()]
    except (NoDisassembler, OSError) as reason:
        print(reason, file=sys.stderr)
        return 2
    except (CannotCompile, Fault, Unknown, RuntimeError) as error:
        print(f"sass: {error}", file=sys.stderr)
        return 1
    title = (
        f"A step of ready cells in bfloat16, predicted from machine code for sm_{ARCHITECTURE} of {version(ROOT)}, at"
        " 1.98 GHz (benchmarks.sass.cells)."
    )
    text = report.page(results, title)
    print(text)
    if options.out:
        write(options.out, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
