"""``python -m tests.fuzz.sanitized --target cells --seconds 600``: a target's kernels under sanitizers.

The native library is built for it from a copy of the sources, which takes some minutes, in ``--build DIR`` (a temporary
directory unless given; what is there is used again); ``--installed`` takes the library that is installed, so that only
the kernels compiled for cells are sanitized. torch is not instrumented, but its memory is the address sanitizer's: a
kernel that leaves an operand or a result ends the process, and with it the run. Further arguments are the fuzzer's.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUNTIME = ("libasan.so", "libubsan.so", "libstdc++.so.6")  # the last, so that the first finds what throws exceptions
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
# Of a cell's kernel: not inlined, each array keeps its bounds.
CELL_FLAGS = f"{FLAGS} -O0 -g1"


def build(folder: Path) -> None:
    """Copy the package and the tests to ``folder``, and build the native library there, for the CPU."""
    for name in ("prnn", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    settings = {"PRNN_REQUIRE_NATIVE": "1", "PRNN_NO_CUDA": "1", "LDFLAGS": FLAGS}
    settings["PRNN_CXXFLAGS"] = f"{FLAGS} -O1 -g1 -DPRNN_POISON_SCRATCH"  # more than -O1 takes many times as long
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    subprocess.run(command, cwd=folder, env={**os.environ, **settings}, check=True)


def environment(folder: Path) -> dict[str, str]:
    """What a process needs to load that library, and to compile cells for it."""
    compiler = os.environ.get("CXX", "c++").split()[0]
    found = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in RUNTIME
    ]
    # The interpreter and torch keep what they have until they end, which is no leak of the kernels'.
    settings = {
        "LD_PRELOAD": ":".join(found),
        "ASAN_OPTIONS": "detect_leaks=0:print_legend=0",
        "PYTHONPATH": str(folder),
    }
    return {**os.environ, **settings, "PRNN_CXXFLAGS": CELL_FLAGS}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.sanitized", description=__doc__)
    parser.add_argument("--target", choices=("operators", "modules", "cells"), default="operators")
    parser.add_argument("--build", type=Path)
    parser.add_argument("--installed", action="store_true")
    arguments, rest = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="prnn-asan-") as temporary:
        folder = ROOT if arguments.installed else (arguments.build or Path(temporary)).resolve()
        if not list(folder.glob("prnn/_native*.so")):
            build(folder)
        command = [sys.executable, "-m", "tests.fuzz", arguments.target, *rest]
        return subprocess.run(command, cwd=folder, env=environment(folder)).returncode


if __name__ == "__main__":
    sys.exit(main())
