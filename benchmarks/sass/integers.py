"""Integer instructions and predicates, which are exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.sass.common import COMPARE, Action, carry_in, combine, split
from benchmarks.sass.disassembly import Instruction
from benchmarks.sass.operands import (
    MASK,
    addend,
    immediate,
    integer,
    pair,
    predicate,
    set_predicate,
    set_register,
    signed,
)

WIDE = 0xFFFFFFFFFFFFFFFF


def iadd3(it: Instruction) -> Action:
    written, values, read = split(it)
    put, carries = set_register(values[0]), [set_predicate(text) for text in written]
    parts = [addend(text) for text in values[1:]]
    if not carries and not read:
        a, b = parts[:2]
        c = parts[2] if len(parts) > 2 else (lambda w: 0)
        return lambda w: put(w, a(w) + b(w) + c(w) & MASK)
    carry = carry_in(read) if "X" in it.modifiers else (lambda w: 0)

    def run(w: Any) -> None:
        total = sum(part(w) for part in parts) + carry(w)
        for number, one in enumerate(carries):
            one(w, total >> 32 > number)
        put(w, total & MASK)

    return run


def imad(it: Instruction) -> Action:
    written, values, read = split(it)
    put = set_register(values[0])
    modifiers = it.modifiers
    unsigned = "U32" in modifiers
    a, b = integer(values[1]), integer(values[2])
    if "WIDE" in modifiers or "HI" in modifiers:
        c = pair(values[3]) if values[3].lstrip("-~") not in ("RZ", "URZ") else (lambda w: 0)
        carries = [set_predicate(text) for text in written]
        carry = carry_in(read) if "X" in modifiers else (lambda w: 0)
        if "HI" in modifiers:

            def high(w: Any) -> None:
                x, y = a(w), b(w)
                if not unsigned:
                    x, y = signed(x), signed(y)
                put(w, (x * y + c(w) >> 32) & MASK)

            return high
        put_high = set_register(values[0], 1)

        def wide(w: Any) -> None:
            x, y = a(w), b(w)
            if not unsigned:
                x, y = signed(x), signed(y)
            total = (x * y & WIDE) + (c(w) & WIDE) + carry(w)
            for one in carries:
                one(w, total > WIDE)
            put(w, total & MASK)
            put_high(w, total >> 32 & MASK)

        return wide
    if "X" in modifiers or written:
        c = addend(values[3])
        carry, carries = carry_in(read), [set_predicate(text) for text in written]

        def extended(w: Any) -> None:
            total = (a(w) * b(w) & MASK) + c(w) + carry(w)
            for one in carries:
                one(w, total > MASK)
            put(w, total & MASK)

        return extended
    c = integer(values[3])
    if values[1] in ("RZ", "URZ") or values[2] in ("RZ", "URZ"):
        return lambda w: put(w, c(w))
    if values[3] in ("RZ", "URZ"):
        return lambda w: put(w, a(w) * b(w) & MASK)
    return lambda w: put(w, a(w) * b(w) + c(w) & MASK)


def lea(it: Instruction) -> Action:
    written, values, read = split(it)
    put, carries = set_register(values[0]), [set_predicate(text) for text in written]
    carry = carry_in(read) if "X" in it.modifiers else (lambda w: 0)
    shift = integer(values[-1])
    a = integer(values[1])
    high_part = "HI" in it.modifiers
    extend = "SX32" in it.modifiers
    b = addend(values[2])
    c = integer(values[3]) if high_part and not extend and len(values) > 4 else None

    def run(w: Any) -> None:
        s = shift(w) & 31
        if not high_part:
            left = a(w) << s & MASK
        elif extend:
            left = signed(a(w)) << s >> 32 & MASK
        else:
            left = ((c(w) if c else 0) << 32 | a(w)) << s >> 32 & MASK
        total = left + b(w) + carry(w)
        for one in carries:
            one(w, total > MASK)
        put(w, total & MASK)

    return run


def lop3(it: Instruction) -> Action:
    written, values, read = split(it)
    put, outputs = set_register(values[0]), [set_predicate(text) for text in written]
    a, b, c = (integer(text) for text in values[1:4])
    table = immediate(values[4])
    assert table is not None
    also = predicate(read[-1]) if read else (lambda w: False)
    plain = {0xC0: lambda w: a(w) & b(w), 0x3C: lambda w: a(w) ^ b(w), 0xFC: lambda w: a(w) | b(w)}.get(table)

    def general(w: Any) -> int:
        x, y, z = a(w), b(w), c(w)
        nx, ny, nz = x ^ MASK, y ^ MASK, z ^ MASK
        result = 0
        for bit in range(8):
            if table >> bit & 1:
                result |= (x if bit & 4 else nx) & (y if bit & 2 else ny) & (z if bit & 1 else nz)
        return result

    compute = plain or general
    if not outputs:
        return lambda w: put(w, compute(w))

    def run(w: Any) -> None:
        result = compute(w)
        put(w, result)
        for one in outputs:
            one(w, result != 0 or also(w))

    return run


def plop3(it: Instruction) -> Action:
    outputs = [set_predicate(text) for text in it.operands[:2]]
    a, b, c = (predicate(text) for text in it.operands[2:5])
    tables = [immediate(text) or 0 for text in it.operands[5:7]]

    def run(w: Any) -> None:
        at = bool(a(w)) << 2 | bool(b(w)) << 1 | bool(c(w))
        for put, table in zip(outputs, tables, strict=True):
            put(w, bool(table >> at & 1))

    return run


def isetp(it: Instruction) -> Action:
    name = it.modifiers[0]
    compare = COMPARE[name]
    a, b = integer(it.operands[2]), integer(it.operands[3])
    convert = (lambda x: x) if "U32" in it.modifiers else signed
    if "EX" not in it.modifiers:
        return combine(it, lambda w: compare(convert(a(w)), convert(b(w))))
    low = predicate(it.operands[5])

    def extended(w: Any) -> bool:
        x, y = convert(a(w)), convert(b(w))
        if name == "NE":
            return x != y or low(w)
        return low(w) if x == y else name != "EQ" and compare(x, y)

    return combine(it, extended)


def shf(it: Instruction) -> Action:
    _, values, _ = split(it)
    put, low, shift, high = set_register(values[0]), integer(values[1]), integer(values[2]), integer(values[3])
    modifiers = it.modifiers
    upper, arithmetic, wraps = "HI" in modifiers, bool({"S32", "S64"} & set(modifiers)), "W" in modifiers
    most = 64 if {"U64", "S64"} & set(modifiers) else 32
    left = modifiers[0] == "L"

    def run(w: Any) -> None:
        s = shift(w)
        s = s % most if wraps else min(s, most)
        value = high(w) << 32 | low(w)
        if left:
            value = value << s & WIDE
        else:
            if arithmetic and value >> 63:
                value -= 1 << 64
            value >>= s
        put(w, (value >> 32 if upper else value) & MASK)

    return run


def uniform_shift(it: Instruction) -> Action:
    """SHL, SHR of older code."""
    _, values, _ = split(it)
    put, a, s = set_register(values[0]), integer(values[1]), integer(values[2])
    if it.name.endswith("SHL"):
        return lambda w: put(w, a(w) << min(s(w), 32) & MASK)
    if "U32" in it.modifiers:
        return lambda w: put(w, a(w) >> min(s(w), 32))
    return lambda w: put(w, signed(a(w)) >> min(s(w), 31) & MASK)


def prmt(it: Instruction) -> Action:
    _, values, _ = split(it)
    put, a, select, b = set_register(values[0]), integer(values[1]), integer(values[2]), integer(values[3])

    def run(w: Any) -> None:
        source, how, result = b(w) << 32 | a(w), select(w), 0
        for byte in range(4):
            which = how >> 4 * byte & 15
            value = source >> 8 * (which & 7) & 255
            if which & 8:
                value = 255 if value & 128 else 0
            result |= value << 8 * byte
        put(w, result)

    return run


def sel(it: Instruction) -> Action:
    put = set_register(it.operands[0])
    a, b = integer(it.operands[1]), integer(it.operands[2])
    which = predicate(it.operands[3])
    return lambda w: put(w, a(w) if which(w) else b(w))


def mov(it: Instruction) -> Action:
    put, value = set_register(it.operands[0]), integer(it.operands[1])
    if "64" in it.modifiers:
        return _two(it)
    return lambda w: put(w, value(w))


def _two(it: Instruction) -> Action:
    low, high, value = set_register(it.operands[0]), set_register(it.operands[0], 1), pair(it.operands[1])

    def run(w: Any) -> None:
        x = value(w)
        low(w, x & MASK)
        high(w, x >> 32 & MASK)

    return run


def minmax(it: Instruction) -> Action:
    _, values, read = split(it)
    put, parts, least = set_register(values[0]), [integer(text) for text in values[1:]], predicate(read[-1])
    convert = (lambda x: x) if "U32" in it.modifiers else signed
    adds = "ADD" in it.name

    def run(w: Any) -> None:
        found = [part(w) for part in parts]
        if adds:
            found = [found[0] + found[1] & MASK, *found[2:]]
        chosen = (min if least(w) else max)(map(convert, found))
        put(w, chosen & MASK)

    return run


def r2p(it: Instruction) -> Action:
    value, mask = integer(it.operands[1]), integer(it.operands[2])

    def run(w: Any) -> None:
        x, m = value(w), mask(w)
        for n in range(7):
            if m >> n & 1:
                w.p[n] = bool(x >> n & 1)

    return run


def p2r(it: Instruction) -> Action:
    put, mask = set_register(it.operands[0]), integer(it.operands[-1])
    other = integer(it.operands[2])

    def run(w: Any) -> None:
        x = sum(w.p[n] << n for n in range(7))
        m = mask(w)
        put(w, x & m | other(w) & ~m & MASK)

    return run


def bits(it: Instruction) -> Action:
    _, values, _ = split(it)
    put, a = set_register(values[0]), integer(values[1])
    functions: dict[str, Callable[[int], int]] = {
        "POPC": lambda x: x.bit_count(),
        "FLO": lambda x: x.bit_length() - 1 & MASK,
        "BREV": lambda x: int(f"{x:032b}"[::-1], 2),
        "IABS": lambda x: abs(signed(x)) & MASK,
        "REDUX": lambda x: x,
        "R2UR": lambda x: x,
    }
    function = functions[it.name.removeprefix("U") if it.name != "R2UR" else "R2UR"]
    return lambda w: put(w, function(a(w)))


def bmsk(it: Instruction) -> Action:
    _, values, _ = split(it)
    put, a, b = set_register(values[0]), integer(values[1]), integer(values[2])
    return lambda w: put(w, ((1 << min(b(w), 32)) - 1) << min(a(w), 32) & MASK)


def sgxt(it: Instruction) -> Action:
    _, values, _ = split(it)
    put, a, b = set_register(values[0]), integer(values[1]), integer(values[2])
    unsigned = "U32" in it.modifiers

    def run(w: Any) -> None:
        n = min(b(w), 32)
        x = a(w) & (1 << n) - 1
        put(w, x - (1 << n) & MASK if n and not unsigned and x >> n - 1 else x)

    return run
