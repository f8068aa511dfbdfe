"""What the integer and float instructions share: operands in their order, carries, comparisons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.sass.disassembly import Instruction
from benchmarks.sass.operands import is_predicate, predicate, set_predicate

Action = Callable[[Any], "int | None"]


def split(it: Instruction) -> tuple[list[str], list[str], list[str]]:
    """Predicates written after or before the destination, values (the first is the destination), predicates read."""
    operands = list(it.operands)
    written: list[str] = []
    values: list[str] = []
    read: list[str] = []
    while operands and is_predicate(operands[0]):
        written.append(operands.pop(0))
    if operands:
        values.append(operands.pop(0))
    while operands and is_predicate(operands[0]) and not values[1:]:
        written.append(operands.pop(0))
    for operand in operands:
        (read if is_predicate(operand) else values).append(operand)
    return written, values, read


def carry_in(read: list[str]) -> Callable[[Any], int]:
    inputs = [predicate(text) for text in read]
    return lambda w: sum(bool(one(w)) for one in inputs)


COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "LT": lambda x, y: x < y,
    "LE": lambda x, y: x <= y,
    "GT": lambda x, y: x > y,
    "GE": lambda x, y: x >= y,
    "EQ": lambda x, y: x == y,
    "NE": lambda x, y: x != y,
    "LTU": lambda x, y: not x >= y,
    "LEU": lambda x, y: not x > y,
    "GTU": lambda x, y: not x <= y,
    "GEU": lambda x, y: not x < y,
    "EQU": lambda x, y: x == y or x != x or y != y,
    "NEU": lambda x, y: x != y,
    "NUM": lambda x, y: x == x and y == y,
    "NAN": lambda x, y: x != x or y != y,
}


def combine(it: Instruction, low: Callable[[Any], bool]) -> Action:
    """Writes a comparison and its complement, combined with the predicate read."""
    outputs = [set_predicate(text) for text in it.operands[:2]]
    other = predicate(it.operands[4]) if len(it.operands) > 4 else (lambda w: True)
    join = next((name for name in ("AND", "OR", "XOR") if name in it.modifiers), "AND")

    def run(w: Any) -> None:
        result, also = bool(low(w)), bool(other(w))
        for put, x in zip(outputs, (result, not result), strict=True):
            put(w, x and also if join == "AND" else x or also if join == "OR" else x != also)

    return run
