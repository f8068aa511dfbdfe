"""The settings by dotted key, and parts of error messages about them."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from prnn.config.schema import TrainConfig
from prnn.errors import UserError


def known_keys(task_schemas: tuple[type, type] | None = None) -> dict[str, Any]:
    """Dotted key -> type of every setting; those of ``task`` and ``data`` where their schemas are given."""
    return dict(_leaves(TrainConfig, "", dict(zip(("task", "data"), task_schemas or (), strict=False))))


def _leaves(schema: type, prefix: str, sections: Mapping[str, type]) -> Iterator[tuple[str, Any]]:
    """(dotted key, type) of every setting in a dataclass; ``sections`` has the types of ``task`` and ``data``."""
    hints = typing.get_type_hints(schema)
    for name in (each.name for each in fields(schema)):
        hint = hints[name]
        kind = sections.get(name, hint) if not prefix else hint
        if is_dataclass(kind):
            yield from _leaves(typing.cast(type, kind), f"{prefix}{name}.", sections)
        else:
            yield prefix + name, kind


def key_value(argument: str, known: Collection[str], command: str, example: str) -> tuple[str, str]:
    """KEY and VALUE of an argument of ``command``; ``UserError`` for another form or an unknown key."""
    key, equals, value = argument.partition("=")
    if key.startswith("-"):
        raise UserError(f"{argument!r}: settings are written without dashes, as KEY=VALUE, such as {example}.")
    if not equals:
        raise UserError(f"{argument!r} is not KEY=VALUE, such as {example}; --help lists the settings.")
    if key not in known:
        raise UserError(f"{key} is not a setting of {command}{suggest(key, known)}")
    return key, value


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` (did you mean lstm?)`` for the known name nearest to a wrong one; "" where none is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def suggest(key: str, known: Iterable[str]) -> str:
    """``; did you mean model.hidden_size?`` for the known dotted key nearest to a wrong one, else ``.``"""
    match = nearest(key, known)
    return f"; did you mean {match}?" if match else "."


def nearest(key: str, known: Iterable[str]) -> str | None:
    """The known dotted key, or section, nearest to a wrong one; None where none is near."""
    keys = {*known, *(name.rpartition(".")[0] for name in known if "." in name)}  # settings and their sections
    section, _, name = key.rpartition(".")
    close = difflib.get_close_matches(name, {key.rpartition(".")[2] for key in keys}, n=1, cutoff=0.6)
    matches = sorted((key for key in keys if close and key.rpartition(".")[2] == close[0]), key=len)
    matches.sort(key=lambda key: key.rpartition(".")[0] != section)  # prefer the same section
    return matches[0] if matches else None


def written(value: Any) -> str:
    """A value as it is written on the command line: null, true, 0.1, [0.9,0.999]."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(written, value))}]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def expected(kind: Any) -> str:
    """A type in words, for messages."""
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return " or ".join(expected(alternative) for alternative in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return f"a list of {len(typing.get_args(kind))} values, each {expected(typing.get_args(kind)[0])}"
    if typing.get_origin(kind) is list:
        return f"a list, each value {expected(typing.get_args(kind)[0])}"
    return words.get(kind, "of another type")
