"""The CPU kernels without torch: a C++ program, built in several ways, against a reference in double precision.

`build.py` beside this file says which ways there are, and runs them without pytest.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.native import build

# What only code that knows its target uses. (Macros such as __AVX2__ once went missing, and half the speed with them;
# the results were right all the same.) vmulpd: the memories' plain loops over doubles, vectorised by the compiler.
INSTRUCTIONS = {
    "avx2": {"vfmadd", "vmaskmov", "vmulpd"},
    "avx512": {"vfmadd", "{z}", "vmulpd"},
    "avx512_bf16": {"vfmadd", "{z}", "vdpbf16ps", "vcvtneps2bf16"},
}


@pytest.fixture
def folder(shared_folder: Path) -> Path:
    """Where the programs are built."""
    return shared_folder / "native"


@pytest.mark.slow(seconds=80)
@pytest.mark.parametrize("variant", build.VARIANTS)
def test_native(variant: str, folder: Path) -> None:
    try:
        build.check_tools(build.VARIANTS[variant])
        done = build.run(variant, build.build(variant, folder))
    except build.CannotRun as reason:
        pytest.skip(str(reason))
    assert done.returncode == 0, f"{variant}:\n{done.stdout}"


@pytest.mark.slow(seconds=20)
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the instruction sets are those of x86-64")
@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is not installed")
def test_each_instruction_set_is_used(folder: Path) -> None:
    try:
        build.check_tools(build.VARIANTS["plain"])
    except build.CannotRun as reason:
        pytest.skip(str(reason))
    command = ["objdump", "-d", "--no-show-raw-insn", "-C", str(build.build("plain", folder))]
    found: dict[str, set[str]] = {isa: set() for isa in INSTRUCTIONS}
    isa = None
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        if line.endswith(">:"):
            name = re.search(r"prnn::cpu::(avx\w+)::", line)
            isa = name[1] if name else None
        elif isa in INSTRUCTIONS:
            found[isa].update(word for word in INSTRUCTIONS[isa] if word in line)
    assert found == INSTRUCTIONS
