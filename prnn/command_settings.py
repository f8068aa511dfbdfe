"""Settings of the commands of a single process, as KEY=VALUE: a dataclass whose fields carry their meaning.

They are not composed by Hydra, which would make a run directory for each call and read a prompt as its grammar.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, field, fields
from typing import Any, TypeVar

from prnn.config import expected, key_value, written
from prnn.errors import UserError

T = TypeVar("T")

_KINDS = {"int": int, "float": float, "bool": bool}
_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_ESCAPES = {"n": "\n", "t": "\t", "\\": "\\"}


def setting(default: Any, meaning: str, choices: Iterable[str] = (), escapes: bool = False) -> Any:
    """A field of a command's settings.

    ``choices`` are the values of a text that has a few; in a text with ``escapes``, ``\\n`` is a new line and ``\\t`` a
    tab. A list (``default=[]``) is a setting that may be given several times.
    """
    metadata = {"meaning": meaning, "choices": tuple(choices), "escapes": escapes}
    if isinstance(default, list):
        return field(default_factory=list, metadata=metadata)
    return field(default=default, metadata=metadata)


def parse(settings: type[T], arguments: Iterable[str], command: str, example: str) -> T:
    """``settings`` from KEY=VALUE arguments; ``example`` is one of them, for messages.

    Raises ``UserError`` for another form, an unknown key, a key given twice, and a value of another type.
    """
    known = {each.name: each for each in fields(settings)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for argument in arguments:
        key, text = key_value(argument, known, command, example)
        kind = str(known[key].type)
        if kind == "list[str]":
            values.setdefault(key, []).append(_value(key, "str", text, known[key].metadata))
            continue
        if key in values:
            repeatable = [name for name, each in known.items() if str(each.type) == "list[str]"]
            raise UserError(f"{key} is given twice: " + _once(repeatable))
        values[key] = _value(key, kind, text, known[key].metadata)
    return settings(**values)


def changed(settings: Any, names: Iterable[str]) -> str | None:
    """The first of the settings ``names`` that differs from its default, as KEY=VALUE; None where none does."""
    known = {each.name: each for each in fields(settings)}
    for name in names:
        value = getattr(settings, name)
        if value != known[name].default:
            return f"{name}={written(value)}"
    return None


def help_text(document: str | None, settings: Any, note: str = "") -> str:
    """The text of ``--help``: a module's docstring, every setting with its default in brackets, and a note."""
    known = fields(settings)
    width = max(len(each.name) for each in known) + 2
    lines = [(document or "").strip(), "", "Settings (KEY=VALUE):"]
    for each in known:
        default = "" if each.default in ("", None, MISSING) else f" [{str(each.default).lower()}]"
        text = each.metadata["meaning"] + default
        lines += textwrap.wrap(text, 118, initial_indent=f"  {each.name:<{width}}", subsequent_indent=" " * (width + 2))
    return "\n".join([*lines, *(["", note] if note else [])])


def _once(repeatable: list[str]) -> str:
    if repeatable:
        return f"only {' and '.join(repeatable)} may be given more than once."
    return "give one of them."


def _value(key: str, kind: str, text: str, metadata: Mapping[str, Any]) -> Any:
    """The value of a setting's type that ``text`` stands for."""
    base, _, none = kind.partition(" | ")
    if base == "str":  # null too is a text
        choices = metadata["choices"]
        if choices and text not in choices:
            raise UserError(f"{key}={text} must be {_either(choices)}.")
        if metadata["escapes"]:
            return re.sub(r"\\([nt\\])", lambda match: _ESCAPES[match[1]], text)
        return text
    if none and text == "null":
        return None
    value = _BOOLEANS.get(text.lower()) if base == "bool" else _number(base, text)
    if value is None:
        raise UserError(f"{key}={text} must be {expected(_KINDS[base])}{' or null' if none else ''}.")
    return value


def _number(kind: str, text: str) -> float | int | None:
    """An integer may be written as 1e3, too."""
    try:
        if kind == "float" or not re.fullmatch(r"[+-]?\d+", text):
            value = float(text)
            return value if kind == "float" else int(value) if value.is_integer() else None
        return int(text)
    except (ValueError, OverflowError):
        return None


def _either(choices: tuple[str, ...]) -> str:
    return " or ".join(choices) if len(choices) < 3 else f"one of {', '.join(choices)}"
