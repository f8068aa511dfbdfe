"""The vocabulary of a text model as arrays of C."""

from __future__ import annotations

import textwrap
from typing import NamedTuple


class Vocabulary(NamedTuple):
    """The bytes of each token, ``start``, the token before the beginning of a text, and ``level``: "char", "byte" or
    "word", whose pieces are joined by spaces.
    """

    pieces: tuple[bytes, ...]
    start: int
    level: str

    def source(self) -> str:
        """Its definitions."""
        texts = "\n".join(f"  {_literal(piece)}," for piece in self.pieces)
        sizes = textwrap.fill(", ".join(str(len(piece)) for piece in self.pieces), 116)
        return "\n".join(
            [
                f"#define START {self.start}",
                f"#define VOCABULARY_OF_WORDS {int(self.level == 'word')}",
                f"static const char *const pieces[{len(self.pieces)}] = {{",
                texts,
                "};",
                f"static const size_t piece_sizes[{len(self.pieces)}] = {{\n{sizes}\n}};",
            ]
        )


def _literal(piece: bytes) -> str:
    """The bytes as a string; those that are not plain as three octal digits, which end where they end."""
    plain = frozenset(range(32, 127)) - frozenset(b'"\\?')  # ? begins trigraphs
    return '"' + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in piece) + '"'
