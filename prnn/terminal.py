"""How text reaches a terminal: characters that would steer it are shown as escapes, those it lacks are replaced."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any, TextIO

from prnn.errors import UserError

# Control characters but for newline and tab, C1 and DEL among them; what sets the direction of writing; and halves of
# characters, which no encoding can write: undecodable bytes of a file name are such.
_UNSEEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """``text`` with characters that a terminal or a browser obeys, instead of showing them, written out: ␛, \\u202e."""
    return _UNSEEN.sub(_written_out, text)


def _written_out(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else f"\\u{code:04x}"


def shown(text: str, stream: TextIO) -> str:
    """``text`` as it is written to ``stream``, where it is data: visible on a terminal, as it is into a pipe."""
    return visible(text) if stream.isatty() else text


def wrapped(text: str, stream: TextIO) -> str:
    """``text`` with its long lines wrapped between words, where ``stream`` is a terminal."""
    if not stream.isatty():
        return text
    width = max(shutil.get_terminal_size().columns, 20)
    lines = (
        textwrap.wrap(line, width, replace_whitespace=False, drop_whitespace=True, break_on_hyphens=False) or [""]
        if len(line) > width
        else [line]
        for line in text.split("\n")
    )
    return "\n".join(line for each in lines for line in each)


class Wrapping:
    """Wraps between words what is written piece by piece to a terminal, a word a piece with its space before it."""

    def __init__(self, stream: TextIO) -> None:
        self._width = max(shutil.get_terminal_size().columns, 20) if stream.isatty() else None
        self._column = 0

    def __call__(self, piece: str) -> str:
        """``piece``, on a new line where it does not fit on this one."""
        _, newline, tail = piece.rpartition("\n")
        if self._width is None or newline or self._column + len(piece) <= self._width:
            self._column = len(tail) if newline else self._column + len(piece)
            return piece
        if not piece.startswith(" "):  # a mark after a word, which stays with it
            self._column += len(piece)
            return piece
        self._column = len(piece) - 1
        return "\n" + piece[1:]


def lenient(stream: TextIO) -> None:
    """Let ``stream`` write ``?`` for a character that its encoding lacks, instead of raising ``UnicodeEncodeError``."""
    # surrogateescape is Python's choice in the C locale: it lacks characters too, and writes raw what it decoded so.
    if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
        stream.reconfigure(errors="replace")


def prepare_streams() -> None:
    """At the beginning of each command: ``lenient`` for what it prints, its libraries' prints included, and a stream
    that its caller has closed (`2>&-`) is one that takes everything.
    """
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:  # else a file that is opened later gets the number
        os.set_inheritable(handle, True)
    os.close(handle)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115  (as long as the process)
    lenient(sys.stdout)
    lenient(sys.stderr)


def finish_streams() -> None:
    """At the end of a command: what cannot be written is dropped, or Python would change the exit status for it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            _drop(stream)


def _drop(stream: TextIO) -> None:
    """Let what is written to ``stream`` go nowhere from now on, what waits in its buffer included."""
    handle = os.open(os.devnull, os.O_WRONLY)
    os.dup2(handle, stream.fileno())
    os.close(handle)


class OutputClosed(Exception):
    """The pipe that standard output goes to is closed, as by `| head`, which is no error."""


class Patient:
    """A stream that lacks no character, for what training does not depend on: lines that a full disk does not take are
    lost, and so are all of them once their reader has gone (`| head`).
    """

    def __init__(self, stream: TextIO) -> None:
        lenient(stream)
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # an unbuffered stream, or one with a full buffer, fails here
            self._stream.write(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            _drop(self._stream)
        except OSError:  # there may be space again
            pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def say(text: str, stream: TextIO) -> None:
    """Print a line for a person, if anybody reads."""
    print(visible(text), file=Patient(stream), flush=True)


def put(text: str, end: str = "\n") -> None:
    """Print output of a command.

    Raises ``UserError`` if it cannot be written, and ``OutputClosed`` if its pipe is closed.
    """
    try:
        print(shown(text, sys.stdout), end=end, flush=True)
    except OSError as error:
        _drop(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise OutputClosed from None
        raise UserError(
            f"the output cannot be written ({error.strerror}): free space, or send it elsewhere."
        ) from error
