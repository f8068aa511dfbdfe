"""Float instructions, rounded to nearest, and conversions. Tensor cores' results are their addends."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from benchmarks.sass.common import COMPARE, Action, combine, split
from benchmarks.sass.disassembly import Instruction
from benchmarks.sass.operands import (
    HALF,
    MASK,
    Read,
    Unknown,
    immediate,
    integer,
    of_float,
    predicate,
    raw,
    real,
    set_register,
    signed,
    to_float,
)


def fsetp(it: Instruction) -> Action:
    compare = COMPARE[it.modifiers[0]]
    a, b = real(it.operands[2]), real(it.operands[3])
    return combine(it, lambda w: compare(a(w), b(w)))


def fset(it: Instruction) -> Action:
    """1.0 or 0.0: a comparison, combined with a predicate."""
    compare = next(COMPARE[name] for name in it.modifiers if name in COMPARE)
    put, a, b = set_register(it.operands[0]), real(it.operands[1]), real(it.operands[2])
    other = predicate(it.operands[3])
    if "BF" not in it.modifiers or "AND" not in it.modifiers:
        raise Unknown(f"{it.opcode} is not simulated")
    return lambda w: put(w, of_float(float(compare(a(w), b(w)) and other(w))))


def fsel(it: Instruction) -> Action:
    put = set_register(it.operands[0])
    a, b = real(it.operands[1]), real(it.operands[2])
    which = predicate(it.operands[3])
    return lambda w: put(w, of_float(a(w) if which(w) else b(w)))


def arithmetic(compute: Callable[..., float]) -> Callable[[Instruction], Action]:
    def build(it: Instruction) -> Action:
        _, values, read = split(it)
        put, parts = set_register(values[0]), [real(text) for text in values[1:]]
        extra = [predicate(text) for text in read]
        saturates = "SAT" in it.modifiers

        def run(w: Any) -> None:
            try:
                x = compute(*(part(w) for part in parts), *(one(w) for one in extra))
            except (OverflowError, ValueError):
                x = math.nan
            if saturates:
                x = min(max(x, 0.0), 1.0) if x == x else 0.0
            put(w, of_float(x))

        return run

    return build


def mufu(it: Instruction) -> Action:
    put, a = set_register(it.operands[0]), real(it.operands[1])

    def reciprocal(x: float) -> float:
        return math.copysign(math.inf, x) if x == 0 else 1 / x

    def exponential(x: float) -> float:
        return math.inf if x > 128 else 0.0 if x < -150 else 2.0**x if x == x else x

    def root(x: float) -> float:
        return math.sqrt(x) if x >= 0 else math.nan

    functions: dict[str, Callable[[float], float]] = {
        "RCP": reciprocal,
        "EX2": exponential,
        "LG2": lambda x: math.log2(x) if x > 0 else -math.inf if x == 0 else math.nan,
        "SQRT": root,
        "RSQ": lambda x: reciprocal(root(x)),
        "TANH": math.tanh,
        "SIN": math.sin,
        "COS": math.cos,
    }
    function = functions.get(it.modifiers[0])
    if function is None:
        raise Unknown(f"MUFU.{it.modifiers[0]}")
    return lambda w: put(w, of_float(function(a(w))))


def i2f(it: Instruction) -> Action:
    put, a = set_register(it.operands[0]), integer(it.operands[1])
    if {"F64", "F16", "U64", "S64", "U16", "S8", "U8"} & set(it.modifiers):
        raise Unknown(it.opcode)
    convert = (lambda x: x) if "U32" in it.modifiers else signed
    up = "RP" in it.modifiers

    def run(w: Any) -> None:
        x = convert(a(w))
        bits = of_float(float(x))
        if up and to_float(bits) < x:
            bits = bits + 1 if x > 0 else bits - 1
        put(w, bits)

    return run


def f2i(it: Instruction) -> Action:
    put, a = set_register(it.operands[0]), real(it.operands[1])
    if {"F64", "U64", "S64", "F16"} & set(it.modifiers):
        raise Unknown(it.opcode)
    rounding = next((name for name in ("TRUNC", "FLOOR", "CEIL") if name in it.modifiers), "")
    rounded: dict[str, Callable[[float], int]] = {"TRUNC": math.trunc, "FLOOR": math.floor, "CEIL": math.ceil}
    convert = rounded.get(rounding, round)
    least, most = (0, MASK) if "U32" in it.modifiers else (-(1 << 31), (1 << 31) - 1)

    def run(w: Any) -> None:
        x = a(w)
        result = 0 if x != x else most if x >= most else least if x <= least else convert(x)
        put(w, result & MASK)

    return run


def _brain(bits: int) -> int:
    """A float's bits as bfloat16, to nearest even."""
    if bits & 0x7FFFFFFF > 0x7F800000:
        return 0x7FFF
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 & 0xFFFF


def _narrow(modifiers: list[str]) -> Callable[[float], int]:
    if "BF16" in modifiers:
        return lambda x: _brain(of_float(x))
    if "F16" in modifiers:
        return lambda x: of_float(x, HALF)
    if "TF32" in modifiers:
        return lambda x: (of_float(x) + 0x1000) & 0xFFFFE000
    raise Unknown(f"a conversion to {modifiers}")


def f2fp(it: Instruction) -> Action:
    _, values, _ = split(it)
    put, narrow = set_register(values[0]), _narrow(it.modifiers)
    parts = [real(text) for text in values[1:]]
    if "PACK_AB" not in it.modifiers:
        return lambda w: put(w, narrow(parts[-1](w)))
    high, low = parts[:2]
    return lambda w: put(w, narrow(high(w)) << 16 | narrow(low(w)))


def f2f(it: Instruction) -> Action:
    put, a = set_register(it.operands[0]), it.operands[1]
    if it.modifiers[:2] == ["F32", "F16"]:
        bits = raw(a.split(".H")[0])
        upper = ".H1" in a
        return lambda w: put(w, of_float(to_float(bits(w) >> 16 if upper else bits(w), HALF)))
    narrow, x = _narrow(it.modifiers), real(a)
    return lambda w: put(w, narrow(x(w)))


def _halves(text: str, brain: bool) -> Callable[[Any], tuple[float, float]]:
    """Two floats of a packed operand."""
    found = immediate(text)
    body = text.replace(".reuse", "")
    negative, body = body.startswith("-"), body.lstrip("-").strip("|")
    plain, _, which = body.partition(".H")
    bits = (lambda w: found) if found is not None else raw(plain)

    def read(w: Any) -> tuple[float, float]:
        x = bits(w)
        if brain:
            low, high = to_float(x << 16 & MASK), to_float(x & 0xFFFF0000)
        else:
            low, high = to_float(x, HALF), to_float(x >> 16, HALF)
        if which.startswith("0"):
            high = low
        elif which.startswith("1_H1"):
            low = high
        return (-low, -high) if negative else (low, high)

    return read


def _both(low: Read, high: Read) -> Callable[[Any], tuple[float, float]]:
    return lambda w: (low(w), high(w))


def packed(it: Instruction) -> Action:
    """HFMA2, HADD2, HMUL2; a constant is written as its two halves, the upper first."""
    _, values, read = split(it)
    put = set_register(values[0])
    brain = any("BF16" in name for name in it.modifiers)
    texts = values[1:]
    wanted = 3 if it.name == "HFMA2" else 2
    operands: list[Callable[[Any], tuple[float, float]]] = []
    i = 0
    while i < len(texts):
        try:
            operands.append(_halves(texts[i], brain))
            i += 1
        except Unknown:
            if i + 1 >= len(texts):
                raise
            operands.append(_both(real(texts[i + 1]), real(texts[i])))
            i += 2
    if len(operands) != wanted or read:
        raise Unknown(it.text)
    narrow = _narrow(["BF16" if brain else "F16"])

    def run(w: Any) -> None:
        found = [operand(w) for operand in operands]
        both = []
        for part in range(2):
            x = [one[part] for one in found]
            y = x[0] * x[1] + x[2] if wanted == 3 else x[0] * x[1] if it.name == "HMUL2" else x[0] + x[1]
            both.append(y + 0.0 if y == 0 and wanted == 3 else y)
        if "F32" in it.modifiers:
            put(w, of_float(both[0]))
        else:
            put(w, narrow(both[0]) | narrow(both[1]) << 16)

    return run


def hmma(it: Instruction) -> Action:
    """The sums stay what they were: weights and states are zero."""
    count = 4 if "F32" in it.modifiers else 2
    puts = [set_register(it.operands[0], i) for i in range(count)]
    source = it.operands[3].replace(".reuse", "")
    reads = [raw(source, i) for i in range(count)]

    def run(w: Any) -> None:
        for put, read in zip(puts, reads, strict=True):
            put(w, read(w))

    return run
