"""Memory of large outputs, kept for the next call.

malloc returns large blocks to the system, and page faults for a new one take more time than a plain RNN's forward pass
(benchmarks/NOTES.md). The storages are torch's own, so that the caller may resize them or share them with another
process; they are used again when nobody refers to them.
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
_MOST_BYTES = 512 << 20
_MOST_STORAGES = 64
# A private function, without which nothing is kept.
_use_count: Callable[[int], int] | None = getattr(torch._C, "_storage_Use_Count", None)


class _Kept:
    """A storage, and the copy-on-write clone of its tensor that a backward pass reads."""

    __slots__ = ("clone", "storage")

    def __init__(self, storage: UntypedStorage) -> None:
        self.storage = storage
        self.clone: UntypedStorage | None = None

    def references(self) -> int:
        """To the storage's Python object; what Python itself adds depends on its version."""
        return sys.getrefcount(self.storage)

    def is_free(self) -> bool:
        """Whether nobody but this refers to the memory."""
        used = [each for each in (self.storage, self.clone) if each is not None and _users(each) > 1]
        return not used and self.references() == _REFERENCES_ALONE


def _users(storage: UntypedStorage) -> int:
    return _use_count(storage._cdata) if _use_count is not None else sys.maxsize


def _references_alone() -> int:
    """What ``references`` gives where nobody else has the object; -1, which never fits, where they do not tell."""
    kept = _Kept(torch.empty(1, dtype=torch.uint8, device="cpu").untyped_storage())
    alone = kept.references()
    other = kept.storage
    return alone if kept.references() == alone + 1 and other is kept.storage else -1


_REFERENCES_ALONE = _references_alone()


class Outputs:
    """Storages of at most ``most_bytes`` in total; the oldest leave first."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._kept: list[_Kept] = []
        self._lock = threading.Lock()

    def empty(self, like: Tensor, shape: tuple[int, ...]) -> Tensor | None:
        """An uninitialised tensor on the CPU of the dtype of ``like``; None where torch may as well allocate it."""
        size = prod(shape) * like.element_size()
        if not LEAST_BYTES <= size <= self._most_bytes or _use_count is None:
            return None
        # Not waiting: a fork may have left the lock behind, and the garbage collector may call a layer in between.
        if not self._lock.acquire(blocking=False):
            return None
        try:
            storage = self._take(size)
        finally:
            self._lock.release()
        return torch.empty(0, dtype=like.dtype, device="cpu").set_(storage, 0, shape, _dense(shape))

    def share(self, output: Tensor, clone: Tensor) -> None:
        """``clone`` is a lazy clone of an output: its memory is free when both are."""
        if output.untyped_storage().nbytes() < LEAST_BYTES or not self._lock.acquire(blocking=False):
            return
        try:
            place = output.untyped_storage()._cdata
            for kept in reversed(self._kept):
                if kept.storage._cdata == place:
                    kept.clone = clone.untyped_storage()
                    break
        finally:
            self._lock.release()

    def _take(self, size: int) -> UntypedStorage:
        # Another process may have what is shared, for as long as it likes.
        self._kept = [kept for kept in self._kept if not kept.storage.is_shared()]
        free = [kept for kept in self._kept if kept.is_free()]
        # Of this very size: torch.save writes whole storages.
        for kept in reversed(free):
            if kept.storage.nbytes() == size:
                self._kept.remove(kept)
                kept.clone = None
                break
        else:
            if free:  # of other sizes: they are not collected
                self._kept.remove(free[0])
            kept = _Kept(self._allocate(size))
        self._kept.append(kept)
        while len(self._kept) > _MOST_STORAGES or sum(each.storage.nbytes() for each in self._kept) > self._most_bytes:
            del self._kept[0]
        return kept.storage

    def _allocate(self, size: int) -> UntypedStorage:
        try:
            return torch.empty(size, dtype=torch.uint8, device="cpu").untyped_storage()
        except RuntimeError:  # out of memory
            self._kept.clear()
            return torch.empty(size, dtype=torch.uint8, device="cpu").untyped_storage()


def _dense(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a contiguous tensor."""
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on this system
        return 4 << 30


outputs = Outputs(min(_MOST_BYTES, _memory_bytes() // 16))
