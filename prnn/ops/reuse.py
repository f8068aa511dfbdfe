"""Memory of large outputs, kept for the next call.

malloc returns large blocks to the system, and page faults for a new one take half as long as a plain RNN's forward pass
(benchmarks/NOTES.md). An output's storage is torch's own, so that the caller may resize it or share it with another
process; it is used again when nobody refers to it.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from math import prod

import torch
from torch import Tensor, UntypedStorage

LEAST_BYTES = 1 << 20
_MOST_STORAGES = 64
# A private function, without which nothing is kept.
_use_count: Callable[[int], int] | None = getattr(torch._C, "_storage_Use_Count", None)
# References to a storage's Python object that are looked at below: the list's, the local variable's, the argument's.
_REFERENCES = 3


class Outputs:
    """Storages of at most ``most_bytes`` in total; the oldest leave first."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._storages: list[UntypedStorage] = []
        self._lock = threading.Lock()

    def empty(self, like: Tensor, shape: tuple[int, ...]) -> Tensor | None:
        """An uninitialised tensor on the CPU of the dtype of ``like``; None where torch may as well allocate it."""
        size = prod(shape) * like.element_size()
        if _use_count is None or not LEAST_BYTES <= size <= self._most_bytes:
            return None
        with self._lock:
            storage = self._free(size)
            if storage is None:
                storage = torch.empty(size, dtype=torch.uint8).untyped_storage()
            self._storages.append(storage)
            while len(self._storages) > _MOST_STORAGES or sum(s.nbytes() for s in self._storages) > self._most_bytes:
                del self._storages[0]
        return torch.empty(0, dtype=like.dtype).set_(storage, 0, shape, _dense(shape))

    def _free(self, size: int) -> UntypedStorage | None:
        """A storage taken from those that nobody refers to, of ``size`` bytes or up to twice as many."""
        if _use_count is None:
            return None
        for index in reversed(range(len(self._storages))):
            storage = self._storages[index]
            if (
                size <= storage.nbytes() <= 2 * size
                and _use_count(storage._cdata) == 1
                and sys.getrefcount(storage) == _REFERENCES
                and not storage.is_shared()  # by another process, perhaps
            ):
                del self._storages[index]
                return storage
        return None


def _dense(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a contiguous tensor."""
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on this system
        return 4 << 30


outputs = Outputs(_memory_bytes() // 16)
