"""Builds the CUDA kernels for the emulated GPU and runs them:

python -m tests.cuda_emulation.build [THIN [SEED]]           one case in so many; other cases and schedules
python -m tests.cuda_emulation.build memory [THIN [SEED]]    the same of networks with soft stacks and lists
python -m tests.cuda_emulation.build plans                   the table of docs/kernels.md
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.native.build import WARNINGS, call, once, vectors

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "prnn" / "csrc"
EMULATOR = ("emulation.cpp", "machine.cpp")  # which know nothing of the kernels
SANITIZED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def _compiler() -> str:
    return os.environ.get("CXX", "g++").split()[0]


def build(
    folder: Path,
    source: Path = CSRC,
    flags: tuple[str, ...] = (),
    test: str = "test_recurrence",
    emulator: Path | None = None,
) -> Path:
    """Compiles the emulator and the kernels under ``source`` into ``folder``; returns the program of ``test``.

    Builds of the same sanitizers may share what is the same in all, in the folder ``emulator``.
    """
    compiler = _compiler()
    includes = [f"-I{path}" for path in (source, source / "cuda", HERE.parent / "native", HERE)]
    # The compiler expects getcontext to return twice, and warns of clobbered variables; here it returns once.
    options = ["-std=c++17", *WARNINGS, "-Wno-clobbered", "-Wno-unknown-pragmas", *flags]
    if any(flag.startswith("-fsanitize") for flag in flags):
        options.append("-g1")  # for their reports; it takes a quarter of the compiler's time

    # The kernels' .cpp files include no .cuh.
    same = all((source / "cuda" / header.name).read_bytes() == header.read_bytes() for header in CSRC.glob("cuda/*.h"))

    def compile_one(file: Path) -> str:
        of_emulator = file.name in EMULATOR
        shared = of_emulator or (same and file.parent != HERE)
        done = (emulator if shared and emulator else folder) / f"{file.stem}.o"
        done.parent.mkdir(parents=True, exist_ok=True)
        # The kernels are mostly waiting for the emulator: to compile them at -O1 takes longer than it saves.
        optimise = ["-O3", *vectors()] if of_emulator else ["-Og"]
        command = [compiler, *optimise, *options, *includes, "-c", str(file), "-o"]
        return str(once(done, lambda unfinished: call([*command, str(unfinished)])))

    with ThreadPoolExecutor(2) as pool:
        files = [HERE / name for name in (f"{test}.cpp", *EMULATOR)]
        files += [source / "cuda" / f"{name}.cpp" for name in ("planner", "timeouts")]
        objects = list(pool.map(compile_one, files))
    program = folder / test
    call([compiler, *flags, *objects, "-o", str(program)])
    return program


def plans(folder: Path) -> str:
    """What the cost model plans for the rows of docs/kernels.md."""
    program = folder / "plans"
    sources = [str(HERE / "plans.cpp"), str(CSRC / "cuda" / "planner.cpp")]
    call([_compiler(), "-std=c++17", f"-I{CSRC / 'cuda'}", *sources, "-o", str(program)])
    return subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout


def run(
    program: Path, thin: int = 1, seed: int = 1, *, first: str = "", timeout_seconds: float = 1200
) -> subprocess.CompletedProcess[str]:
    """Runs it; what it says is in ``stdout``.

    ``first``: "first", up to the first failure; "first long", of long passes on grids alone.
    """
    command = [str(program), str(thin), str(seed), *first.split()]
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=timeout_seconds
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help="as above", metavar="memory | plans | THIN [SEED]")
    what = parser.parse_args().what
    test = "test_memory" if what[:1] == ["memory"] else "test_recurrence"
    numbers = what[1:] if test == "test_memory" else what
    if what != ["plans"] and not (len(numbers) <= 2 and all(number.isdecimal() for number in numbers)):
        parser.error(f"expected THIN and SEED, whole numbers, got {' '.join(what)}")
    with tempfile.TemporaryDirectory() as temporary:
        if what == ["plans"]:
            print(plans(Path(temporary)), end="")
            return 0
        done = run(build(Path(temporary), test=test), *map(int, numbers), timeout_seconds=36000)
        print(done.stdout)
        return done.returncode


if __name__ == "__main__":
    sys.exit(main())
