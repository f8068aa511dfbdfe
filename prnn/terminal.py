"""How text reaches a terminal: characters that would steer it are shown as escapes, those it lacks are replaced."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from typing import Any, TextIO

# Control characters but for newline and tab, C1 and DEL among them; what sets the direction of writing; and halves of
# characters, which no encoding can write: undecodable bytes of a file name are such.
_UNSEEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """``text`` with characters that a terminal or a browser obeys, instead of showing them, written out: ␛, \\u202e."""
    return _UNSEEN.sub(_written_out, text)


def _written_out(found: re.Match[str]) -> str:
    code = ord(found[0])
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else f"\\u{code:04x}"


def shown(text: str, stream: TextIO) -> str:
    """``text`` as it is written to ``stream``, where it is data: visible on a terminal, as it is into a pipe."""
    return visible(text) if stream.isatty() else text


def lenient(stream: TextIO) -> None:
    """Let ``stream`` write ``?`` for a character that its encoding lacks, instead of raising ``UnicodeEncodeError``."""
    # surrogateescape is Python's choice in the C locale: it lacks characters too, and writes raw what it decoded so.
    if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
        stream.reconfigure(errors="replace")


def lenient_output() -> None:
    """``lenient`` for what a command prints, its libraries' prints included; at the beginning of each command."""
    lenient(sys.stdout)
    lenient(sys.stderr)


class Patient:
    """A stream that lacks no character, and whose reader may go (`| head`): what is written then goes nowhere."""

    def __init__(self, stream: TextIO) -> None:
        lenient(stream)
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # an unbuffered stream fails here
            self._stream.write(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            # Not only from here on: Python flushes the stream once more at exit, and would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def say(text: str, stream: TextIO) -> None:
    """Print a line for a person, if anybody reads."""
    print(visible(text), file=Patient(stream), flush=True)
