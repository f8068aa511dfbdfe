"""From a text to its tokens, without ever holding a large file in memory.

    byte                    the file itself, mapped into memory
    char, an ASCII file     the file itself, mapped, and a table of 256 tokens to read it through
    char otherwise, word    the tokens, written once to a cache file by a pass over the text in chunks, and mapped

A cached encoding is known by the file's path, size and time of change, so an edited file is encoded afresh.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from prnn.data.text import (
    UNKNOWN,
    ByteVocabulary,
    CharVocabulary,
    Vocabulary,
    WordVocabulary,
    from_state,
    last_boundary,
    split_words,
)
from prnn.errors import UserError

CHUNK_BYTES = 1 << 20
CACHE_FORMAT = 2  # part of a cached encoding's name: raise it when the encoding changes
COUNTED_WORDS = 1_000_000  # distinct words counted at a time; past it the rarer half is forgotten, to bound memory


@dataclass(frozen=True)
class Text:
    """A text nobody has looked into yet: a file, or the content itself."""

    name: str  # as messages call it
    path: Path | None = None
    content: bytes = b""

    def chunks(self) -> Iterator[bytes]:
        if self.path is None:
            for start in range(0, len(self.content), CHUNK_BYTES):
                yield self.content[start : start + CHUNK_BYTES]
            return
        # Read, not mapped: the pages of a whole pass over a mapping would count as this process's memory.
        with self.path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def raw(self) -> np.ndarray:
        """The bytes [N] as uint8, mapped if they are a file."""
        if self.path is None:
            return np.frombuffer(self.content, dtype=np.uint8)
        return np.asarray(np.memmap(self.path, dtype=np.uint8, mode="r"))

    def decoded(self) -> Iterator[str]:
        """The text in pieces. A byte order mark at its beginning is left out."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        before = 0  # bytes read before this chunk
        for chunk in self.chunks():
            skip = len(codecs.BOM_UTF8) if before == 0 and chunk.startswith(codecs.BOM_UTF8) else 0
            pending = len(decoder.getstate()[0])
            try:
                yield decoder.decode(chunk[skip:])
            except UnicodeDecodeError as error:
                raise self._not_utf8(before + skip - pending + error.start) from None
            before += len(chunk)
        try:
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise self._not_utf8(before - len(error.object) + error.start) from None

    def empty(self) -> UserError:
        return UserError(f"{self.name} is empty: there is nothing to train on.")

    def _not_utf8(self, offset: int) -> UserError:
        return UserError(
            f"{self.name} is not UTF-8 text (byte {offset:,} cannot be read): use data.level=byte, or convert it."
        )


@dataclass(frozen=True)
class Tokens:
    """Tokens [N], read where they lie."""

    array: np.ndarray
    table: np.ndarray | None = None  # what `array` holds -> token, where the two differ

    def __len__(self) -> int:
        return len(self.array)

    def take(self, index: np.ndarray) -> np.ndarray:
        """The tokens at ``index`` (any shape), as int64."""
        values = self.array[index]
        return values.astype(np.int64) if self.table is None else self.table[values]


def cache_dir() -> Path:
    """Where downloads and encodings are kept: $PRNN_CACHE, else ~/.cache/prnn."""
    if given := os.environ.get("PRNN_CACHE"):
        return Path(given)
    try:
        return Path.home() / ".cache" / "prnn"
    except RuntimeError:  # in a container, under a user nobody has entered
        raise UserError("there is no home folder to keep downloads and encodings in: set PRNN_CACHE.") from None


def encode(text: Text, level: str, max_words: int) -> tuple[Tokens, Vocabulary]:
    """The tokens of ``text`` and their vocabulary; at word level that is the ``max_words`` most frequent words.

    Raises ``UserError`` if the text is empty, not UTF-8 (except at byte level), or the cache cannot be written.
    """
    if next(text.chunks(), None) is None:
        raise text.empty()
    if level == "byte":
        return Tokens(text.raw()), ByteVocabulary()
    if text.path is not None and (cached := _read_cache(text, level, max_words)):
        return cached
    if level == "word":
        vocabulary: Vocabulary = _count_words(text, max_words)
        pieces = _whole_words(text.decoded())
    else:
        vocabulary, count = _find_alphabet(text)
        pieces = text.decoded()
        raw = text.raw()
        if count == len(raw):  # one byte per character
            return Tokens(raw, table=vocabulary.table[:128].astype(np.int64)), vocabulary
    encoded = (vocabulary.encode(piece) for piece in pieces)
    if text.path is None:
        return Tokens(np.concatenate(list(encoded))), vocabulary
    _write_cache(text, level, max_words, vocabulary, encoded)
    cached = _read_cache(text, level, max_words)
    assert cached is not None
    return cached


def _find_alphabet(text: Text) -> tuple[CharVocabulary, int]:
    """The characters that occur, and how many there are in all."""
    seen = np.zeros(0x110000, dtype=bool)
    count = 0
    for piece in text.decoded():
        seen[np.frombuffer(piece.encode("utf-32-le"), dtype=np.uint32)] = True
        count += len(piece)
    return CharVocabulary("".join(map(chr, np.flatnonzero(seen)))), count


def _count_words(text: Text, max_words: int) -> WordVocabulary:
    counts: Counter[str] = Counter()
    for piece in _whole_words(text.decoded()):
        counts.update(split_words(piece))
        if len(counts) > COUNTED_WORDS:
            counts = Counter(dict(counts.most_common(COUNTED_WORDS // 2)))
    counts.pop(UNKNOWN, None)
    # By falling frequency, ties in alphabetical order: the same text always gives the same vocabulary.
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return WordVocabulary([UNKNOWN, *ranked[: max_words - 1]])


def _whole_words(pieces: Iterator[str]) -> Iterator[str]:
    """The same text, cut only where no word can be (a piece without such a place is passed on as it is)."""
    rest = ""
    for piece in pieces:
        piece = rest + piece
        cut = last_boundary(piece) or len(piece)
        yield piece[:cut]
        rest = piece[cut:]
    yield rest


def _cache_files(text: Text, level: str, max_words: int) -> tuple[Path, Path]:
    """Description (JSON) and tokens of the cached encoding."""
    assert text.path is not None
    status = text.path.stat()
    identity = [CACHE_FORMAT, str(text.path.resolve()), status.st_size, status.st_mtime_ns, level]
    if level == "word":
        identity.append(max_words)
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    stem = cache_dir() / "tokens" / f"{text.path.stem}-{level}-{digest}"
    return stem.with_name(stem.name + ".json"), stem.with_name(stem.name + ".tokens")


def _read_cache(text: Text, level: str, max_words: int) -> tuple[Tokens, Vocabulary] | None:
    description_file, tokens_file = _cache_files(text, level, max_words)
    try:
        description: dict[str, Any] = json.loads(description_file.read_text(encoding="utf-8"))
        vocabulary = from_state(description["vocabulary"])
        array = np.asarray(np.memmap(tokens_file, dtype=vocabulary.dtype, mode="r"))
    except (OSError, ValueError, KeyError):
        return None  # not there, or cut short: made anew
    return (Tokens(array), vocabulary) if len(array) == description["count"] else None


def _write_cache(text: Text, level: str, max_words: int, vocabulary: Vocabulary, encoded: Iterator[np.ndarray]) -> None:
    """Write both files, the description last. Processes doing so at once write the same, each in files of its own."""
    description_file, tokens_file = _cache_files(text, level, max_words)
    try:
        count = 0
        with replacing(tokens_file) as file:
            for tokens in encoded:
                file.write(tokens.tobytes())
                count += len(tokens)
            if count == 0:  # a byte order mark and nothing else, or spaces at word level
                raise text.empty()
        with replacing(description_file) as file:
            description = {"source": str(text.path), "count": count, "vocabulary": vocabulary.state_dict()}
            file.write(json.dumps(description).encode())
    except OSError as error:
        raise UserError(
            f"cannot write the encoded text to {tokens_file.parent} ({error.strerror or error}): "
            "set PRNN_CACHE to a folder with room."
        ) from error


@contextmanager
def replacing(target: Path) -> Iterator[IO[bytes]]:
    """A file that takes ``target``'s place when it is complete, and vanishes if writing it fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex}")  # not tempfile: its files are for one user only
    try:
        with temporary.open("xb") as file:
            yield file
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
