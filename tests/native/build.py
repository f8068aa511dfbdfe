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
DRIVER = ("driver.cpp", "memory_driver.cpp", "parts.cpp", "plan.cpp", "scratch.cpp", "team.cpp", "trials.cpp")
WARNINGS = (
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-psabi",
)  # psabi: vectors wider than the target's are only passed inline
ANY_MACHINE = "any_machine.cpp"
JOBS = 2


@dataclass(frozen=True)
class Variant:
    """How one program is compiled and run.

    ``flags`` are those of the kernels and, under a thread sanitizer, of the test of threads. The other tests are
    compiled once for all variants of a compiler, without sanitizers. ``lanes`` takes one kernel file for any machine in
    place of those for instruction sets; ``thin`` runs one case in so many; ``build`` names another variant whose
    program is the same; ``installed`` takes the objects of the library itself where setup.py has just compiled them.
    """

    flags: tuple[str, ...] = ("-O2",)
    lanes: int | None = None
    thin: int = 1
    isa: str | None = None
    build: str | None = None
    compiler: str | None = None
    installed: bool = False
    run: tuple[str, ...] = ()


VARIANTS = {
    "plain": Variant(("-O2", "-fpeel-loops", "-ftree-vectorize"), thin=6, installed=True),  # flags: setup.py's
    "wide": Variant(("-Og",), lanes=16, thin=16),
    "asan": Variant(
        ("-Og", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DPRNN_POISON_SCRATCH"),
        lanes=8,
        thin=20,
    ),
    "tsan": Variant(("-Og", "-g1", "-fsanitize=thread"), lanes=8, thin=40),
    "arm": Variant(("-Og", "-static"), thin=40, compiler="aarch64-linux-gnu-g++", run=("qemu-aarch64",)),
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
    name = VARIANTS[name].build or name
    variant = VARIANTS[name]
    compiler = compiler_of(variant)
    own, tests = folder / name, folder / f"tests-{compiler}"
    for directory in (own, tests):
        directory.mkdir(parents=True, exist_ok=True)
    common = [compiler, "-std=c++17", *WARNINGS, f"-I{source}", f"-I{source.parent}", f"-I{HERE}"]

    def compile_one(file: Path) -> Path:
        races = file.name == "test_threads.cpp" and "-fsanitize=thread" in variant.flags  # with what it looks at
        if file.parent == HERE and file.name != ANY_MACHINE and not races:
            # A sanitizer would spend most of its time in the reference.
            command, done = [*common, "-O1"], tests / f"{file.stem}.o"
        else:
            lanes = [] if variant.lanes is None else [f"-DPRNN_LANES={variant.lanes}", *vectors()]
            command, done = [*common, *variant.flags, *lanes], own / f"{file.stem}.o"
        return once(done, lambda unfinished: call([*command, "-c", str(file), "-o", str(unfinished)]))

    def make(unfinished: Path) -> None:
        objects = installed_objects(source) if variant.installed else []
        files = []
        if not objects:
            kernels = sorted(source.glob("kernels_*.cpp")) if variant.lanes is None else []  # the slowest first
            choice = source / "dispatch.cpp" if variant.lanes is None else HERE / ANY_MACHINE
            files = [*kernels, choice, *(source / file for file in DRIVER)]
        files += [*sorted(HERE.glob("test_*.cpp")), HERE / "main.cpp"]
        with ThreadPoolExecutor(JOBS) as pool:
            # The kernels come first: of an inline function in several objects, the linker takes the first, sanitized.
            objects = [*objects, *pool.map(compile_one, files)]
        call([compiler, *variant.flags, *map(str, objects), "-pthread", "-o", str(unfinished)])

    return once(own / "native_test", make)


def vectors() -> list[str]:
    """The flag for vectors of 8 floats, where the processor has them; without it, they are passed in memory."""
    cpuinfo = Path("/proc/cpuinfo")
    usable = platform.machine() == "x86_64" and cpuinfo.exists() and "avx2" in cpuinfo.read_text().split()
    return ["-mavx2"] if usable else []


def installed_objects(source: Path) -> list[Path]:
    """What setup.py has compiled of ``source`` for the library; nothing unless all of it is newer than the sources.

    Nor if it is by another compiler than the tests', or for a sanitizer.
    """
    if source != CPU or "CXX" in os.environ:
        return []
    newest = max(file.stat().st_mtime for file in [*CPU.iterdir(), *CPU.parent.glob("*.h")])
    for ninja in HERE.parents[1].glob("build/temp.*/build.ninja"):
        compiled = [ninja.parent / f"prnn/csrc/cpu/{file.stem}.o" for file in sorted(CPU.glob("*.cpp"))]
        current = all(each.exists() and each.stat().st_mtime > newest for each in compiled)
        if current and "-fsanitize" not in ninja.read_text():
            return compiled
    return []


def run(name: str, program: Path, timeout_seconds: float = 1800) -> subprocess.CompletedProcess[str]:
    """Runs the variant's program; its output is in ``stdout``."""
    variant = VARIANTS[name]
    environment = {key: value for key, value in os.environ.items() if key != "PRNN_CPU_ISA"}
    if variant.isa:
        environment["PRNN_CPU_ISA"] = variant.isa
    environment["TSAN_OPTIONS"] = "halt_on_error=1:allocator_may_return_null=1"  # as malloc does
    environment["ASAN_OPTIONS"] = "allocator_may_return_null=1"
    # Of one program under several instruction sets, threads are tested once.
    command = [*variant.run, str(program), str(variant.thin), *(["without-threads"] if variant.build else [])]
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
