"""The native library: finding it, loading it, and saying why it is not there.

It is built ahead of time against torch's stable ABI (setup.py) and registers its operators under
``torch.ops.prnn_native``. A missing or broken library never breaks ``import prnn``: the `torch` backend serves.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch

LIBRARY_PATTERN = "_native*.so"
_LEFT_OUT = "left out by PRNN_NO_NATIVE=1"
INSTRUCTION_SETS = ("portable", "avx2", "avx512", "avx512_bf16")


def constant_when_traced(function: Any) -> Any:
    """A decorator: torch.compile calls the function with constants while it traces, and does not look into it.

    What torch.compiler.assume_constant_result does, without its import of torch._dynamo, which takes two seconds.
    """
    function._dynamo_marked_constant = True
    return function


def status() -> tuple[bool, str]:
    """(loaded?, why or from where). PRNN_NO_NATIVE=1 leaves the library out."""
    return _STATUS


_CPU_WORDS = {"portable": "portable C++", "avx2": "AVX2", "avx512": "AVX-512", "avx512_bf16": "AVX-512", "neon": "NEON"}


def cpu_kernels(dtype: torch.dtype) -> str:
    """Which of the CPU's instructions the kernels of the loaded library use for ``dtype``, in words."""
    products = " and its bfloat16 products" if _CPU_ISA == "avx512_bf16" and dtype == torch.bfloat16 else ""
    return _CPU_WORDS.get(_CPU_ISA, _CPU_ISA) + products


def warn_if_missing(refusal: str) -> None:
    """Warn, once, that torch's kernels run what the native ones would have run, had the library been there.

    ``refusal`` says why the native kernels do not run something; any other reason is in order, and so is an absence
    that the user has asked for. Not while torch.compile traces, whose graph would break.
    """
    if torch.compiler.is_compiling() or _STATUS[0] or _STATUS[1] == _LEFT_OUT:
        return
    if refusal.endswith(_STATUS[1]):
        _warn(_STATUS[1])


@cache
def _warn(reason: str) -> None:
    warnings.warn(f"prnn: torch's own kernels run, which are slower: the native library is {reason}", stacklevel=3)


def cuda_status() -> tuple[bool, str]:
    """(are the CUDA kernels there?, why not). Whether a GPU is, is another question."""
    return _CUDA_STATUS


def cuda_fault() -> str | None:
    """Why this process has lost its GPU, as a sentence: a kernel gave up a wait. None where none has.

    Every CUDA error that torch raises after it is a consequence.
    """
    return (torch.ops.prnn_native.cuda_fault() or None) if _STATUS[0] else None


def cells() -> tuple[str, ...]:
    """The cells that have native kernels, by their numbers; none where the library is not loaded."""
    return _CELLS


def cuda_cells() -> tuple[str, ...]:
    """Those of them that have CUDA kernels."""
    return _CUDA_CELLS


def cell_id(name: str) -> int:
    """A cell's number, which the native operators take; ValueError where it has none."""
    if name not in _CELL_IDS:
        raise ValueError(f"there is no native kernel for {name}")
    return _CELL_IDS[name]


def headers() -> str:
    """The hash of the headers the library was built from (codegen/headers.py); "" where it is not loaded."""
    return torch.ops.prnn_native.cell_headers() if _STATUS[0] else ""


@cache
def digest() -> str:
    """A hash of the native library; "" where it is not loaded."""
    if not _STATUS[0]:
        return ""
    library = sorted(Path(__file__).resolve().parent.glob(LIBRARY_PATTERN))[0]
    return hashlib.sha256(library.read_bytes()).hexdigest()[:16]


def load_cell(file: Path) -> int:
    """Load the kernel of a cell written in Python; its number. RuntimeError where it does not fit the library."""
    return torch.ops.prnn_native.load_cell(str(file))


def _load() -> tuple[bool, str]:
    if os.environ.get("PRNN_NO_NATIVE") == "1":
        return False, _LEFT_OUT
    isa = os.environ.get("PRNN_CPU_ISA", "")
    if isa not in ("", *INSTRUCTION_SETS):
        return False, f"left out: PRNN_CPU_ISA={isa} is none of {', '.join(INSTRUCTION_SETS)}"
    package = Path(__file__).resolve().parent
    libraries = sorted(package.glob(LIBRARY_PATTERN))
    if not libraries and (package.parent / "setup.py").exists():  # which hides a prnn that is installed
        return False, (
            f"not built in the source tree that prnn is imported from, {package.parent}: "
            "pip install --no-build-isolation -e . there builds it, where torch, setuptools and a C++ compiler are"
        )
    if not libraries:
        return False, (
            "not built: pip install --no-build-isolation . in prnn's source tree builds it, where torch, setuptools "
            "and a C++ compiler are"
        )
    try:
        torch.ops.load_library(libraries[0])
        chosen = torch.ops.prnn_native.cpu_isa()
        # A library left over from another version has others.
        _ = torch.ops.prnn_native.layers_forward.default, torch.ops.prnn_native.memory_forward.default
        _ = torch.ops.prnn_native.cells.default, torch.ops.prnn_native.load_cell.default
        _ = torch.ops.prnn_native.cuda_layout.default, torch.ops.prnn_native.cuda_cells.default
    except (OSError, RuntimeError, AttributeError) as error:
        reason = f"broken: {libraries[0].name} does not load: {str(error).splitlines()[0]}"
        _warn(reason)  # at once: it was meant to be used
        return False, reason
    return True, f"{libraries[0].name}, {chosen} kernels"


# At import, not at first use: torch.compile would trace into a lazy loader.
_STATUS = _load()
if not _STATUS[0]:
    _CUDA_STATUS = _STATUS
elif torch.ops.prnn_native.cuda_cells():
    _CUDA_STATUS = (True, "")
else:
    _CUDA_STATUS = (False, "built without CUDA (it is built where torch is a CUDA build and nvcc is found)")
_CPU_ISA = torch.ops.prnn_native.cpu_isa() if _STATUS[0] else ""
_CELLS = tuple(torch.ops.prnn_native.cells().split(",")) if _STATUS[0] else ()
_CUDA_CELLS = tuple(filter(None, torch.ops.prnn_native.cuda_cells().split(","))) if _CUDA_STATUS[0] else ()
_CELL_IDS = {name: number for number, name in enumerate(_CELLS)}
