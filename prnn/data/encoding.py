"""Encoding of a text into tokens, in bounded memory, reading the user's file only once at the start.

    up to HELD_BYTES  read and encoded in memory; where that takes seconds, at word level or for a fraction of larger
                      files, cached on disk as well
    larger            encoded in chunks into a cache file, and read from there window by window

Editing, truncating or deleting the text during training therefore has no effect. Nothing is memory-mapped, since a
truncated mapping kills the process (SIGBUS). A cached encoding is keyed by the paths, sizes and modification times of
the text's files, so an edited text is encoded again; checksums detect a damaged one.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
import weakref
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np

from prnn.data.files import blaming_changes, stamp
from prnn.data.source import CHUNK_BYTES, Parts, Source, Text, as_bytes, as_text, held
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

HELD_BYTES = 16 << 20  # texts, and likewise tokens, of at most this size are held in memory
CACHE_FORMAT = 4  # part of a cached encoding's name, to be raised when the encoding changes
STEM_BYTES = 60  # of a text's name in that of its cached encoding, which file systems limit to 255 or fewer
COUNTED_WORDS = 1_000_000  # distinct words counted at a time; beyond, the rarer half is dropped, to bound memory


class Tokens(ABC):
    """An immutable sequence of tokens [N]; ``digest`` is its sha256."""

    digest: str

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def windows(self, first: np.ndarray, length: int, stop: int | None = None) -> np.ndarray:
        """``length`` tokens from each position of ``first`` [B] on, as int64 [length, B]; 0 from ``stop`` on."""


class HeldTokens(Tokens):
    """Tokens in memory: ``array`` [N], of any integer type."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.digest = hashlib.sha256(array.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.array)

    def windows(self, first: np.ndarray, length: int, stop: int | None = None) -> np.ndarray:
        stop = len(self) if stop is None else stop
        index = np.arange(length)[:, None] + first
        return np.where(index < stop, self.array[np.minimum(index, stop - 1)], 0).astype(np.int64)


class StoredTokens(Tokens):
    """Tokens in a cache file, kept open so that its name may be reused.

    Raises ``OSError`` where the file is missing, and ``UserError`` where its digest does not match, at once or as soon
    as the file changes.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], count: int, digest: str) -> None:
        self.path, self.dtype, self.count, self.digest = path, dtype, count, digest
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        self._verify()

    def __len__(self) -> int:
        return self.count

    def windows(self, first: np.ndarray, length: int, stop: int | None = None) -> np.ndarray:
        stop, size = len(self) if stop is None else stop, self.dtype.itemsize
        try:
            read = [
                os.pread(self._descriptor, max(0, min(length, stop - start)) * size, start * size)
                for start in first.tolist()
            ]
            if (
                stamp(os.fstat(self._descriptor)) != self._stamp
            ):  # written to, or only touched (to protect it from cleaners)
                self._verify()
        except OSError as error:
            raise UserError(f"{self.path}, the encoded text, cannot be read ({error.strerror or error}).") from None
        rows = np.frombuffer(b"".join(row.ljust(length * size, b"\0") for row in read), dtype=self.dtype)
        return rows.reshape(len(first), length).T.astype(np.int64)

    def _verify(self) -> None:
        self._stamp = stamp(os.fstat(self._descriptor))
        digest, position = hashlib.sha256(), 0
        while chunk := os.pread(self._descriptor, CHUNK_BYTES, position):
            digest.update(chunk)
            position += len(chunk)
        if position != self.count * self.dtype.itemsize or digest.hexdigest() != self.digest:
            raise UserError(
                f"{self.path}, the encoded text, has changed during training: start again, and it is encoded again."
            )


def cache_dir() -> Path:
    """The folder of downloads and encodings: $PRNN_CACHE, else ~/.cache/prnn."""
    if configured := os.environ.get("PRNN_CACHE"):
        return Path(configured)
    try:
        return Path.home() / ".cache" / "prnn"
    except RuntimeError:  # in a container, under a user id without an entry
        raise UserError("there is no home folder for downloads and encodings: set PRNN_CACHE.") from None


def encode(text: Text, level: str, max_words: int, fraction: float = 1.0) -> tuple[Tokens, Vocabulary]:
    """The tokens of ``fraction`` of ``text`` and their vocabulary, at word level the ``max_words`` most frequent words.

    Raises ``UserError`` if the text is empty, changed while being read, damaged, or not UTF-8 (except at byte level),
    or the encoding of a large one cannot be written to the cache.
    """
    cache = _Cache(text, level, max_words, fraction)
    if (cached := cache.read()) is not None:
        return cached
    source = Source(text, fraction, check=level != "byte")
    with blaming_changes(text.files):
        in_memory = held(source, HELD_BYTES)
        vocabulary, pieces = _encoded(source if in_memory is None else in_memory, text.name, level, max_words)
        if in_memory is None:
            return cache.write(vocabulary, pieces)
        tokens = HeldTokens(np.concatenate(list(pieces)))
    if text.files and (level == "word" or sum(file.stamp[0] for file in text.files) > HELD_BYTES):
        with suppress(UserError):  # without a writable cache the text is only encoded again next time
            cache.write(vocabulary, iter([tokens.array]))
    return tokens, vocabulary


def _encoded(parts: Parts, name: str, level: str, max_words: int) -> tuple[Vocabulary, Iterator[np.ndarray]]:
    """The vocabulary, and the tokens in non-empty pieces."""
    if level == "byte":
        vocabulary: Vocabulary = ByteVocabulary()
        pieces = (np.frombuffer(piece, dtype=np.uint8) for piece in as_bytes(parts))
    else:
        vocabulary = _count_words(parts, max_words) if level == "word" else _find_alphabet(parts)
        texts = _whole_words(as_text(parts)) if level == "word" else as_text(parts)
        pieces = (vocabulary.encode(text) for text in texts)
    non_empty = (piece for piece in pieces if len(piece))
    if (first := next(non_empty, None)) is None:  # only a byte order mark, or only spaces at word level
        raise UserError(f"{name} is empty: there is nothing to train on.")
    return vocabulary, chain([first], non_empty)


def _find_alphabet(parts: Parts) -> CharVocabulary:
    seen = np.zeros(0x110000, dtype=bool)
    for piece in as_text(parts):
        seen[np.frombuffer(piece.encode("utf-32-le"), dtype=np.uint32)] = True
    return CharVocabulary("".join(map(chr, np.flatnonzero(seen))))


def _count_words(parts: Parts, max_words: int) -> WordVocabulary:
    counts: Counter[str] = Counter()
    for piece in _whole_words(as_text(parts)):
        counts.update(split_words(piece))
        if len(counts) > COUNTED_WORDS:
            counts = Counter(dict(counts.most_common(COUNTED_WORDS // 2)))
    counts.pop(UNKNOWN, None)
    # By decreasing frequency, ties in alphabetical order: the vocabulary is deterministic.
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return WordVocabulary([UNKNOWN, *ranked[: max_words - 1]])


def _whole_words(pieces: Iterator[str]) -> Iterator[str]:
    """The same text, split only between words (a piece without a boundary is passed on unchanged)."""
    rest = ""
    for piece in pieces:
        piece = rest + piece
        cut = last_boundary(piece) or len(piece)
        yield piece[:cut]
        rest = piece[cut:]
    yield rest


@dataclass(frozen=True)
class _Cache:
    """The cached encoding of one version of a text's files: its tokens, and their metadata (JSON)."""

    text: Text
    level: str
    max_words: int
    fraction: float

    @cached_property
    def files(self) -> tuple[Path, Path]:
        """Description and tokens."""
        files = self.text.files
        identity = [CACHE_FORMAT, [(file.real, *file.stamp) for file in files], self.level, self.fraction]
        if self.level == "word":
            identity.append(self.max_words)
        digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
        name = files[0].path.stem.encode(errors="ignore")[:STEM_BYTES].decode(errors="ignore")
        stem = f"{name}-{self.level}-{digest}"
        folder = cache_dir() / "tokens"
        return folder / f"{stem}.json", folder / f"{stem}.tokens"

    def read(self) -> tuple[Tokens, Vocabulary] | None:
        """The cached tokens and vocabulary; None if missing or damaged, to be encoded again."""
        if not self.text.files:
            return None
        try:
            description_file, tokens_file = self.files
            description: dict[str, Any] = json.loads(description_file.read_bytes())
            if description.pop("checksum") != _checksum(description):
                return None
            vocabulary = from_state(description["vocabulary"])
            count, digest = description["count"], description["sha256"]
            if count * vocabulary.dtype.itemsize > HELD_BYTES:
                return StoredTokens(tokens_file, vocabulary.dtype, count, digest), vocabulary
            tokens = HeldTokens(np.frombuffer(tokens_file.read_bytes(), dtype=vocabulary.dtype))
        except (OSError, ValueError, KeyError, AttributeError, UserError):
            return None
        return (tokens, vocabulary) if tokens.digest == digest else None

    def write(self, vocabulary: Vocabulary, pieces: Iterator[np.ndarray]) -> tuple[Tokens, Vocabulary]:
        """Write both files, the metadata last, and read them back. Nothing is kept if ``pieces`` raises.

        Concurrent processes write the same content, each to separate temporary files.
        """
        description_file, tokens_file = self.files
        try:
            digest, count = hashlib.sha256(), 0
            with replacing(tokens_file) as file:
                for tokens in pieces:
                    content = tokens.tobytes()
                    file.write(content)
                    digest.update(content)
                    count += len(tokens)
            description = {
                "source": self.text.name,
                "count": count,
                "sha256": digest.hexdigest(),
                "vocabulary": vocabulary.state_dict(),
            }
            with replacing(description_file) as file:
                file.write(json.dumps({**description, "checksum": _checksum(description)}).encode())
        except OSError as error:
            raise UserError(
                f"cannot write the encoded text to {tokens_file.parent} ({error.strerror or error}): "
                "set PRNN_CACHE to a folder with room."
            ) from error
        if (written := self.read()) is None:
            raise UserError(
                f"the encoded text in {tokens_file.parent} differs from what was written: set PRNN_CACHE to another "
                "folder."
            )
        return written


def _checksum(description: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


@contextmanager
def replacing(target: Path) -> Iterator[IO[bytes]]:
    """A temporary file that atomically replaces ``target`` when complete, and is removed on failure."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex}")  # tempfile files are private
    try:
        with temporary.open("xb") as file:
            yield file
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
