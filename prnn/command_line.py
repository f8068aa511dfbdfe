"""How an override and a command line are written, so that what is printed can be pasted.

Two readers take quotes away, one after the other: the shell, then Hydra's grammar. What the second has left is
OmegaConf's, for which ``${`` begins an interpolation.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf

from prnn.config import literal
from prnn.errors import UserError


def parsed(override: str) -> Override:
    """An override as Hydra's grammar reads it. Raises Hydra's ``OverrideParseException``."""
    try:
        return OverridesParser.create().parse_overrides([override])[0]
    except ValueError:  # of a number of more digits than Python reads
        raise unreadable(override if len(override) < 200 else f"{override[:200]}...") from None


def text(override: Override) -> str | None:
    """The one text an override gives, its interpolations resolved; None for null.

    Raises ``UserError`` where it gives several, or a list, and OmegaConf's errors for an interpolation.
    """
    value = override.value()
    if override.is_sweep_override() or isinstance(value, list | dict):
        raise several(override.input_line or "")
    resolved = OmegaConf.create({"value": value})["value"]
    return None if resolved is None else str(resolved)


def unreadable(override: str) -> UserError:
    """An override that Hydra's grammar refuses."""
    key, equals, _ = override.partition("=")
    if not equals or not re.fullmatch(r"[+~]{0,2}[\w@/.$-]+", key):
        return UserError(f"{override!r} cannot be read: write it as KEY=VALUE, in quotes if need be.")
    return UserError(f"{override!r} cannot be read: {_in_quotes(override)}.")


def several(override: str) -> UserError:
    """An override that gives several values where one is wanted."""
    return UserError(f"{override!r} gives several values: {_in_quotes(override)}; --multirun starts a job for each.")


def _in_quotes(override: str) -> str:
    key, _, value = override.partition("=")
    return f"a text with such characters stands in quotes, and those in the shell's: {shell(f'{key}={quoted(value)}')}"


def override(key: str, value: str) -> str:
    """``KEY=VALUE`` that sets ``key`` to the text ``value``, in Hydra's quotes where it needs them."""
    text = literal(value)
    bare = f"{key}={text}"
    return bare if _reads_as(bare, text) else f"{key}={quoted(text)}"


def mended(override: str) -> str:
    """An override that was noted for a run. Earlier versions noted values with their interpolations resolved.

    One that cannot be read any more, or as several values, is then a text that needs quotes.
    """
    try:
        if not parsed(override).is_sweep_override():
            return override
    except HydraException:
        pass
    key, _, value = override.partition("=")
    return f"{key}={quoted(literal(value))}"


def quoted(text: str) -> str:
    """A text in Hydra's quotes."""
    return QuotedString(text, Quote.double).with_quotes()


def _reads_as(override: str, text: str) -> bool:
    try:
        return parsed(override).value() == text
    except HydraException:
        return False


def shell(*words: str) -> str:
    """A command line that a shell takes apart into ``words`` again.

    What a terminal cannot show, or would obey, is written as the bytes it stands for, in the quotes that bash, zsh and
    POSIX's shells of 2024 read: ``$'\\033'``.
    """
    matches = (re.fullmatch(r"([\w.]+=)?(.*)", word, re.ASCII | re.DOTALL) for word in words)
    return " ".join((match[1] or "") + _in_shell_quotes(match[2]) for match in matches if match)


def _in_shell_quotes(word: str) -> str:
    try:
        word.encode(sys.stderr.encoding or "utf-8")
        shown = word.isprintable()
    except UnicodeEncodeError:
        shown = False
    if shown:
        return shlex.quote(word)
    plain = set(range(0x20, 0x7F)) - set(b"'\\")
    return "$'" + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in os.fsencode(word)) + "'"


def program(arguments: Sequence[str]) -> list[str]:
    """The words before ``arguments``, those of this process, that started it, such as ``python -m prnn.train``."""
    before = len(sys.orig_argv) - len(arguments)
    if sys.orig_argv[before:] != list(arguments):  # called by another program, which has its own arguments
        return ["prnn-train"]
    words = sys.orig_argv[:before]
    script = Path(words[-1])
    if len(words) == 2 and (on_path := shutil.which(script.name)) and script.exists() and script.samefile(on_path):
        return [script.name]  # an installed script, which PATH leads to; before it stands its interpreter
    if len(words) == 2 and _is_run_by(script, words[0]):
        return words[1:]
    return words


def _is_run_by(script: Path, interpreter: str) -> bool:
    """Whether a script names the interpreter by itself, and its path alone is a command."""
    try:
        with script.open("rb") as file:
            return os.access(script, os.X_OK) and file.readline(4096).rstrip() == b"#!" + os.fsencode(interpreter)
    except OSError:
        return False
