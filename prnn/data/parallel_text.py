"""Parallel text: sentence pairs from a tab-separated file, their split, and their vocabularies.

A file holds one pair a line, in two tab-separated columns; compressed files are unpacked. Columns are selected by
number, from 1, or by name, in which case the first line of each file is a header.

Tokens are the words, numbers and punctuation marks of ``text.split_words`` ("Who, he?" is "who" "," "he" "?"), or
characters. Decoding restores the spaces between words by rule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np

from prnn.data.files import HEAD_BYTES, check_text
from prnn.data.source import Text
from prnn.data.text import WORD_RULES, WordVocabulary, check_word_rules, number_words, split_words
from prnn.data.unpacking import Content, contents, unpacking
from prnn.errors import UserError

Pair = tuple[str, str]  # source, target

LEVELS = ("word", "char")
PAD, UNK, BOS, EOS = range(4)
SPECIAL = ("<pad>", "<unk>", "<bos>", "<eos>")


@dataclass(frozen=True)
class Parts:
    """The training, validation and test pairs."""

    train: list[Pair]
    dev: list[Pair]
    test: list[Pair]


class SymbolsState(TypedDict):
    """The argument of ``Symbols.from_state``."""

    symbols: list[str]
    level: Literal["word", "char"]
    lowercase: bool


class Symbols:
    """The vocabulary of one language: the four special tokens, then the rest by decreasing frequency."""

    def __init__(self, symbols: list[str], level: str, lowercase: bool) -> None:
        self.symbols, self.level, self.lowercase = symbols, level, lowercase
        self._tokens = number_words(symbols) if level == "word" else {s: token for token, s in enumerate(symbols)}

    @classmethod
    def of(cls, texts: Iterable[str], level: str, lowercase: bool, size: int, min_count: int) -> Symbols:
        """The ``size`` most frequent symbols of ``texts``, special ones included, that occur at least ``min_count``
        times. The order of ties does not depend on the order of the texts.
        """
        empty = cls([], level, lowercase)
        counts = Counter(symbol for text in texts for symbol in empty.split(text))
        for special in SPECIAL:
            del counts[special]
        frequent = sorted((symbol for symbol in counts if counts[symbol] >= min_count), key=lambda s: (-counts[s], s))
        return cls([*SPECIAL, *frequent[: max(0, size - len(SPECIAL))]], level, lowercase)

    def __len__(self) -> int:
        return len(self.symbols)

    def split(self, text: str) -> list[str]:
        text = text.lower() if self.lowercase else text
        return split_words(text) if self.level == "word" else list(text)

    def encode(self, text: str) -> np.ndarray:
        """Tokens [N] int64; unknown symbols become ``UNK``."""
        return np.array([self._tokens.get(symbol, UNK) for symbol in self.split(text)], dtype=np.int64)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text, without ``PAD``, ``BOS`` and ``EOS``."""
        shown = [token for token in tokens if token not in (PAD, BOS, EOS)]
        if self.level == "word":
            return WordVocabulary(self.symbols).decode(shown)
        return "".join(self.symbols[token] for token in shown)

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON, for ``from_state``."""
        state = {"symbols": self.symbols, "level": self.level, "lowercase": self.lowercase}
        return state | {"rules": WORD_RULES} if self.level == "word" else state

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Symbols:
        """Raises ``UserError`` for another version's word rules."""
        if state["level"] == "word":
            check_word_rules(state)
        return cls(state["symbols"], state["level"], state["lowercase"])


def read_pairs(text: Text, source_column: str, target_column: str) -> list[Pair]:
    """The pairs of a text's tab-separated files, in their order, without those with an empty side.

    Raises ``UserError`` for a file that is damaged, empty, not UTF-8 or has too few columns, with the line number; and
    for one that changes while being read.
    """
    pairs: list[Pair] = []
    for file in text.files:
        with file.reading() as opened:
            for content in contents(opened, file.name):
                pairs += _pairs(_lines(content), content.name, source_column, target_column)
    if not pairs:
        raise UserError(f"{text.name} is empty: it contains no sentence pair.")
    return pairs


def _pairs(lines: Iterator[tuple[int, str]], name: str, source_column: str, target_column: str) -> Iterator[Pair]:
    by_number = [column.isdecimal() for column in (source_column, target_column)]
    if by_number[0] != by_number[1]:
        raise UserError(
            f"data.source_column={source_column} and data.target_column={target_column} must be two numbers, or two "
            "names from the file's first line."
        )
    header: list[str] = []
    if not by_number[0]:
        first = next(lines, None)
        if first is None:
            return
        header = first[1].split("\t")
    where = [_position(column, header, key, name) for key, column in
             (("source_column", source_column), ("target_column", target_column))]  # fmt: skip
    for number, line in lines:
        cells = line.split("\t")
        if len(cells) <= max(where):
            raise UserError(
                f"{name}, line {number}: {len(cells)} column{'s' if len(cells) > 1 else ''} where "
                f"{max(where) + 1} are needed (data.source_column={source_column}, "
                f"data.target_column={target_column}); tabs separate them."
            )
        pair = (cells[where[0]].strip(), cells[where[1]].strip())
        if all(pair):
            yield pair


def _position(column: str, header: list[str], key: str, file: str) -> int:
    if not header:
        if len(column) > 6:
            raise UserError(f"data.{key}={column[:20]} must be at most 999999.")
        if int(column) < 1:
            raise UserError(f"data.{key}={column} must be at least 1: columns are counted from 1.")
        return int(column) - 1
    if column not in header:
        raise UserError(f"data.{key}={column} is not a column of {file}: its first line names {', '.join(header)}.")
    return header.index(column)


def _lines(content: Content) -> Iterator[tuple[int, str]]:
    """The non-blank lines, with their numbers from 1."""
    with unpacking(content.name):
        check_text(content.stream.read(HEAD_BYTES), content.name)
        content.stream.seek(0)
        for number, raw in enumerate(content.stream, 1):
            line = _decoded(raw, number, content.name).rstrip("\r\n")
            if line.strip():
                yield number, line


def _decoded(raw: bytes, number: int, name: str) -> str:
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}, line {number} is not UTF-8 (its byte {error.start + 1}): convert the file.") from None


def at_most(pairs: list[Pair], words: int | None) -> list[Pair]:
    """The pairs of at most ``words`` space-separated words on either side; None: all.

    Raises ``UserError`` if none are left.
    """
    if words is None:
        return pairs
    lengths = [max(len(side.split()) for side in pair) for pair in pairs]
    if min(lengths) > words:
        raise UserError(
            f"data.max_length={words} leaves none of the file's {len(pairs):,} pairs: the shortest has {min(lengths)} "
            "words on one side; raise it."
        )
    return [pair for pair, length in zip(pairs, lengths, strict=True) if length <= words]


def split(pairs: list[Pair], sizes: tuple[int | None, int, int], seed: int, max_length: int | None = None) -> Parts:
    """Draw the validation and test pairs; the rest, or its first ``sizes[0]``, are the training pairs.

    Pairs with the same source are kept in one part, so that no test source occurs in training; those that exceed the
    size of a part are dropped. ``max_length``, the filter already applied, is for messages.
    """
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair[0], []).append(pair)
    sources = list(groups)
    order = iter(np.random.default_rng([seed, len(sources)]).permutation(len(sources)))
    parts: list[list[Pair]] = []
    for size in (sizes[2], sizes[1], sizes[0]):
        part: list[Pair] = []
        while (size is None or len(part) < size) and (drawn := next(order, None)) is not None:
            part += groups[sources[drawn]]
        parts.append(part if size is None else part[:size])
    test, dev, train = parts
    if not train or len(dev) < sizes[1] or len(test) < sizes[2]:
        chosen = "" if max_length is None else f" of at most data.max_length={max_length} words on either side"
        raise UserError(
            f"data.dev_size={sizes[1]} and data.test_size={sizes[2]} leave nothing to train on: the file has "
            f"{len(pairs):,} pairs{chosen}."
        )
    return Parts(train, dev, test)
