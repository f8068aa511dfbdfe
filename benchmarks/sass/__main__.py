"""Simulates a step of the CUDA kernels, from their machine code, without a GPU:

    python -m benchmarks.sass [--source DIR] [--shapes NAME ...] [--plan KEY=VALUE ...] [--out FILE.json|FILE.md]
                               [--build DIR]

The kernels under DIR are compiled for sm_90a and disassembled, and one block executes them: eight warps, each by one
lane, with the arguments of a launch on an H200, for twelve steps. Cycles and instructions a step are those between the
fifth and the ninth; the start is everything before the first, with weights that are in no cache. Shapes are those of
docs/kernels.md (lstm768, ...), forward and backward; `validation` are the four kernels that were profiled on an H200.
--plan forces fields of the plan, as PRNN_CUDA_PLAN does.

The timing is a model (latencies.py): it compares versions of the kernels. Instructions are counted exactly, but for
those that only some lanes of a warp execute, and polls.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common.arguments import file
from benchmarks.common.files import ROOT, write
from benchmarks.sass import launches, report
from benchmarks.sass.disassembly import Elf, NoDisassembler, disassemble, nvdisasm
from benchmarks.sass.launches import Case
from benchmarks.sass.machine import Fault, Machine, Unknown
from benchmarks.sass.results import Result, result_of
from tests.cuda_build.build import NoCompiler, nvcc


def compiled(source: Path, cell: str, folder: Path) -> Path:
    """The cubin of a cell's kernels, of these sources: taken from ``folder`` if it is there.

    Not that of another checkout, alike: its lines are looked up where it was compiled.
    """
    csrc = source / "prnn" / "csrc"
    hashed = hashlib.sha256(f"{nvcc()} {csrc}".encode())
    for path in sorted([*csrc.glob("*.h"), *csrc.glob("cuda/*.[hc]*")]):
        hashed.update(path.name.encode() + path.read_bytes())
    cubin = folder / f"{cell}-{hashed.hexdigest()[:16]}.cubin"
    if cubin.exists():
        return cubin
    unfinished = cubin.with_suffix(".unfinished")
    flags = ["-std=c++17", "-O3", "-arch=sm_90a", "-lineinfo", "-diag-suppress=128", "-cubin"]
    command = [nvcc(), *flags, str(csrc / "cuda" / f"kernels_{cell}.cu"), "-o", str(unfinished)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"nvcc: {done.stderr}")
    unfinished.rename(cubin)
    return cubin


def simulate(case: Case, cubin: Path, built: Path, pattern: str = "", lane: int = 0) -> Result:
    launch = launches.launch(built, case)
    elf = Elf(cubin.read_bytes())
    names = [name.removeprefix(".text.") for name in elf.sections if name.startswith(".text.")]
    name = launches.kernel_of(names, case, launch, pattern)
    function = disassemble(cubin, lines=True, only=name)[0]
    machine = Machine(function, launch, elf.parameters(name), lane, constants=elf.constants(name))
    machine.run()
    return result_of(case, machine)


def chosen(names: list[str], plan: list[str]) -> list[Case]:
    """Cases by their names, or "validation"; NAME/forward and NAME/backward are one pass."""
    cases = []
    for name in names:
        shape, _, kind = name.partition("/")
        if shape == "validation":
            found = list(launches.VALIDATION)
        else:
            found = [case for case in (*launches.CASES, *launches.VALIDATION) if case.name == shape]
        found = [case for case in found if not kind or case.backward == (kind == "backward")]
        if not found:
            known = ", ".join(dict.fromkeys(case.name for case in (*launches.CASES, *launches.VALIDATION)))
            raise SystemExit(f"sass: no shape {name}; there are {known}, validation")
        cases += found
    pairs = tuple((key, value) for key, _, value in (text.partition("=") for text in plan))
    return [dataclasses.replace(case, filter=case.filter + pairs) for case in cases]


def version(source: Path) -> str:
    """The commit that changed the kernels last."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(source), *words], capture_output=True, text=True).stdout.strip()

    commit = git("log", "-1", "--format=%h", "--", "prnn/csrc")
    changed = git("status", "--porcelain", "--", "prnn/csrc")
    return f"commit {commit}" + (", changed" if changed else "") if commit else source.name


def page(text: str) -> Path:
    """A path whose suffix says what is written."""
    path = file(text)
    if path.suffix not in (".json", ".md"):
        raise argparse.ArgumentTypeError(f"{text} must end with .json or .md")
    return path


def field(text: str) -> str:
    """KEY=VALUE."""
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, such as regime=grid")
    return text


def main() -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sass", description=__doc__, formatter_class=form)
    parser.add_argument("--source", type=Path, default=ROOT, help="a checkout; this one by default")
    every = [*dict.fromkeys(case.name for case in launches.CASES)]
    parser.add_argument("--shapes", nargs="+", default=every, metavar="NAME", help=f"{' '.join(every)} validation")
    parser.add_argument(
        "--plan", nargs="+", type=field, default=[], metavar="KEY=VALUE", help="regime shape row_warps blocks tiles"
    )
    parser.add_argument("--kernel", default="", metavar="REGEX", help="of its mangled name, where several fit")
    parser.add_argument("--lane", type=int, default=0, help="the lane of each warp that is followed")
    parser.add_argument("--out", type=page, help="FILE.json or FILE.md")
    parser.add_argument("--build", type=Path, help="folder in which cubins are kept, by a hash of the sources")
    options = parser.parse_args()
    cases = chosen(options.shapes, options.plan)
    source = options.source.resolve()
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.build or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            nvdisasm()
            built = launches.program(source, Path(temporary))
            cubins = {cell: compiled(source, cell, folder) for cell in dict.fromkeys(case.cell for case in cases)}
            for case in cases:
                results.append(simulate(case, cubins[case.cell], built, options.kernel, options.lane))
        except (NoCompiler, NoDisassembler) as reason:
            print(reason, file=sys.stderr)
            return 2
        except (Fault, Unknown, RuntimeError) as error:
            print(f"sass: {error}", file=sys.stderr)
            return 1
    title = f"A step simulated from the machine code for sm_90a of {version(source)}, at 1.98 GHz (benchmarks.sass)."
    text = report.page(results, title)
    print(text)
    if options.out:
        as_json = json.dumps([dataclasses.asdict(r) for r in results], indent=1) + "\n"
        write(options.out, as_json if options.out.suffix == ".json" else text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
