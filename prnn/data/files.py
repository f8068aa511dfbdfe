"""Checks of input files: regular files only, the format by the first bytes, and no change while being read."""

from __future__ import annotations

import codecs
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from prnn.errors import UserError

HEAD_BYTES = 1 << 16  # of a file's beginning, for ``check_text``
MAGIC_BYTES = 512  # of a file's beginning, for ``packed``

_IRREGULAR = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_PSEUDO_FILE_SYSTEMS = ("/proc", "/sys")  # their files are regular by mode, but of size 0 and generated on each read
_PACKED = {
    "gzip": re.compile(rb"\x1f\x8b"),
    "zip": re.compile(rb"PK(\x03\x04|\x05\x06)"),  # with files, or empty
    "xz": re.compile(rb"\xfd7zXZ\x00"),
    "bzip2": re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),  # or begins with a frame to be skipped
    "lz4": re.compile(rb"\x04\x22\x4d\x18"),
    "tar": re.compile(rb".{257}ustar", re.DOTALL),
    "7z": re.compile(rb"7z\xbc\xaf\x27\x1c"),
}
_BYTE_ORDER_MARKS = {  # UTF-32's first: the little-endian one begins with UTF-16's
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


@dataclass(frozen=True)
class File:
    """A regular file, as it was when ``of`` looked at it."""

    path: Path
    name: str  # for messages
    real: str  # the path without links
    stamp: tuple[int, int]

    @classmethod
    def of(cls, path: Path, name: str) -> File:
        """Looks without opening: opening a pipe would block. ``name`` is for messages.

        Raises ``UserError`` for anything but a regular file, and ``OSError`` where there is none.
        """
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise UserError(f"{name} is a folder: it must be a file.")
        kind = next((kind for test, kind in _IRREGULAR if test(status.st_mode)), None)
        real = os.path.realpath(path)
        if kind is None:
            kind = next((f"a file of {root}, which the kernel generates on each read" for root in _PSEUDO_FILE_SYSTEMS
                         if real.startswith(f"{root}/")), None)  # fmt: skip
        if kind is not None:
            raise UserError(f"{name} is {kind}, but data are read more than once: save it to a file.")
        return cls(path, name, real, stamp(status))

    @contextmanager
    def reading(self) -> Iterator[BinaryIO]:
        """The file, open for reading.

        Raises ``UserError`` where it cannot be opened, and where it has been written to since ``of`` looked at it: at
        the beginning and the end of the block, and instead of an error in it.
        """
        try:
            file = os.fdopen(os.open(self.path, os.O_RDONLY | os.O_NONBLOCK), "rb")  # a pipe in its place would block
        except OSError as error:
            raise UserError(f"{self.name} cannot be read ({error.strerror or error}).") from None
        with file:
            self._require(os.fstat(file.fileno()))
            try:
                yield file
            except Exception:
                self._require(os.fstat(file.fileno()))
                raise
            self._require(os.fstat(file.fileno()))

    def require_unchanged(self) -> None:
        """Raise ``UserError`` where the path no longer leads to the file as it was."""
        self._require(self.path.stat() if self.path.exists() else None)

    def _require(self, status: os.stat_result | None) -> None:
        if status is None or stamp(status) != self.stamp:
            raise UserError(f"{self.name} has changed while being read: start again when it is complete.")


@contextmanager
def blaming_changes(files: Iterable[File]) -> Iterator[None]:
    """Raises ``UserError`` instead of an error in the block if one of the files is not as it was: that explains it."""
    try:
        yield
    except Exception:
        for file in files:
            file.require_unchanged()
        raise


def stamp(status: os.stat_result) -> tuple[int, int]:
    """Size in bytes and modification time, to detect writes.

    Not the inode's change time, which also changes, harmlessly, when another file takes over the name.
    """
    return status.st_size, status.st_mtime_ns


def packed(head: bytes) -> str | None:
    """The compression or archive format of a file that begins with ``head``; None if not recognised."""
    return next((name for name, magic in _PACKED.items() if magic.match(head)), None)


def check_text(head: bytes, name: str) -> None:
    """Raise ``UserError`` if a file that begins with ``head`` is packed, UTF-16 or UTF-32, or mostly zeros."""
    if (form := packed(head)) is not None:
        raise UserError(f"{name} is {form}: unpack it.")
    marked = next((encoding for mark, encoding in _BYTE_ORDER_MARKS.items() if head.startswith(mark)), None)
    if (encoding := marked or _without_mark(head)) is not None:
        evidence = "" if marked else ", judging by its zero bytes"
        raise UserError(f"{name} is {encoding} text{evidence}: convert it (iconv -f {encoding} -t UTF-8).")
    if head.count(0) > len(head) / 2:
        raise UserError(f"{name} is not a text: most of its first bytes are zero.")


def _without_mark(head: bytes) -> str | None:
    """UTF-16 or UTF-32 and its byte order, detected by the positions of zero bytes, which no other text contains.

    Half the bytes of English UTF-16 are zero, in other scripts at least those of newlines, all on one side of their
    pairs. One byte in 200 suffices, or 8, or a quarter of a shorter text.
    """
    zeros = np.bincount(np.flatnonzero(np.frombuffer(head, dtype=np.uint8) == 0) % 4, minlength=4)
    total = int(zeros.sum())
    if not total or not max(len(head) / 200, min(8, len(head) / 4)) <= total <= 0.8 * len(head):
        return None
    nearly_all = 0.9 * (len(head) // 4)
    if min(zeros[2:]) >= nearly_all:  # code points are below 0x110000
        return "UTF-32LE"
    if min(zeros[:2]) >= nearly_all:
        return "UTF-32BE"
    odd = int(zeros[1::2].sum())
    return "UTF-16LE" if odd >= 0.95 * total else "UTF-16BE" if odd <= 0.05 * total else None
