"""Keep freed memory in the process instead of giving it back to the system after every step."""

from __future__ import annotations

import ctypes
import sys

# glibc's numbers for mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP_BYTES = 2**31 - 1  # of free memory at the heap's top; the largest value mallopt takes
_MAP_BYTES = 2**30  # a single allocation above this is still mapped, and unmapped, on its own


def keep_freed_memory() -> bool:
    """Make glibc's malloc reuse freed memory; returns whether it does (with another C library: no).

    A training step allocates and frees the same tens of megabytes each time. By default malloc unmaps them, and the
    kernel zeroes fresh pages, one fault each, at the next step: a third of the step's time for a small network
    (benchmarks/NOTES.md). The price: the process keeps the most memory it has needed so far.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    return bool(libc.mallopt(_M_MMAP_THRESHOLD, _MAP_BYTES)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES))
