"""Checks of input files: regular files only, the format by the first bytes, and no change while being read."""

from __future__ import annotations

import codecs
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from prnn.errors import UserError

HEAD_BYTES = 1 << 16  # of a file's beginning, for ``check_text``

_IRREGULAR = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_PSEUDO_FILE_SYSTEMS = ("/proc", "/sys")  # their files are regular by mode, but of size 0 and generated on each read
_PACKED = {
    "gzip": re.compile(rb"\x1f\x8b"),
    "zip": re.compile(rb"PK\x03\x04"),
    "xz": re.compile(rb"\xfd7zXZ\x00"),
    "bzip2": re.compile(rb"BZh[1-9]1AY&SY"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd"),
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


def require_regular(path: Path, name: str) -> None:
    """Raise ``UserError`` for anything but a regular file, without opening it: opening a pipe would block.

    ``name`` is for messages. Raises ``OSError`` where there is no file.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise UserError(f"{name} is a folder: it must be one file.")
    kind = next((kind for test, kind in _IRREGULAR if test(mode)), None)
    if kind is None:
        real = os.path.realpath(path)
        kind = next((f"a file of {root}, which the kernel generates on each read" for root in _PSEUDO_FILE_SYSTEMS
                     if real.startswith(f"{root}/")), None)  # fmt: skip
    if kind is not None:
        raise UserError(f"{name} is {kind}, but data are read more than once: save it to a file.")


def stamp(descriptor: int) -> tuple[int, int]:
    """Size in bytes and modification time of an open file, to detect writes.

    Not the inode's change time, which also changes, harmlessly, when another file takes over the name.
    """
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


@contextmanager
def reading(path: Path, name: str) -> Iterator[BinaryIO]:
    """The file, open for reading; ``name`` is for messages.

    Raises ``UserError`` where it cannot be opened or is not a regular file; and at the end of the block, even after an
    error, if the file was written to meanwhile.
    """
    try:
        require_regular(path, name)
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror or error}).") from None
    with file:
        before = stamp(file.fileno())
        try:
            yield file
        finally:
            require_unchanged(file, before, name)


def require_unchanged(file: BinaryIO, before: tuple[int, int], name: str) -> None:
    """Raise ``UserError`` where the file's ``stamp`` differs from ``before``."""
    if stamp(file.fileno()) != before:
        raise UserError(f"{name} has changed while being read: start again when it is complete.")


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
