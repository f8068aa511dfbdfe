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


# Of CUDA kernels.
CUDA_HEADERS = (
    "cell_table.h",
    "cells.h",
    "layer_args.h",
    *(f"cuda/{name}.h" for name in ("costs", "cuda_cells", "passes", "plan", "wait")),
    *(
        f"cuda/{name}.cuh"
        for name in (
            "arrivals", "backward", "cluster_sums", "exchange", "forward", "primitives", "product", "team", "user_cell",
            "wait",
        )
    ),
    *(f"cuda/nvrtc/{name}" for name in ("cstdint", "cuda_runtime.h", "type_traits")),
)  # fmt: skip


def digest(csrc: Path) -> str:
    """A hash of the headers below ``csrc``: kernels and a library of different ones do not go together."""
    return _digest(csrc, HEADERS)


def cuda_digest(csrc: Path) -> str:
    """The same of the headers of CUDA kernels."""
    return _digest(csrc, CUDA_HEADERS)


def _digest(csrc: Path, names: Iterable[str]) -> str:
    total = hashlib.sha256()
    for name in names:
        total.update(name.encode() + b"\0" + (csrc / name).read_bytes() + b"\0")
    return total.hexdigest()[:16]
