"""What instructions do to a warp: each as a function of its state, for one representative lane.

Integers, predicates and control flow are exact. Floats are computed, rounded to nearest; tensor cores' results are
their addends. An instruction that is not known raises when it is executed, with its text and source line.

A function returns None, or the address of the next instruction where that is not the following one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from benchmarks.sass.disassembly import Function, Instruction
from benchmarks.sass.operands import (
    MASK,
    Unknown,
    addend,
    address,
    half,
    immediate,
    integer,
    is_predicate,
    of_float,
    of_half,
    pair,
    predicate,
    raw,
    real,
    register,
    set_predicate,
    set_register,
    signed,
    to_float,
)

Action = Callable[[Any], "int | None"]
WIDE = 0xFFFFFFFFFFFFFFFF
LANES = 0xFFFFFFFF  # a vote's mask: all lanes are active and agree


def _split(it: Instruction) -> tuple[list[str], list[str], list[str]]:
    """Predicates written after or before the destination, values (the first is the destination), predicates read."""
    operands = list(it.operands)
    written, values, read = [], [], []
    while operands and is_predicate(operands[0]):
        written.append(operands.pop(0))
    if operands:
        values.append(operands.pop(0))
    while operands and is_predicate(operands[0]) and not values[1:]:
        written.append(operands.pop(0))
    for operand in operands:
        (read if is_predicate(operand) else values).append(operand)
    return written, values, read


def _carry_in(read: list[str]) -> Callable[[Any], int]:
    inputs = [predicate(text) for text in read]
    return lambda w: sum(bool(one(w)) for one in inputs)


def _iadd3(it: Instruction) -> Action:
    written, values, read = _split(it)
    put, carries = set_register(values[0]), [set_predicate(text) for text in written]
    parts = [addend(text) for text in values[1:]]
    if not carries and not read:
        a, b = parts[:2]
        c = parts[2] if len(parts) > 2 else (lambda w: 0)
        return lambda w: put(w, a(w) + b(w) + c(w) & MASK)
    carry = _carry_in(read) if "X" in it.modifiers else (lambda w: 0)

    def run(w: Any) -> None:
        total = sum(part(w) for part in parts) + carry(w)
        for number, one in enumerate(carries):
            one(w, total >> 32 > number)
        put(w, total & MASK)

    return run


def _imad(it: Instruction) -> Action:
    written, values, read = _split(it)
    put = set_register(values[0])
    modifiers = it.modifiers
    unsigned = "U32" in modifiers
    a, b = integer(values[1]), integer(values[2])
    if "WIDE" in modifiers or "HI" in modifiers:
        c = pair(values[3]) if values[3].lstrip("-~") not in ("RZ", "URZ") else (lambda w: 0)
        carries = [set_predicate(text) for text in written]
        carry = _carry_in(read) if "X" in modifiers else (lambda w: 0)
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
        carry, carries = _carry_in(read), [set_predicate(text) for text in written]

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


def _lea(it: Instruction) -> Action:
    written, values, read = _split(it)
    put, carries = set_register(values[0]), [set_predicate(text) for text in written]
    carry = _carry_in(read) if "X" in it.modifiers else (lambda w: 0)
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


def _lop3(it: Instruction) -> Action:
    written, values, read = _split(it)
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


def _plop3(it: Instruction) -> Action:
    outputs = [set_predicate(text) for text in it.operands[:2]]
    a, b, c = (predicate(text) for text in it.operands[2:5])
    tables = [immediate(text) or 0 for text in it.operands[5:7]]

    def run(w: Any) -> None:
        at = bool(a(w)) << 2 | bool(b(w)) << 1 | bool(c(w))
        for put, table in zip(outputs, tables, strict=True):
            put(w, bool(table >> at & 1))

    return run


_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
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


def _combine(it: Instruction, low: Callable[[Any], bool]) -> Action:
    """Writes a comparison and its complement, combined with the predicate read."""
    outputs = [set_predicate(text) for text in it.operands[:2]]
    other = predicate(it.operands[4]) if len(it.operands) > 4 else (lambda w: True)
    join = next((name for name in ("AND", "OR", "XOR") if name in it.modifiers), "AND")

    def run(w: Any) -> None:
        result, also = bool(low(w)), bool(other(w))
        for put, x in zip(outputs, (result, not result), strict=True):
            put(w, x and also if join == "AND" else x or also if join == "OR" else x != also)

    return run


def _isetp(it: Instruction) -> Action:
    name = it.modifiers[0]
    compare = _COMPARE[name]
    a, b = integer(it.operands[2]), integer(it.operands[3])
    convert = (lambda x: x) if "U32" in it.modifiers else signed
    if "EX" not in it.modifiers:
        return _combine(it, lambda w: compare(convert(a(w)), convert(b(w))))
    low = predicate(it.operands[5])

    def extended(w: Any) -> bool:
        x, y = convert(a(w)), convert(b(w))
        if name == "NE":
            return x != y or low(w)
        return low(w) if x == y else name != "EQ" and compare(x, y)

    return _combine(it, extended)


def _fsetp(it: Instruction) -> Action:
    compare = _COMPARE[it.modifiers[0]]
    a, b = real(it.operands[2]), real(it.operands[3])
    return _combine(it, lambda w: compare(a(w), b(w)))


def _shf(it: Instruction) -> Action:
    _, values, _ = _split(it)
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


def _uniform_shift(it: Instruction) -> Action:
    """SHL, SHR of older code."""
    _, values, _ = _split(it)
    put, a, s = set_register(values[0]), integer(values[1]), integer(values[2])
    if it.name.endswith("SHL"):
        return lambda w: put(w, a(w) << min(s(w), 32) & MASK)
    if "U32" in it.modifiers:
        return lambda w: put(w, a(w) >> min(s(w), 32))
    return lambda w: put(w, signed(a(w)) >> min(s(w), 31) & MASK)


def _prmt(it: Instruction) -> Action:
    _, values, _ = _split(it)
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


def _sel(it: Instruction) -> Action:
    put = set_register(it.operands[0])
    a, b = integer(it.operands[1]), integer(it.operands[2])
    which = predicate(it.operands[3])
    return lambda w: put(w, a(w) if which(w) else b(w))


def _fsel(it: Instruction) -> Action:
    put = set_register(it.operands[0])
    a, b = real(it.operands[1]), real(it.operands[2])
    which = predicate(it.operands[3])
    return lambda w: put(w, of_float(a(w) if which(w) else b(w)))


def _mov(it: Instruction) -> Action:
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


def _minmax(it: Instruction) -> Action:
    _, values, read = _split(it)
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


def _float(compute: Callable[..., float]) -> Callable[[Instruction], Action]:
    def build(it: Instruction) -> Action:
        _, values, read = _split(it)
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


def _mufu(it: Instruction) -> Action:
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


def _i2f(it: Instruction) -> Action:
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


def _f2i(it: Instruction) -> Action:
    put, a = set_register(it.operands[0]), real(it.operands[1])
    if {"F64", "U64", "S64", "F16"} & set(it.modifiers):
        raise Unknown(it.opcode)
    rounding = next((name for name in ("TRUNC", "FLOOR", "CEIL") if name in it.modifiers), "")
    convert: Callable[[float], int] = {"TRUNC": math.trunc, "FLOOR": math.floor, "CEIL": math.ceil, "": round}[rounding]
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
        return of_half
    if "TF32" in modifiers:
        return lambda x: (of_float(x) + 0x1000) & 0xFFFFE000
    raise Unknown(f"a conversion to {modifiers}")


def _f2fp(it: Instruction) -> Action:
    _, values, _ = _split(it)
    put, narrow = set_register(values[0]), _narrow(it.modifiers)
    parts = [real(text) for text in values[1:]]
    if "PACK_AB" not in it.modifiers:
        return lambda w: put(w, narrow(parts[-1](w)))
    high, low = parts[:2]
    return lambda w: put(w, narrow(high(w)) << 16 | narrow(low(w)))


def _f2f(it: Instruction) -> Action:
    put, a = set_register(it.operands[0]), it.operands[1]
    if it.modifiers[:2] == ["F32", "F16"]:
        bits = raw(a.split(".H")[0])
        upper = ".H1" in a
        return lambda w: put(w, of_float(half(bits(w) >> 16 if upper else bits(w))))
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
        low, high = (to_float(x << 16 & MASK), to_float(x & 0xFFFF0000)) if brain else (half(x), half(x >> 16))
        if which.startswith("0"):
            high = low
        elif which.startswith("1_H1"):
            low = high
        return (-low, -high) if negative else (low, high)

    return read


def _packed(it: Instruction) -> Action:
    """HFMA2, HADD2, HMUL2; a constant is written as its two halves, the upper first."""
    _, values, read = _split(it)
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
            high, low = (real(text) for text in texts[i : i + 2])
            operands.append(lambda w, high=high, low=low: (low(w), high(w)))
            i += 2
    if len(operands) != wanted or read:
        raise Unknown(it.text)
    narrow: Callable[[float], int] = (lambda x: _brain(of_float(x))) if brain else of_half

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


def _hmma(it: Instruction) -> Action:
    """The sums stay what they were: weights and states are zero."""
    count = 4 if "F32" in it.modifiers else 2
    puts = [set_register(it.operands[0], i) for i in range(count)]
    source = it.operands[3].replace(".reuse", "")
    reads = [raw(source, i) for i in range(count)]

    def run(w: Any) -> None:
        for put, read in zip(puts, reads, strict=True):
            put(w, read(w))

    return run


def _special(it: Instruction) -> Action:
    put, name = set_register(it.operands[0]), it.operands[-1]
    if it.name == "CS2R" and "32" not in it.modifiers:
        high = set_register(it.operands[0], 1)

        def both(w: Any) -> None:
            x = w.special(name)
            put(w, x & MASK)
            high(w, x >> 32)

        return both
    return lambda w: put(w, w.special(name) & MASK)


def _memory_words(it: Instruction) -> int:
    return 4 if "128" in it.modifiers else 2 if "64" in it.modifiers else 1


def bytes_of(it: Instruction) -> int:
    """What a lane reads or writes with a memory instruction."""
    modifiers = set(it.modifiers)
    if modifiers & {"U8", "S8"}:
        return 1
    if modifiers & {"U16", "S16"}:
        return 2
    return 4 * _memory_words(it)


def _load(it: Instruction) -> Action:
    space = {"S": "shared", "G": "global", "L": "local"}.get(it.name[2:], "generic")
    outputs = [text for text in it.operands[:2] if is_predicate(text)]
    operands = [text for text in it.operands if not is_predicate(text)]
    where, _ = address(operands[1])
    size = bytes_of(it)
    puts = [set_register(operands[0], i) for i in range(_memory_words(it))]
    done = [set_predicate(text) for text in outputs]

    def run(w: Any) -> None:
        at = where(w)
        w.touched = at
        words = w.load(space, at, size, it)
        for put, word in zip(puts, words, strict=True):
            put(w, word)
        for one in done:
            one(w, True)

    return run


def _store(it: Instruction) -> Action:
    space = {"S": "shared", "G": "global", "L": "local"}.get(it.name[2:], "generic")
    where, _ = address(it.operands[0])
    size = bytes_of(it)
    reads = [raw(it.operands[1], 0 if it.operands[1] == "RZ" else i) for i in range(_memory_words(it))]

    def run(w: Any) -> None:
        at = where(w)
        w.touched = at
        w.store(space, at, size, [read(w) for read in reads], it)

    return run


def _matrix_load(it: Instruction) -> Action:
    count = int(it.modifiers[-1]) if it.modifiers[-1] in "124" else 1
    puts = [set_register(it.operands[0], i) for i in range(count)]
    where, _ = address(it.operands[1])

    def run(w: Any) -> None:
        w.touched = where(w)
        for put in puts:
            put(w, 0)

    return run


def _copy(it: Instruction) -> Action:
    """cp.async: LDGSTS."""
    to, _ = address(it.operands[0])
    source, _ = address(it.operands[1])

    def run(w: Any) -> None:
        w.touched = source(w)
        w.load("global", w.touched, bytes_of(it), it)
        w.store("shared", to(w), bytes_of(it), [0] * _memory_words(it), it)

    return run


def _reduction(it: Instruction) -> Action:
    where, _ = address(it.operands[0])
    value = raw(it.operands[1]) if immediate(it.operands[1]) is None else integer(it.operands[1])

    def run(w: Any) -> None:
        w.touched = where(w)
        w.machine.reduce(w, w.touched, value(w), it)

    return run


def _constant(it: Instruction) -> Action:
    text = it.operands[1]
    count = 2 if "64" in it.modifiers else 1
    puts = [set_register(it.operands[0], i) for i in range(count)]
    if {"U8", "S8", "U16", "S16"} & set(it.modifiers):
        inside = text[text.index("][") + 2 : -1]
        at, _ = address(f"[{inside}]")
        bank, size = int(text[2 : text.index("]")], 16), bytes_of(it)
        bits, has_sign = 8 * size, bool({"S8", "S16"} & set(it.modifiers))

        def small(w: Any) -> None:
            x = w.constant(bank, at(w), size)
            puts[0](w, x - (1 << bits) & MASK if has_sign and x >> bits - 1 else x)

        return small
    reads = [raw(text, i) for i in range(count)]

    def run(w: Any) -> None:
        found = [read(w) for read in reads]
        for put, x in zip(puts, found, strict=True):
            put(w, x)

    return run


def _stas(it: Instruction) -> Action:
    """st.async: a register pair holds the addresses in another block of the data and of the barrier."""
    name = it.operands[0].strip("[]").removesuffix(".64")
    where, barrier = raw(name), raw(name, 1)
    return lambda w: w.send(where(w), barrier(w), bytes_of(it))


def _syncs(it: Instruction) -> Action:
    modifiers = it.modifiers
    if "PHASECHK" in modifiers:
        done, (where, _), phase = set_predicate(it.operands[0]), address(it.operands[1]), integer(it.operands[2])
        tries = "TRYWAIT" in modifiers

        def check(w: Any) -> None:
            done(w, w.phase(where(w), phase(w) >> 31 & 1, tries))

        return check
    if "ARRIVE" in modifiers:
        where, _ = address(it.operands[1])
        return lambda w: w.arrive(where(w))
    if "EXCH" in modifiers:
        where, _ = address(it.operands[1])
        return lambda w: w.barrier_init(where(w))
    raise Unknown(it.opcode)


def _barrier(it: Instruction) -> Action:
    if it.modifiers[0] not in ("SYNC", "ARV"):
        raise Unknown(it.opcode)
    waits, operands = it.modifiers[0] == "SYNC", it.operands
    if immediate(operands[0]) is None:  # of a register: the number in its lower bits, the threads in its upper half
        packed = integer(operands[0])
        return lambda w: w.barrier(packed(w) & 15, packed(w) >> 16 & 0xFFF, waits)
    number = immediate(operands[0])
    count = integer(operands[1]) if len(operands) > 1 else (lambda w: 0)

    def run(w: Any) -> None:
        threads = count(w)
        w.barrier(number, threads >> 16 if threads > 0xFFFF else threads, waits)

    return run


def _shuffle(it: Instruction) -> Action:
    """Lanes are alike."""
    done, put, value = set_predicate(it.operands[0]), set_register(it.operands[1]), integer(it.operands[2])

    def run(w: Any) -> None:
        put(w, value(w))
        done(w, True)

    return run


def _vote(it: Instruction) -> Action:
    written, values, read = [], [], []
    for text in it.operands:
        if not is_predicate(text):
            values.append(text)
        elif not values or (not read and not written):
            written.append(text)
        else:
            read.append(text)
    put = set_register(values[0]) if values else (lambda w, x: None)
    outputs, value = [set_predicate(text) for text in written], predicate(it.operands[-1])

    def run(w: Any) -> None:
        x = bool(value(w))
        put(w, LANES if x else 0)
        for one in outputs:
            one(w, x)

    return run


def _elect(it: Instruction) -> Action:
    outputs = [set_predicate(text) for text in it.operands[:1]]
    return lambda w: [one(w, True) for one in outputs] and None


def _r2p(it: Instruction) -> Action:
    value, mask = integer(it.operands[1]), integer(it.operands[2])

    def run(w: Any) -> None:
        x, m = value(w), mask(w)
        for n in range(7):
            if m >> n & 1:
                w.p[n] = bool(x >> n & 1)

    return run


def _p2r(it: Instruction) -> Action:
    put, mask = set_register(it.operands[0]), integer(it.operands[-1])
    other = integer(it.operands[2])

    def run(w: Any) -> None:
        x = sum(w.p[n] << n for n in range(7))
        m = mask(w)
        put(w, x & m | other(w) & ~m & MASK)

    return run


def _bits(it: Instruction) -> Action:
    _, values, _ = _split(it)
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


def _bmsk(it: Instruction) -> Action:
    _, values, _ = _split(it)
    put, a, b = set_register(values[0]), integer(values[1]), integer(values[2])
    return lambda w: put(w, ((1 << min(b(w), 32)) - 1) << min(a(w), 32) & MASK)


def _sgxt(it: Instruction) -> Action:
    _, values, _ = _split(it)
    put, a, b = set_register(values[0]), integer(values[1]), integer(values[2])
    unsigned = "U32" in it.modifiers

    def run(w: Any) -> None:
        n = min(b(w), 32)
        x = a(w) & (1 << n) - 1
        put(w, x - (1 << n) & MASK if n and not unsigned and x >> n - 1 else x)

    return run


def _branch(it: Instruction, function: Function) -> Action:
    target = function.target(it)
    if target is None:
        raise Unknown(it.text)
    conditions = [predicate(text) for text in it.operands if is_predicate(text)]
    if "DIV" in it.modifiers:  # of lanes that differ: here they do not
        return lambda w: None
    if conditions:
        return lambda w: target if all(one(w) for one in conditions) else None
    return lambda w: target


def _return(it: Instruction) -> Action:
    where = raw(it.operands[0])
    return lambda w: where(w)


def _exit(it: Instruction) -> Action:
    def run(w: Any) -> None:
        w.done = True

    return run


def _nothing(it: Instruction) -> Action:
    return lambda w: None


_BUILD: dict[str, Callable[[Instruction], Action]] = {
    "IADD3": _iadd3, "VIADD": _iadd3, "IADD": _iadd3, "IMAD": _imad, "LEA": _lea, "LOP3": _lop3, "PLOP3": _plop3,
    "ISETP": _isetp, "FSETP": _fsetp, "SHF": _shf, "SHL": _uniform_shift, "SHR": _uniform_shift, "PRMT": _prmt,
    "SEL": _sel, "FSEL": _fsel, "MOV": _mov, "VIMNMX": _minmax, "IMNMX": _minmax, "VIADDMNMX": _minmax,
    "VIMNMX3": _minmax, "MUFU": _mufu, "I2F": _i2f, "I2FP": _i2f, "F2I": _f2i, "F2FP": _f2fp, "F2F": _f2f,
    "HFMA2": _packed, "HADD2": _packed, "HMUL2": _packed, "HMMA": _hmma, "S2R": _special, "CS2R": _special,
    "LDS": _load, "LDG": _load, "LDL": _load, "LD": _load, "STS": _store, "STG": _store, "STL": _store, "ST": _store,
    "RED": _reduction, "REDG": _reduction,
    "LDSM": _matrix_load, "LDGSTS": _copy, "LDC": _constant, "STAS": _stas, "SYNCS": _syncs, "BAR": _barrier,
    "SHFL": _shuffle, "VOTE": _vote, "ELECT": _elect, "R2P": _r2p, "P2R": _p2r, "POPC": _bits, "FLO": _bits,
    "BREV": _bits, "IABS": _bits, "REDUX": _bits, "R2UR": _bits, "BMSK": _bmsk, "SGXT": _sgxt,
    "RET": _return, "EXIT": _exit,
    "FADD": _float(lambda x, y: x + y),
    "FMUL": _float(lambda x, y: x * y),
    "FFMA": _float(lambda x, y, z: x * y + z),
    "FMNMX": _float(lambda x, y, least: min(x, y) if least else max(x, y)),
}  # fmt: skip
# What only takes time, or concerns lanes that differ.
_IDLE = (
    "NOP", "BSSY", "BSYNC", "WARPSYNC", "YIELD", "MEMBAR", "ERRBAR", "CGAERRBAR", "CCTL", "FENCE", "ENDCOLLECTIVE",
    "DEPBAR", "LDGDEPBAR", "NANOSLEEP", "BREAK", "BMOV", "UCGABAR_ARV", "UCGABAR_WAIT", "CCTLL", "PREEXIT", "ACQBULK",
    "USETMAXREG", "WARPGROUP",
)  # fmt: skip
_UNIFORM = {
    f"U{name}"
    for name in (
        "IADD3", "IMAD", "LEA", "LOP3", "PLOP3", "ISETP", "SHF", "PRMT", "SEL", "MOV", "POPC", "FLO", "BREV", "BMSK",
        "SGXT", "P2R", "R2P",
    )
}  # fmt: skip
_RENAMED = {"ULDC": "LDC", "S2UR": "S2R", "VOTEU": "VOTE", "UMOV": "MOV", "WARPSYNC": "NOP"}


def action(it: Instruction, function: Function) -> Action:
    """What the instruction does, without its predicate; raises Unknown."""
    name = _RENAMED.get(it.name, it.name.removeprefix("U") if it.name in _UNIFORM else it.name)
    if it.name == "WARPSYNC" and "COLLECTIVE" in it.modifiers:
        raise Unknown(it.text)
    try:
        if name in ("BRA", "CALL", "JMP"):
            return _branch(it, function)
        if name in _IDLE:
            return _nothing(it)
        if name in _BUILD:
            return _BUILD[name](it)
    except Unknown as error:
        raise Unknown(f"{error} in {it.where()}") from None
    except (IndexError, KeyError, AssertionError) as error:
        raise Unknown(f"{type(error).__name__} {error} in {it.where()}") from error
    raise Unknown(f"the opcode {it.opcode} is not simulated: {it.where()}")


__all__ = ["Unknown", "action", "bytes_of", "register"]
