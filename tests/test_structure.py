"""What was read from a file, compared with type hints."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

import pytest

from prnn.config.structure import Count, Finite, Rule, fault


@dataclass
class Point:
    x: Count = 0
    y: float | None = None


class Base(TypedDict):
    name: str


class Thing(Base, total=False):
    points: list[Point]
    kind: Literal["a", "b"]


class Fails(TypedDict):
    raises: Annotated[Any, Rule(lambda value: value.nothing, "something")]


FITS: list[tuple[Any, Any]] = [
    ({"name": "n"}, Thing), ({"name": "n", "points": [{"x": 1}, {}], "kind": "b", "more": 1}, Thing),
    (1, float), (math.nan, float), (None, int | None), ((1, "a"), tuple[int, str]), ((1, 2, 3), tuple[int, ...]),
    ({1: [2.0]}, dict[int, list[Finite]]), (object(), Any),
]  # fmt: skip
FAULTS: list[tuple[Any, Any, str]] = [
    ([], Thing, "it must be a dictionary, got a list"),
    ({}, Thing, "it lacks name"),
    ({"name": 7}, Thing, "it.name must be a text, got 7"),
    ({"name": "n", "points": [{}, {"x": -1}]}, Thing, "it.points[1].x must be at least 0, got -1"),
    ({"name": "n", "points": [{"z": 1}]}, Thing, "it.points[0] holds 'z', which is not known"),
    ({"name": "n", "kind": "c"}, Thing, "it.kind must be one of a, b, got 'c'"),
    (True, int, "it must be an integer, got True"),
    (10**30, int, "it must be an integer, got 1000000000000000000000000000000"),
    ("1", int | None, "it must be an integer, got '1'"),
    (math.inf, Finite, "it must be a finite number, got inf"),
    ({"a": 1}, dict[int, int], "a key of it must be an integer, got 'a'"),
    ((1,), tuple[int, str], "it must hold 2 values, got 1"),
    ({"raises": 1}, Fails, "it.raises must be something, got 1"),
    ("x" * 100, int, f"it must be an integer, got '{'x' * 39}..."),
]


@pytest.mark.parametrize(("value", "hint"), FITS)
def test_what_fits_has_no_fault(value: Any, hint: Any) -> None:
    assert fault(value, hint, "it") is None


@pytest.mark.parametrize(("value", "hint", "said"), FAULTS)
def test_the_first_fault_is_told_with_its_place(value: Any, hint: Any, said: str) -> None:
    assert fault(value, hint, "it") == said


def test_an_integer_of_too_many_digits_to_be_shown_is_a_fault() -> None:
    assert fault(10**5000, int, "it") == "it must be an integer, got a int"
