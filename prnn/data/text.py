"""Vocabularies: text to tokens (small integers) and back, by character, byte or word.

    char   one token for each character of the training text's alphabet, in code point order
    byte   the 256 byte values of the UTF-8 text; nothing is ever unknown
    word   words, punctuation marks and newlines; the most frequent ones, and <unk> (token 0) for the rest

Characters and bytes round-trip exactly. Words forget the spaces between them, which ``Decoder`` puts back
by rule; line breaks are tokens.
"""

from __future__ import annotations

import codecs
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from prnn.errors import UserError

LEVELS = ("char", "byte", "word")
UNKNOWN = "<unk>"

# A word may hold apostrophes and hyphens, and open with an apostrophe ('Tis, o'er, fellow-student);
# a run of dashes or full stops is one mark.
_WORD = re.compile(r"<unk>|['’]?\w+(?:['’-]\w+)*|--+|\.\.+|\n|[^\w\s]")
_LEFT_BOUND = re.compile(r"[.,;:!?)\]}%…'’”]|--+|\.\.+|—")  # no space before
_RIGHT_BOUND = re.compile(r"[(\[{$‘“¿¡\n]|--+|—")  # no space after


def split_words(text: str) -> list[str]:
    """The word-level symbols of ``text``, in order."""
    return _WORD.findall(text)


class Decoder:
    """Turns tokens into text one at a time. The pieces of ``push`` and the last one of ``flush`` add up to the text."""

    def __init__(self, symbols: list[str]) -> None:
        self.symbols = symbols

    def push(self, token: int) -> str:
        return self.symbols[token]

    def flush(self) -> str:
        return ""


class _ByteDecoder(Decoder):
    """Holds back the bytes of an unfinished UTF-8 character; a wrong byte becomes U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(bytes([token]))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class _WordDecoder(Decoder):
    """Puts spaces between words as English sets them. A double quote opens or closes by turns within a line."""

    def __init__(self, symbols: list[str]) -> None:
        super().__init__(symbols)
        self._glue = True  # the next word takes no space before it
        self._quoted = False

    def push(self, token: int) -> str:
        word = self.symbols[token]
        if word == "\n":
            self._glue, self._quoted = True, False
            return word
        if word == '"':
            piece = word if self._glue or self._quoted else " " + word
            self._quoted = not self._quoted
            self._glue = self._quoted
            return piece
        piece = word if self._glue or _LEFT_BOUND.fullmatch(word) else " " + word
        self._glue = _RIGHT_BOUND.fullmatch(word) is not None
        return piece


class Vocabulary(ABC):
    """The symbols a model reads and writes; a token is a position in them."""

    level: ClassVar[str]
    unit: ClassVar[str]  # what one token is, in the plural

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def encode(self, text: str, what: str = "the text") -> np.ndarray:
        """Tokens [N] of ``text``, in ``self.dtype``. ``what`` names the text in the error about an unknown symbol."""

    @abstractmethod
    def decoder(self) -> Decoder: ...

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Plain JSON; ``from_state`` reads it."""

    @property
    def start(self) -> int:
        """The token to put before a text that follows nothing: a new line, or the first symbol where there are none."""
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
                "which does not occur in the text the model is trained on."
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
        # A command line hands undecodable bytes over as surrogates; this gives them back as they were.
        return np.frombuffer(text.encode("utf-8", errors="surrogateescape"), dtype=np.uint8)

    def decoder(self) -> Decoder:
        return _ByteDecoder()

    def state_dict(self) -> dict[str, Any]:
        return {"level": self.level}


class WordVocabulary(Vocabulary):
    level, unit = "word", "words"

    def __init__(self, words: list[str]) -> None:
        """``words[0]`` is ``UNKNOWN``."""
        self.words = words
        self._tokens = {word: token for token, word in enumerate(words)}

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
        return {"level": self.level, "symbols": self.words}


def from_state(state: dict[str, Any]) -> Vocabulary:
    """The vocabulary ``state_dict`` described."""
    if state["level"] == "char":
        return CharVocabulary(state["symbols"])
    return WordVocabulary(state["symbols"]) if state["level"] == "word" else ByteVocabulary()


def _code_points(text: str) -> np.ndarray:
    # surrogatepass: a lone surrogate is looked up (and not found) like any other character.
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
