"""The compiler and the cache of compiled cells.

A cell's shared object is named after what went into it: the C++ text (tracing a cell takes hundredths of a second, so
that a changed constant is noticed too), the headers and the compiler's flags. It is written under another name and
renamed when whole; one process compiles while the others wait for its lock. A machine without a compiler uses what
another one has compiled into the same folder.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from prnn import native
from prnn.codegen.emit import Emitted
from prnn.codegen.headers import digest

CSRC = Path(__file__).resolve().parents[1] / "csrc"
# setup.py's, and without the branch to set errno of each square root.
FLAGS = ("-std=c++17", "-O2", "-fpeel-loops", "-ftree-vectorize", "-fno-math-errno", "-Wno-psabi", "-fPIC", "-shared")
_PACKAGES = tuple(f"{Path(file).parent}/" for file in (CSRC, torch.__file__))
_COMPILE_SECONDS = 300  # a compiler that takes longer hangs


class CannotCompile(Exception):
    """Why there is no kernel, as the end of a sentence."""


def instruction_set(dtype: torch.dtype) -> str:
    """The instruction set of the CPU kernels for ``dtype``: "portable", "avx2", "avx512" or "avx512_bf16"."""
    name = torch.ops.prnn_native.cpu_isa() if native.status()[0] else "portable"
    if name == "avx512_bf16" and dtype != torch.bfloat16:
        return "avx512"
    return "portable" if name == "neon" else name


def source(emitted: Emitted, cell: str, name: str, dtype: torch.dtype) -> str:
    """The whole C++ file of a cell's kernel for tensors of ``dtype`` on this processor."""
    isa, low = instruction_set(dtype), dtype == torch.bfloat16
    element = "Bfloat16" if low else "float"
    pairs = f"kPointwise<{cell}, Bfloat16, Bfloat16>" if isa == "avx512_bf16" else "{nullptr, nullptr}"
    return f"""// Kernels of the cell {name}, written by prnn/codegen.
#include "cpu/isa_{isa}.h"
#include "cpu/user_cell.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#define PRNN_CELL_FUNCTION template <class V> static inline

PRNN_ISA_BEGIN
namespace prnn::cpu::PRNN_ISA {{
#include "cpu/simd.h"
#include "cpu/simd_math.h"

{emitted.text}
#include "cpu/pointwise.h"

extern "C" __attribute__((visibility("default"))) const UserCell prnn_user_cell = {{
    PRNN_HEADERS, PRNN_ISA_NAME, {str(low).lower()}, {str(emitted.spikes).lower()}, row_of_cell<{cell}>("{name}"),
    kPointwise<{cell}, {element}, float>, {pairs}}};
}}  // namespace prnn::cpu::PRNN_ISA
PRNN_ISA_END
"""


def warn(message: str) -> None:
    """A warning at the line of the user's code that runs."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGES):
        level, frame = level + 1, frame.f_back
    warnings.warn(f"prnn: {message}", stacklevel=level)


def compiler() -> list[str]:
    """The command of the C++ compiler: CXX, or c++; CannotCompile if there is none."""
    command = shlex.split(os.environ.get("CXX", "c++")) or ["c++"]
    if shutil.which(command[0]) is None:
        raise CannotCompile(f"there is no C++ compiler ({command[0]}; CXX names another)")
    return command


def compiled(text: str, name: str) -> Path:
    """The shared object of a kernel's source, from the cache or compiled now; CannotCompile with the reason if not."""
    headers = digest(CSRC)
    if headers != native.headers():
        raise CannotCompile("the native library was built from other headers than those that are installed: rebuild it")
    flags = [*FLAGS, *shlex.split(os.environ.get("PRNN_CXXFLAGS", ""))]
    code = "\n".join(line for line in text.splitlines() if not line.startswith("//"))  # wherever the function stands
    file = cache() / f"{name}-{hashlib.sha256(f'{flags} {headers} {code}'.encode()).hexdigest()[:24]}.so"

    def make(part: Path, file: Path) -> None:
        _run_compiler([*compiler(), *flags], headers, text, part, file)

    return produced(file, _is_whole, make)


def _is_whole(file: Path) -> bool:
    """Whether the shared object is there, up to the table of sections at its end: loading less of one ends the process.

    A copy that was cut off, or a disk that was full, may have left a part.
    """
    try:
        with file.open("rb") as elf:
            header = elf.read(64)
            size = elf.seek(0, os.SEEK_END)
    except OSError:  # not there, or the cache is unreadable
        return False
    if len(header) < 64 or header[:4] != b"\x7fELF":
        return False
    (table,), (entry, count) = struct.unpack_from("<Q", header, 40), struct.unpack_from("<HH", header, 58)
    return size >= table + entry * count


def produced(file: Path, is_whole: Callable[[Path], bool], make: Callable[[Path, Path], None]) -> Path:
    """A file of the cache, which ``make`` writes where it is not there or not whole: ``make(part, file)`` writes
    ``part``, of which ``file`` is made.
    """
    if is_whole(file):
        return file
    try:
        return _produce(file, is_whole, make)
    except OSError as error:  # read-only, full, no locks
        fallback = _temporary() / file.name
        warn(
            f"the cache of compiled cells {file.parent} cannot be used ({error.strerror or error}); they are compiled "
            "anew in each process. PRNN_CACHE names another folder"
        )
        return _produce(fallback, is_whole, make)


def _produce(file: Path, is_whole: Callable[[Path], bool], make: Callable[[Path, Path], None]) -> Path:
    part = file.with_suffix(f".{os.getpid()}.part")
    with locked(file):
        if not is_whole(file):  # no other process has made it meanwhile
            try:
                make(part, file)
                part.replace(file)
            finally:
                with contextlib.suppress(OSError):
                    part.unlink(missing_ok=True)
        return file


def _run_compiler(command: list[str], headers: str, text: str, part: Path, file: Path) -> None:
    """Writes ``part``, and the C++ text beside ``file``."""
    cpp = file.with_suffix(".cpp")
    unfinished = cpp.with_suffix(f".{os.getpid()}.cpp")
    try:
        unfinished.write_text(text)
        arguments = [f"-I{CSRC}", f'-DPRNN_HEADERS="{headers}"', str(unfinished), "-o", str(part)]
        try:
            done = subprocess.run(
                [*command, *arguments], capture_output=True, text=True, errors="replace", timeout=_COMPILE_SECONDS
            )
        except subprocess.TimeoutExpired:
            raise CannotCompile(f"{command[0]} did not finish within {_COMPILE_SECONDS} s") from None
        except OSError as error:
            raise CannotCompile(f"{command[0]} does not start: {error.strerror}") from None
        if done.returncode:
            lines = (
                [line for line in done.stderr.splitlines() if "error" in line]
                or done.stderr.splitlines()
                or ["no message"]
            )
            if "No space left" in done.stderr:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise CannotCompile(f"{command[0]} failed with exit status {done.returncode}: {lines[0].strip()}")
        unfinished.replace(cpp)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def cache(folder: str = "cells") -> Path:
    """The folder of compiled cells, or another: in $PRNN_CACHE, else in ~/.cache/prnn."""
    if configured := os.environ.get("PRNN_CACHE"):
        return Path(configured).absolute() / folder
    try:
        return Path.home() / ".cache" / "prnn" / folder
    except RuntimeError:  # no home
        return _temporary()


@functools.cache
def _temporary() -> Path:
    """A folder of this process and its forks, removed at the end of this process."""
    folder, owner = Path(tempfile.mkdtemp(prefix="prnn-")), os.getpid()

    @atexit.register
    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    return folder


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Held by one process at a time; the kernel frees a lock whose holder dies."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with (file.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
