"""Vocabularies: tokenization at character, byte or word level, and decoding.

    char   one token for each character of the training text's alphabet, in code point order
    byte   the 256 byte values of the UTF-8 text; no unknown tokens
    word   words, numbers, punctuation and newlines; the most frequent ones, and <unk> (token 0) for the rest

Characters and bytes round-trip exactly. At word level the spaces are dropped, and ``Decoder`` restores them by rule;
line breaks are tokens.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cache
from typing import Any, ClassVar, Literal, TypedDict

import numpy as np

from prnn.errors import UserError

LEVELS = ("char", "byte", "word")
UNKNOWN = "<unk>"

WORD_RULES = 2  # the version of split_words, to be raised when it changes: a vocabulary is valid for one version only

_SPACES = " \xa0\u202f"  # that may separate a punctuation mark: a plain space and the two no-break spaces
_OPENING, _CLOSING = "«‹", ";:!?%»›"  # marks that French separates by a space, before a word and after one
_LEFT_BOUND = re.compile(rf"[{_SPACES}]?[{_CLOSING}]|[.,)\]}}…।॥،؛؟'’”]|--+|\.\.+|—")  # no space before, or its own
_RIGHT_BOUND = re.compile(r"[(\[{$£‘“¿¡\n]|--+|—")  # no space after; nor after an opening quotation mark
# Opening quotation mark -> closing one. » and › open in German, at least at the beginning of a line.
_ENDS = {'"': '"', "„": "“", "‚": "‘", "«": "»", "‹": "›", "»": "«", "›": "‹"}

_BETWEEN_WORDS = re.compile(rf" (?=[^\s{_CLOSING}])")  # a space that is not part of the next mark
_BETWEEN_WORDS_UTF8 = re.compile(_BETWEEN_WORDS.pattern.encode())  # and not before bytes that occur in such marks


@cache
def _words() -> re.Pattern[str]:
    """The pattern of ``split_words``. Built on first use: scanning Unicode takes a few hundredths of a second."""
    assigned = (*range(0x20000), *range(0xE0000, 0xE1000))  # where Unicode has combining marks
    marks = [chr(point) for point in assigned if unicodedata.category(chr(point)).startswith("M")]
    # And joiners and soft hyphens. ASCII is excluded first, for speed.
    mark = f"(?![\0-\x7f])[\u200c\u200d\xad{''.join(marks)}]"
    letters = rf"\w+(?:(?:{mark})+\w*)*"
    # A word may contain apostrophes and hyphens, and begin with an apostrophe ('Tis, o'er, fellow-student). A number is
    # one word with its sign and the marks between its digits (-3.14, 1,000, 3:16, 1/2). A run of dashes or full stops
    # is one mark; the space of a mark that French separates is part of it, so « oui ! » and «¡sí!» both round-trip.
    return re.compile(
        rf"<unk>|(?:['’]|(?<![^\s(\[])[-−+](?=\d))?{letters}(?:(?:['’-]|(?<=\d)[.,:/–٫٬](?=\d)){letters})*"
        rf"|--+|\.\.+|\n|[{_SPACES}][{_CLOSING}]|[{_OPENING}][{_SPACES}]|[^\w\s](?:{mark})*"
    )


def split_words(text: str) -> list[str]:
    """The word-level symbols of ``text``, in order."""
    return _words().findall(text)


def last_boundary(text: str) -> int:
    """The last position at which ``text`` can be split between words: after a newline, else a space; 0: none."""
    return text.rfind("\n") + 1 or max((match.end() for match in _BETWEEN_WORDS.finditer(text)), default=0)


def first_boundary(text: bytes) -> int:
    """The first position at which UTF-8 ``text`` can be split: after a newline, else between words or characters."""
    if (newline := text.find(b"\n")) >= 0:
        return newline + 1
    if match := _BETWEEN_WORDS_UTF8.search(text):
        return match.end()
    begins = (position for position, byte in enumerate(text[:4]) if byte & 0xC0 != 0x80)
    return next(begins, len(text[:4]))  # or it ends with the rest of a character


def number_words(words: list[str]) -> dict[str, int]:
    """The token of each of ``words``. A French mark with unseen spacing maps to the same mark with known spacing."""
    tokens = {word: token for token, word in enumerate(words)}
    for mark in _OPENING + _CLOSING:
        spacings = [mark + space if mark in _OPENING else space + mark for space in (*_SPACES, "")]
        known = next((tokens[word] for word in spacings if word in tokens), None)
        if known is not None:
            tokens = dict.fromkeys(spacings, known) | tokens
    return tokens


def check_word_rules(state: dict[str, Any]) -> None:
    """Raise ``UserError`` if the vocabulary of ``state`` is of other word rules: known words would become <unk>."""
    if (rules := state.get("rules", 1)) != WORD_RULES:
        raise UserError(
            f"the checkpoint's vocabulary was built with the word rules of another version of prnn ({rules}, here "
            f"{WORD_RULES}): use that version, or train anew."
        )


class Decoder:
    """Incremental decoding: the pieces that ``push`` returns and the last one of ``flush`` concatenate to the text."""

    def __init__(self, symbols: list[str]) -> None:
        self.symbols = symbols

    def push(self, token: int) -> str:
        return self.symbols[token]

    def flush(self) -> str:
        return ""


class _ByteDecoder(Decoder):
    """Buffers the bytes of an incomplete UTF-8 character; an invalid byte becomes U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(bytes([token]))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class _WordDecoder(Decoder):
    """Restores spaces between words by the rules of English, and around quotation marks of neighbouring languages.

    A straight double quote alternately opens and closes within a line, “ closes after an opening „, and » opens at the
    beginning of a line. Double spaces and spaces around dashes are not restored.
    """

    def __init__(self, symbols: list[str]) -> None:
        super().__init__(symbols)
        self._glue = True  # no space before the next word
        self._open_quotations: list[str] = []  # the closing marks of this line's open quotations

    def push(self, token: int) -> str:
        word = self.symbols[token]
        mark = word.strip(_SPACES)
        if word == "\n":
            self._glue, self._open_quotations = True, []
            return word
        if mark in self._open_quotations:
            del self._open_quotations[self._open_quotations.index(mark) :]
            self._glue = False
            return word
        begins = mark in _ENDS and (mark not in _CLOSING or (self._glue and word == mark))
        if begins:
            self._open_quotations.append(_ENDS[mark])
        piece = word if self._glue or _LEFT_BOUND.fullmatch(word) else " " + word
        self._glue = begins or _RIGHT_BOUND.fullmatch(word) is not None
        return piece


class Vocabulary(ABC):
    """The symbols of a model's input and output; a token is an index into them."""

    level: ClassVar[str]
    unit: ClassVar[str]  # the name of a token, in the plural

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def encode(self, text: str, what: str = "the text") -> np.ndarray:
        """Tokens [N] of ``text``, in ``self.dtype``. ``what`` names the text in the error about an unknown symbol."""

    @abstractmethod
    def decoder(self) -> Decoder: ...

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Plain JSON, for ``from_state``."""

    @property
    def start(self) -> int:
        """The token before the beginning of a text: a newline, or the first symbol of a vocabulary without one."""
        return 0

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest integer type that holds every token."""
        return np.dtype(np.uint8 if len(self) <= 1 << 8 else np.uint16 if len(self) <= 1 << 16 else np.int32)

    def decode(self, tokens: Iterable[int]) -> str:
        decoder = self.decoder()
        return "".join(decoder.push(int(token)) for token in tokens) + decoder.flush()


class CharVocabulary(Vocabulary):
    level, unit = "char", "characters"

    def __init__(self, alphabet: str) -> None:
        self.alphabet = alphabet
        points = _code_points(alphabet)
        self.table = np.full(int(points.max(initial=127)) + 2, -1, dtype=np.int32)  # code point -> token; last: unknown
        self.table[points] = np.arange(len(alphabet))

    def __len__(self) -> int:
        return len(self.alphabet)

    @property
    def start(self) -> int:
        return max(0, self.alphabet.find("\n"))

    def encode(self, text: str, what: str = "the text") -> np.ndarray:
        tokens = self.table[np.minimum(_code_points(text), len(self.table) - 1)]
        if len(tokens) and tokens.min() < 0:
            position = int(np.argmax(tokens < 0))
            character = text[position]
            raise UserError(
                f"{what} holds the character {character!r} (U+{ord(character):04X}, position {position}), "
                "which does not occur in the model's training text."
            )
        return tokens.astype(self.dtype)

    def decoder(self) -> Decoder:
        return Decoder(list(self.alphabet))

    def state_dict(self) -> dict[str, Any]:
        return {"level": self.level, "symbols": self.alphabet}


class ByteVocabulary(Vocabulary):
    level, unit = "byte", "bytes"

    def __len__(self) -> int:
        return 256

    @property
    def start(self) -> int:
        return ord("\n")

    def encode(self, text: str, what: str = "the text") -> np.ndarray:
        # Undecodable bytes of a command line arrive as surrogates; this restores the bytes.
        try:
            return np.frombuffer(text.encode("utf-8", errors="surrogateescape"), dtype=np.uint8)
        except UnicodeEncodeError as error:
            place = f"U+{ord(text[error.start]):04X}, position {error.start}"
            raise UserError(f"{what} contains a lone surrogate ({place}), which cannot be encoded as UTF-8.") from None

    def decoder(self) -> Decoder:
        return _ByteDecoder()

    def state_dict(self) -> dict[str, Any]:
        return {"level": self.level}


class WordVocabulary(Vocabulary):
    level, unit = "word", "words"

    def __init__(self, words: list[str]) -> None:
        """``words[0]`` is ``UNKNOWN``."""
        self.words = words
        self._tokens = number_words(words)

    def __len__(self) -> int:
        return len(self.words)

    @property
    def start(self) -> int:
        return self._tokens.get("\n", 0)

    def encode(self, text: str, what: str = "the text") -> np.ndarray:
        return np.array([self._tokens.get(word, 0) for word in split_words(text)], dtype=self.dtype)

    def decoder(self) -> Decoder:
        return _WordDecoder(self.words)

    def state_dict(self) -> dict[str, Any]:
        return {"level": self.level, "symbols": self.words, "rules": WORD_RULES}


class CharState(TypedDict):
    level: Literal["char"]
    symbols: str


class ByteState(TypedDict):
    level: Literal["byte"]


class WordState(TypedDict):
    level: Literal["word"]
    symbols: list[str]


VocabularyState = CharState | ByteState | WordState  # the argument of from_state


def from_state(state: dict[str, Any]) -> Vocabulary:
    """The vocabulary of a ``state_dict``; raises ``UserError`` for another version's word rules."""
    if state["level"] == "char":
        return CharVocabulary(state["symbols"])
    if state["level"] == "byte":
        return ByteVocabulary()
    check_word_rules(state)
    return WordVocabulary(state["symbols"])


def _code_points(text: str) -> np.ndarray:
    # surrogatepass: a lone surrogate is an unknown character like any other.
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
