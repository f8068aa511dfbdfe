"""A text as it is read: its files one after the other, unpacked, whole or a fraction of them, in bounded memory.

Between two files stands a newline, unless the first ends with one. A leading byte order mark of each is dropped, except
at byte level; nothing else is changed.

A fraction is taken in blocks of about ``BLOCK_BYTES``, evenly spread over all files. A block begins and ends after a
newline, else between two words, else between two characters, as first found within ``SEARCH_BYTES``; so it is the same
text at every level. Files that are not compressed are read only where the blocks are.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import AnyStr, BinaryIO

from prnn.data.files import HEAD_BYTES, File, check_text
from prnn.data.text import first_boundary
from prnn.data.unpacking import Content, contents, unpacking
from prnn.errors import UserError

CHUNK_BYTES = 1 << 20
BLOCK_BYTES = 16 << 10
SEARCH_BYTES = 4 << 10

Pieces = Iterable[tuple[int, bytes]]  # of one content: position in it, and bytes
Parts = Iterable[tuple[str, Pieces]]  # the contents: name for messages, and pieces


@dataclass(frozen=True)
class Text:
    """A text that has not been read yet: files, or the content itself."""

    name: str  # for messages
    files: tuple[File, ...] = ()
    content: bytes = b""


@dataclass(frozen=True)
class Source:
    """The contents of a text's files, each with the pieces of it that are taken. It can be iterated over repeatedly.

    The pieces of a content must have been used before the next content is asked for. Raises ``UserError`` for a file
    that has changed, cannot be read or unpacked, or, with ``check``, is not UTF-8 by its first bytes.
    """

    text: Text
    fraction: float
    check: bool

    def __iter__(self) -> Iterator[tuple[str, Iterator[tuple[int, bytes]]]]:
        before = 0
        for index, content in enumerate(self._contents()):
            reader = _Forward(content)
            if self.check:
                check_text(reader.read(0, HEAD_BYTES), content.name)
            if self.fraction == 1:
                yield content.name, _whole(reader)
            else:
                size = self._sizes[index]
                yield content.name, _taken(reader, size, self._blocks(before, before + size))
                before += size

    def _contents(self) -> Iterator[Content]:
        if not self.text.files:
            yield Content(self.text.name, io.BytesIO(self.text.content), len(self.text.content))
        for file in self.text.files:
            with file.reading() as opened:
                yield from contents(opened, file.name)

    @cached_property
    def _sizes(self) -> list[int]:
        """Of all contents, in bytes; those of compressed files, which do not tell, are read for it."""
        return [
            sum(len(piece) for _, piece in _whole(_Forward(content))) if content.size is None else content.size
            for content in self._contents()
        ]

    def _blocks(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The blocks' parts in bytes [start, stop) of all contents together, as positions from ``start`` on."""
        total = sum(self._sizes)
        count = max(1, round(total * self.fraction / BLOCK_BYTES))
        for block in range(max(0, start * count // max(total, 1) - 1), count):
            first, following = (total * each // count for each in (block, block + 1))
            last = min(following, max(first + 1, int(total * (block + self.fraction) / count)))
            if first < stop and last > start:
                yield max(first, start) - start, min(last, stop) - start
            if following >= stop:
                return


class _Forward:
    """Reads a content from one position after the other, never going back behind the one before."""

    def __init__(self, content: Content) -> None:
        self.content = content
        self._start, self._held = 0, b""  # what has been read from the last position on

    def read(self, start: int, count: int) -> bytes:
        """Bytes [start, start + count); fewer at the end."""
        stream: BinaryIO = self.content.stream
        with unpacking(self.content.name):
            if start > self._start + len(self._held):
                stream.seek(start)
            self._start, self._held = start, self._held[start - self._start :]
            while len(self._held) < count and (more := stream.read(count - len(self._held))):
                self._held = self._held + more if self._held else more
        return self._held[:count]


def _whole(reader: _Forward) -> Iterator[tuple[int, bytes]]:
    start = 0
    while piece := reader.read(start, CHUNK_BYTES):
        yield start, piece
        start += len(piece)


def _taken(reader: _Forward, size: int, blocks: Iterable[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
    """The blocks of a content of ``size`` bytes, moved to boundaries, except where it begins and ends."""
    for start, stop in blocks:
        piece = reader.read(start, stop - start + SEARCH_BYTES)
        first = 0 if start == 0 else first_boundary(piece[:SEARCH_BYTES])
        last = len(piece) if stop == size else stop - start + first_boundary(piece[stop - start :])
        if first < last:
            yield start + first, piece[first:last]


def held(parts: Parts, most: int) -> Parts | None:
    """The same in memory; None if it is more than ``most`` bytes."""
    kept, total = [], 0
    for name, pieces in parts:
        of_part = []
        for start, piece in pieces:
            total += len(piece)
            if total > most:
                return None
            of_part.append((start, piece))
        kept.append((name, of_part))
    return kept


def as_bytes(parts: Parts) -> Iterator[bytes]:
    """The text in pieces."""
    return _joined(((piece for _, piece in pieces) for _, pieces in parts), b"\n")


def as_text(parts: Parts) -> Iterator[str]:
    """The text in pieces. Raises ``UserError`` where it is not UTF-8, with the file and the position in it."""
    return _joined((_decoded(name, pieces) for name, pieces in parts), "\n")


def _joined(parts: Iterable[Iterable[AnyStr]], newline: AnyStr) -> Iterator[AnyStr]:
    ended = True
    for pieces in parts:
        begins = True
        for piece in pieces:
            if piece:
                if begins and not ended:
                    yield newline
                begins, ended = False, piece.endswith(newline)
                yield piece


def _decoded(name: str, pieces: Pieces) -> Iterator[str]:
    decoder, end = codecs.getincrementaldecoder("utf-8")(), 0

    def decode(start: int, piece: bytes, final: bool = False) -> str:
        pending = len(decoder.getstate()[0])
        try:
            return decoder.decode(piece, final)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{name} is not UTF-8 text (byte {start - pending + error.start:,} cannot be read): use "
                "data.level=byte, convert it, or select other files with data.path."
            ) from None

    for start, piece in pieces:
        if start != end:  # of another block
            decode(end, b"", final=True)
        skip = len(codecs.BOM_UTF8) if start == 0 and piece.startswith(codecs.BOM_UTF8) else 0
        yield decode(start + skip, piece[skip:])
        end = start + len(piece)
    decode(end, b"", final=True)
