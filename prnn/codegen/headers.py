"""The C++ headers a cell's kernel is compiled with. setup.py loads this file alone: standard library only."""

from __future__ import annotations

import hashlib
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
    total = hashlib.sha256()
    for name in HEADERS:
        total.update(name.encode() + b"\0" + (csrc / name).read_bytes() + b"\0")
    return total.hexdigest()[:16]
