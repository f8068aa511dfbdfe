"""Validation of deserialised data against type hints.

A hint is a class, ``Any``, ``X | Y``, ``Literal``, ``list[X]``, ``tuple[X, ...]``, ``tuple[X, Y]``, ``dict[K, V]``, a
``TypedDict`` (extra keys are allowed), a dataclass (missing keys are allowed, extra ones are not), or
``Annotated[X, Rule]``.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import is_dataclass
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints, is_typeddict

_LARGEST = 2**63  # exceeds all numbers of steps and bytes, and all seeds


class Rule(NamedTuple):
    """A predicate on a value, false if it raises, and the expected values in words."""

    holds: Callable[[Any], object]
    expected: str


Count = Annotated[int, Rule(lambda value: value >= 0, "at least 0")]
Positive = Annotated[int, Rule(lambda value: value > 0, "above 0")]
Finite = Annotated[float, Rule(math.isfinite, "a finite number")]
_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "a text", dict: "a dictionary"}
_NAMES |= {list: "a list", tuple: "a tuple", type(None): "null"}


def fault(value: Any, hint: Any, where: str) -> str | None:
    """The first difference between ``value``, found at ``where``, and ``hint`` in words; None if there is none."""
    origin, args = get_origin(hint) or hint, get_args(hint)
    if origin is Any:
        return None
    if origin is Annotated:
        broken = (
            f"{where} must be {rule.expected}, got {_shown(value)}" for rule in args[1:] if not _obeys(value, rule)
        )
        return fault(value, args[0], where) or next(broken, None)
    if origin in (Union, types.UnionType):
        problems = [(alternative, fault(value, alternative, where)) for alternative in args]
        if any(problem is None for _, problem in problems):
            return None
        return next(problem for alternative, problem in problems if alternative is not type(None))
    if origin is Literal:
        return None if value in args else f"{where} must be one of {', '.join(map(str, args))}, got {_shown(value)}"
    plain = dict if is_typeddict(origin) or is_dataclass(origin) else origin
    if not _is_a(value, plain):
        return f"{where} must be {_NAMES.get(plain, plain.__name__)}, got {_shown(value)}"
    return next((problem for problem in _inside(value, origin, args, where) if problem is not None), None)


def _inside(value: Any, origin: Any, args: tuple[Any, ...], where: str) -> Iterable[str | None]:
    """The faults of the parts."""
    if is_typeddict(origin) or is_dataclass(origin):
        hints = get_type_hints(origin, include_extras=True)
        needed = frozenset() if is_dataclass(origin) else origin.__required_keys__
        if is_dataclass(origin):
            yield from (f"{where} holds {_shown(key)}, which is not known" for key in value if key not in hints)
        for key, hint in hints.items():
            if key in value:
                yield fault(value[key], hint, f"{where}.{key}")
            elif key in needed:
                yield f"{where} lacks {key}"
    elif origin is dict and args:
        for key, part in value.items():
            yield fault(key, args[0], f"a key of {where}") or fault(part, args[1], f"{where}.{key}")
    elif origin is tuple and args[-1:] != (Ellipsis,) and args:
        if len(value) != len(args):
            yield f"{where} must hold {len(args)} values, got {len(value)}"
        yield from (fault(part, hint, f"{where}[{i}]") for i, (part, hint) in enumerate(zip(value, args, strict=False)))
    elif origin in (list, tuple) and args:
        yield from (fault(part, args[0], f"{where}[{i}]") for i, part in enumerate(value))


def _is_a(value: Any, kind: Any) -> bool:
    if kind is float:
        return isinstance(value, float) or _is_a(value, int)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST
    return isinstance(value, kind)


def _obeys(value: Any, rule: Rule) -> bool:
    try:
        return bool(rule.holds(value))
    except Exception:  # any exception of the predicate
        return False


def _shown(value: Any) -> str:
    """A short, single-line representation of the value."""
    text, shape = f"a {type(value).__name__}", getattr(value, "shape", None)
    if isinstance(value, (str, int, float, type(None))):
        with suppress(ValueError):  # an integer beyond Python's limit of digits
            text = repr(value)
    elif shape is not None:
        text += f" of shape {list(shape)}"
    return text if len(text) <= 40 else f"{text[:40]}..."
