"""Keep freed memory in the process instead of returning it to the system after every step."""

from __future__ import annotations

import ctypes
import sys

# glibc's constants for mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP_BYTES = 2**31 - 1  # of free memory at the top of the heap; the largest value mallopt accepts
_MAP_BYTES = 2**30  # a single allocation above this still gets its own mmap


def keep_freed_memory() -> bool:
    """Set glibc's malloc to reuse freed memory; returns whether that succeeded (False without glibc).

    A training step allocates and frees the same tens of megabytes each time. By default malloc unmaps them, and the
    kernel zeroes fresh pages, one fault each, at the next step: a third of the step's time for a small network
    (benchmarks/NOTES.md). The cost: the process stays at its peak memory.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    return bool(libc.mallopt(_M_MMAP_THRESHOLD, _MAP_BYTES)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES))
