"""The C++ headers a cell's kernels are compiled with. setup.py loads this file alone: standard library only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

HEADERS = (
    "cell_table.h",
    "cells.h",
    *(f"cpu/isa_{name}.h" for name in ("portable", "avx2", "avx512", "avx512_bf16")),
    "cpu/pointwise.h",
    "cpu/pointwise_args.h",
    "cpu/simd.h",
    "cpu/simd_math.h",
    "cpu/target.h",
    "cpu/user_cell.h",
)


def digest(csrc: Path) -> str:
    """A hash of the headers below ``csrc``: kernels and a library of different ones do not go together."""
    return _digest(csrc, HEADERS)


def cuda_digest(csrc: Path) -> str:
    """The same of the headers of CUDA kernels."""
    found = sorted(path for pattern in ("*.h", "*.cuh") for path in (csrc / "cuda").glob(pattern))
    return _digest(csrc, ("cell_table.h", "cells.h", "layer_args.h", *(f"cuda/{path.name}" for path in found)))


def _digest(csrc: Path, names: Iterable[str]) -> str:
    total = hashlib.sha256()
    for name in names:
        total.update(name.encode() + b"\0" + (csrc / name).read_bytes() + b"\0")
    return total.hexdigest()[:16]
