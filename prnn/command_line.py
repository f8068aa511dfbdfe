"""Quoting of overrides and command lines, so that what is printed can be pasted.

Quotes are removed twice: by the shell, then by Hydra's grammar. OmegaConf reads the rest, where ``${`` begins an
interpolation.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf

from prnn.config import literal
from prnn.errors import UserError


def parsed(override: str) -> Override:
    """Parse an override with Hydra's grammar. Raises Hydra's ``OverrideParseException``."""
    try:
        return OverridesParser.create().parse_overrides([override])[0]
    except ValueError:  # a number with more digits than Python parses
        raise unreadable(override if len(override) < 200 else f"{override[:200]}...") from None


def text(override: Override) -> str | None:
    """The single string value of an override, with interpolations resolved; None for null.

    Raises ``UserError`` for several values or a list, and OmegaConf's errors for an interpolation.
    """
    value = override.value()
    if override.is_sweep_override() or isinstance(value, list | dict):
        raise several(override.input_line or "")
    resolved = OmegaConf.create({"value": value})["value"]
    return None if resolved is None else str(resolved)


def without_sweeps(overrides: Iterable[str]) -> list[str]:
    """Those of the overrides that give one value."""
    return [override for override in overrides if not parsed(override).is_sweep_override()]


def unreadable(override: str) -> UserError:
    """The error for an override that Hydra's grammar rejects."""
    key, equals, _ = override.partition("=")
    if not equals or not re.fullmatch(r"[+~]{0,2}[\w@/.$-]+", key):
        return UserError(f"{override!r} cannot be parsed: write it as KEY=VALUE, quoted if necessary.")
    return UserError(f"{override!r} cannot be parsed: {_quoting_hint(override)}.")


def several(override: str) -> UserError:
    """The error for an override with several values where one is expected."""
    return UserError(f"{override!r} gives several values: {_quoting_hint(override)}; --multirun starts a job for each.")


def _quoting_hint(override: str) -> str:
    key, _, value = override.partition("=")
    return f"a string with such characters must be quoted, for Hydra and the shell: {shell(f'{key}={quoted(value)}')}"


def override(key: str, value: str) -> str:
    """``KEY=VALUE`` that sets ``key`` to the string ``value``, in Hydra's quotes where it needs them."""
    text = literal(value)
    bare = f"{key}={text}"
    return bare if _reads_as(bare, text) else f"{key}={quoted(text)}"


def mended(override: str) -> str:
    """An override as recorded for a run. Earlier versions recorded values with their interpolations resolved.

    One that no longer parses, or parses as several values, is then a string that needs quotes.
    """
    try:
        if not parsed(override).is_sweep_override():
            return override
    except HydraException:
        pass
    key, _, value = override.partition("=")
    return f"{key}={quoted(literal(value))}"


def quoted(text: str) -> str:
    """A string in Hydra's quotes."""
    return QuotedString(text, Quote.double).with_quotes()


def _reads_as(override: str, text: str) -> bool:
    try:
        return parsed(override).value() == text
    except HydraException:
        return False


def shell(*words: str) -> str:
    """The command line that a shell splits into ``words``.

    Characters that a terminal cannot print, or would interpret, are escaped as bytes in ``$'\\033'`` quotes, which
    bash, zsh and shells of POSIX 2024 read.
    """
    matches = (re.fullmatch(r"([\w.]+=)?(.*)", word, re.ASCII | re.DOTALL) for word in words)
    return " ".join((match[1] or "") + _shell_quoted(match[2]) for match in matches if match)


def _shell_quoted(word: str) -> str:
    try:
        word.encode(sys.stderr.encoding or "utf-8")
        printable = word.isprintable()
    except UnicodeEncodeError:
        printable = False
    if printable:
        return shlex.quote(word)
    plain = set(range(0x20, 0x7F)) - set(b"'\\")
    return "$'" + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in os.fsencode(word)) + "'"


def program(arguments: Sequence[str]) -> list[str]:
    """The words of this process's command line before its ``arguments``, such as ``python -m prnn.train``."""
    before = len(sys.orig_argv) - len(arguments)
    if sys.orig_argv[before:] != list(arguments):  # called from another program with its own arguments
        return ["prnn-train"]
    words = sys.orig_argv[:before]
    script = Path(words[-1])
    if len(words) == 2 and (command := shutil.which(script.name)) and script.exists() and script.samefile(command):
        return [script.name]  # an installed script on PATH; the word before it is its interpreter
    if len(words) == 2 and _has_shebang(script, words[0]):
        return words[1:]
    return words


def _has_shebang(script: Path, interpreter: str) -> bool:
    """Whether a script is executable and its first line names ``interpreter``, so that its path is a command."""
    try:
        with script.open("rb") as file:
            return os.access(script, os.X_OK) and file.readline(4096).rstrip() == b"#!" + os.fsencode(interpreter)
    except OSError:
        return False
