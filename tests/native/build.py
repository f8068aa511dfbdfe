"""Builds the torch-free test program of the CPU kernels and runs it: ``python tests/native/build.py [variant ...]``.

Without arguments all variants run, one after the other. What is built lands in ``--build DIR`` (a temporary directory
unless given); ``--source DIR`` tests another prnn/csrc/cpu, a deliberately broken one for example.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CPU = HERE.parents[1] / "prnn" / "csrc" / "cpu"
DRIVER = ("driver.cpp", "memory_driver.cpp", "plan.cpp", "scratch.cpp", "team.cpp")
WARNINGS = (
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-psabi",
)  # psabi: vectors wider than the target's are only passed inline
JOBS = 2


@dataclass(frozen=True)
class Variant:
    """How one program is compiled and run.

    ``lanes`` takes one kernel file for any machine in place of those for instruction sets; ``thin`` runs one case in
    so many; ``build`` names another variant whose program is the same.
    """

    flags: tuple[str, ...] = ("-O2",)
    lanes: int | None = None
    thin: int = 1
    isa: str | None = None
    build: str | None = None
    compiler: str | None = None
    run: tuple[str, ...] = ()


VARIANTS = {
    "plain": Variant(thin=6),
    "wide": Variant(("-Og",), lanes=16, thin=16),
    "asan": Variant(
        ("-Og", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DPRNN_POISON_SCRATCH"),
        lanes=8,
        thin=20,
    ),
    "tsan": Variant(("-Og", "-g1", "-fsanitize=thread"), lanes=8, thin=40),
    "arm": Variant(("-O1", "-static"), thin=40, compiler="aarch64-linux-gnu-g++", run=("qemu-aarch64",)),
    # The same program as plain: last, so that two workers seldom wait for one build.
    "portable": Variant(build="plain", isa="portable", thin=16),
    "avx512": Variant(build="plain", isa="avx512", thin=6),
    "avx512_bf16": Variant(build="plain", isa="avx512_bf16", thin=6),
}


class CannotRun(Exception):
    """This machine lacks what a variant needs."""


class BuildFailed(Exception):
    """The compiler's command and what it said."""


def compiler_of(variant: Variant) -> str:
    return variant.compiler or os.environ.get("CXX", "g++").split()[0]


def check_tools(variant: Variant) -> None:
    """Raises CannotRun without the compiler, the sanitizers' runtime, the emulator, or the instruction set."""
    for tool in (compiler_of(variant), *variant.run):
        if shutil.which(tool) is None:
            raise CannotRun(f"{tool} is not installed")
    if any(flag.startswith("-fsanitize") for flag in variant.flags):
        with tempfile.TemporaryDirectory() as folder:
            probe = Path(folder) / "probe.cpp"
            probe.write_text("int main() {}\n")
            command = [compiler_of(variant), *variant.flags, str(probe), "-o", str(probe.with_suffix(""))]
            if (
                subprocess.run(command, capture_output=True).returncode
                or subprocess.run(probe.with_suffix("")).returncode
            ):
                raise CannotRun(f"{compiler_of(variant)} has no runtime for {' '.join(variant.flags)}")
    if variant.isa and variant.isa != "portable":
        cpuinfo = Path("/proc/cpuinfo")
        wanted = {"avx512": "avx512bw", "avx512_bf16": "avx512_bf16"}[variant.isa]
        if platform.machine() != "x86_64" or not cpuinfo.exists() or wanted not in cpuinfo.read_text().split():
            raise CannotRun(f"this processor has no {variant.isa}")


def call(command: list[str]) -> None:
    """Runs a compiler; its messages are the error's where it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise BuildFailed(f"{' '.join(command)}\n{done.stdout}")


def once(file: Path, make: Callable[[Path], None]) -> Path:
    """``file``, which the first of the processes that share its folder makes, under another name until it is whole."""
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            make(unfinished := file.with_suffix(".part"))
            unfinished.rename(file)
    return file


def build(name: str, folder: Path, source: Path = CPU) -> Path:
    """Compiles a variant into ``folder``, two files at a time; returns the program. Processes may share a folder."""
    variant = VARIANTS[VARIANTS[name].build or name]
    folder = folder / (VARIANTS[name].build or name)
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "native_test"

    def make(unfinished: Path) -> None:
        kernels = sorted(source.glob("kernels_*.cpp")) if variant.lanes is None else []
        choice = source / "dispatch.cpp" if variant.lanes is None else HERE / "any_machine.cpp"
        files = [*kernels, choice, *sorted(HERE.glob("test_*.cpp")), HERE / "main.cpp", *(source / f for f in DRIVER)]
        files.sort(key=lambda file: "kernels" not in file.name and "any_machine" not in file.name)  # the slowest first
        compiler = compiler_of(variant)
        flags = ["-std=c++17", *variant.flags, *WARNINGS, f"-I{source}", f"-I{source.parent}", f"-I{HERE}"]
        if variant.lanes is not None:
            flags.append(f"-DPRNN_LANES={variant.lanes}")

        def compile_one(file: Path) -> Path:
            done = folder / (file.stem + ".o")
            # The reference implementation takes most of a sanitizer's time: it pays to optimise it.
            optimise = ["-O1"] if file.parent == HERE and file != choice else []
            call([compiler, *flags, *optimise, "-c", str(file), "-o", str(done)])
            return done

        with ThreadPoolExecutor(JOBS) as pool:
            objects = [str(done) for done in pool.map(compile_one, files)]
        call([compiler, *variant.flags, *objects, "-pthread", "-o", str(unfinished)])

    return once(program, make)


def run(name: str, program: Path, timeout_seconds: float = 1800) -> subprocess.CompletedProcess[str]:
    """Runs the variant's program; its output is in ``stdout``."""
    variant = VARIANTS[name]
    environment = {key: value for key, value in os.environ.items() if key != "PRNN_CPU_ISA"}
    if variant.isa:
        environment["PRNN_CPU_ISA"] = variant.isa
    environment["TSAN_OPTIONS"] = "halt_on_error=1:allocator_may_return_null=1"  # as malloc does
    environment["ASAN_OPTIONS"] = "allocator_may_return_null=1"
    command = [*variant.run, str(program), str(variant.thin)]
    done = subprocess.run(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",  # a broken kernel may write over what is printed
        timeout=timeout_seconds,
    )
    if variant.isa and done.returncode == 0 and f"instruction set: {variant.isa}\n" not in done.stdout:
        raise CannotRun(f"{variant.isa} was asked for: {done.stdout.splitlines()[0]}")
    return done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variants", nargs="*", help=f"of {', '.join(VARIANTS)}; all of them without")
    parser.add_argument("--build", type=Path, help="where the objects go")
    parser.add_argument("--source", type=Path, default=CPU, help="the kernels to test")
    arguments = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        for name in arguments.variants or VARIANTS:
            begun = time.monotonic()
            try:
                check_tools(VARIANTS[name])
                program = build(name, arguments.build or Path(temporary), arguments.source.resolve())
                built = time.monotonic()
                done = run(name, program)
            except CannotRun as reason:
                print(f"== {name}: skipped: {reason}", flush=True)
                continue
            except BuildFailed as error:
                print(f"== {name}: does not build: {error}", flush=True)
                failed += 1
                continue
            failed += done.returncode != 0
            verdict = "passed" if done.returncode == 0 else f"FAILED ({done.returncode})"
            seconds = f"built in {built - begun:.0f} s, ran {time.monotonic() - built:.0f} s"
            print(f"== {name}: {verdict}, {seconds}\n{done.stdout}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
