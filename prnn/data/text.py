"""Vocabularies: text to tokens (small integers) and back, by character, byte or word.

    char   one token for each character of the training text's alphabet, in code point order
    byte   the 256 byte values of the UTF-8 text; nothing is ever unknown
    word   words, numbers, marks and newlines; the most frequent ones, and <unk> (token 0) for the rest

Characters and bytes round-trip exactly. Words forget the spaces between them, which ``Decoder`` puts back
by rule; line breaks are tokens.
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

WORD_RULES = 2  # raise it when split_words finds other words: a vocabulary is of use with the rules it was made by

_SPACES = " \xa0\u202f"  # that set a mark off: a plain one, and the two that do not break
_OPENING, _CLOSING = "«‹", ";:!?%»›"  # marks that French sets off by a space, before a word and after one
_LEFT_BOUND = re.compile(rf"[{_SPACES}]?[{_CLOSING}]|[.,)\]}}…।॥،؛؟'’”]|--+|\.\.+|—")  # no space before, or its own
_RIGHT_BOUND = re.compile(r"[(\[{$£‘“¿¡\n]|--+|—")  # no space after; nor after what begins a quotation
# What ends a quotation where these have begun one. » and › begin one in German, at the beginning of a line at least.
_ENDS = {'"': '"', "„": "“", "‚": "‘", "«": "»", "‹": "›", "»": "«", "›": "‹"}

_BETWEEN_WORDS = re.compile(rf" (?=[^\s{_CLOSING}])")  # a space that is not the next mark's


@cache
def _words() -> re.Pattern[str]:
    """What ``split_words`` finds. Made when first used: going through Unicode takes a few hundredths of a second."""
    assigned = (*range(0x20000), *range(0xE0000, 0xE1000))  # where Unicode has combining marks
    marks = [chr(point) for point in assigned if unicodedata.category(chr(point)).startswith("M")]
    # And what joins letters, or says where a word may be hyphenated. ASCII is ruled out first: that is quick.
    mark = f"(?![\0-\x7f])[\u200c\u200d\xad{''.join(marks)}]"
    letters = rf"\w+(?:(?:{mark})+\w*)*"
    # A word may hold apostrophes and hyphens, and open with an apostrophe ('Tis, o'er, fellow-student). A number is
    # one word with its sign and the marks between its digits (-3.14, 1,000, 3:16, 1/2). A run of dashes or full stops
    # is one mark; and of a mark that French sets off, the space is part, so that « oui ! » and «¡sí!» both come back.
    return re.compile(
        rf"<unk>|(?:['’]|(?<![^\s(\[])[-−+](?=\d))?{letters}(?:(?:['’-]|(?<=\d)[.,:/–٫٬](?=\d)){letters})*"
        rf"|--+|\.\.+|\n|[{_SPACES}][{_CLOSING}]|[{_OPENING}][{_SPACES}]|[^\w\s](?:{mark})*"
    )


def split_words(text: str) -> list[str]:
    """The word-level symbols of ``text``, in order."""
    return _words().findall(text)


def last_boundary(text: str) -> int:
    """Where ``text`` can be cut with its words the same: after its last newline, else after a space; 0: nowhere."""
    return text.rfind("\n") + 1 or max((found.end() for found in _BETWEEN_WORDS.finditer(text)), default=0)


def number_words(words: list[str]) -> dict[str, int]:
    """The token of each of ``words``. A French mark spaced as in none of them is read as one spaced otherwise."""
    tokens = {word: token for token, word in enumerate(words)}
    for mark in _OPENING + _CLOSING:
        spacings = [mark + space if mark in _OPENING else space + mark for space in (*_SPACES, "")]
        known = next((tokens[word] for word in spacings if word in tokens), None)
        if known is not None:
            tokens = dict.fromkeys(spacings, known) | tokens
    return tokens


def check_word_rules(state: dict[str, Any]) -> None:
    """Raise ``UserError`` if the vocabulary of ``state`` was made by other rules: it would take words for unknown."""
    if (rules := state.get("rules", 1)) != WORD_RULES:
        raise UserError(
            f"the checkpoint's words were told apart by the rules of another version of prnn ({rules}, here "
            f"{WORD_RULES}): use that version, or train anew."
        )


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
    """Puts spaces between words as English sets them, and quotation marks as its neighbours do.

    A straight double quote opens or closes by turns within a line, “ closes where „ has opened, and » opens at the
    beginning of a line. What is not in the words is lost: that there were two spaces, or a dash had one.
    """

    def __init__(self, symbols: list[str]) -> None:
        super().__init__(symbols)
        self._glue = True  # the next word takes no space before it
        self._awaited: list[str] = []  # the ends of the quotations this line has begun

    def push(self, token: int) -> str:
        word = self.symbols[token]
        mark = word.strip(_SPACES)
        if word == "\n":
            self._glue, self._awaited = True, []
            return word
        if mark in self._awaited:
            del self._awaited[self._awaited.index(mark) :]
            self._glue = False
            return word
        begins = mark in _ENDS and (mark not in _CLOSING or (self._glue and word == mark))
        if begins:
            self._awaited.append(_ENDS[mark])
        piece = word if self._glue or _LEFT_BOUND.fullmatch(word) else " " + word
        self._glue = begins or _RIGHT_BOUND.fullmatch(word) is not None
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
        try:
            return np.frombuffer(text.encode("utf-8", errors="surrogateescape"), dtype=np.uint8)
        except UnicodeEncodeError as error:
            half = f"U+{ord(text[error.start]):04X}, position {error.start}"
            raise UserError(f"{what} holds half a character ({half}), which no byte stands for.") from None

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


VocabularyState = CharState | ByteState | WordState  # what from_state reads


def from_state(state: dict[str, Any]) -> Vocabulary:
    """The vocabulary ``state_dict`` described; raises ``UserError`` for words of another version's."""
    if state["level"] == "char":
        return CharVocabulary(state["symbols"])
    if state["level"] == "byte":
        return ByteVocabulary()
    check_word_rules(state)
    return WordVocabulary(state["symbols"])


def _code_points(text: str) -> np.ndarray:
    # surrogatepass: a lone surrogate is looked up (and not found) like any other character.
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
