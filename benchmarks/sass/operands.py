"""Operands of instructions as functions of a warp's state."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from typing import Any

Read = Callable[[Any], Any]
MASK = 0xFFFFFFFF
SINGLE, HALF = "<f", "<e"  # formats of floats, as struct's

_REGISTER = re.compile(r"^([-~|!]*)(U?R)(\d+|Z)((?:\.\w+)*)(\|?)((?:\.\w+)*)$")
_CONSTANT = re.compile(r"^([-~|]*)c\[(0x[0-9a-f]+)\]\[(?:(U?R\d+)\+?)?(-?0x[0-9a-f]+)?\](\|?)((?:\.\w+)*)$")
_PREDICATE = re.compile(r"^(!?)(U?P)(\d|T)$")


class Unknown(Exception):
    """An operand or an opcode that the simulator does not know."""


def to_float(bits: int, kind: str = SINGLE) -> float:
    """The float in the lowest bits of 32."""
    return float(struct.unpack_from(kind, bits.to_bytes(4, "little"))[0])


def of_float(x: float, kind: str = SINGLE) -> int:
    """Its bits, of an infinity where it is too large."""
    try:
        packed = struct.pack(kind, x)
    except OverflowError:
        packed = struct.pack(kind, math.copysign(math.inf, x))
    return int.from_bytes(packed, "little")


def signed(x: int) -> int:
    return x - (1 << 32) if x & 0x80000000 else x


def is_predicate(text: str) -> bool:
    return _PREDICATE.match(text) is not None


def predicate(text: str) -> Read:
    found = _PREDICATE.match(text)
    if not found:
        raise Unknown(f"no predicate: {text}")
    negated, uniform, number = bool(found[1]), found[2] == "UP", found[3]
    if number == "T":
        return lambda w: not negated
    n = int(number)
    if uniform:
        return (lambda w: not w.up[n]) if negated else (lambda w: w.up[n])
    return (lambda w: not w.p[n]) if negated else (lambda w: w.p[n])


def set_predicate(text: str) -> Callable[[Any, bool], None]:
    found = _PREDICATE.match(text)
    if not found or found[1]:
        raise Unknown(f"no predicate to write: {text}")
    if found[3] == "T":
        return lambda w, x: None
    n = int(found[3])
    if found[2] == "UP":
        return lambda w, x: w.up.__setitem__(n, x)
    return lambda w, x: w.p.__setitem__(n, x)


def register(text: str) -> tuple[bool, int]:
    """Whether it is uniform, and its number, -1 for RZ and URZ."""
    found = _REGISTER.match(text.replace(".reuse", ""))
    if not found:
        raise Unknown(f"no register: {text}")
    return found[2] == "UR", -1 if found[3] == "Z" else int(found[3])


def set_register(text: str, offset: int = 0) -> Callable[[Any, int], None]:
    uniform, n = register(text)
    if n < 0:
        return lambda w, x: None
    n += offset
    if uniform:
        return lambda w, x: w.ur.__setitem__(n, x)
    return lambda w, x: w.r.__setitem__(n, x)


def raw(text: str, offset: int = 0) -> Read:
    """The 32 bits of an operand without its signs; the register or word ``offset`` after it."""
    text = text.replace(".reuse", "")
    found = _REGISTER.match(text)
    if found:
        if found[3] == "Z":
            return lambda w: 0
        n = int(found[3]) + offset
        return (lambda w: w.ur[n]) if found[2] == "UR" else (lambda w: w.r[n])
    found = _CONSTANT.match(text)
    if found:
        bank, at = int(found[2], 16), int(found[4] or "0", 16) + 4 * offset
        if found[3]:
            base = raw(found[3])
            return lambda w: w.constant(bank, (base(w) + at) & MASK, 4)
        return lambda w: w.constant(bank, at, 4)
    raise Unknown(f"unknown operand: {text}")


def immediate(text: str) -> int | None:
    found = re.match(r"^(-?)0x([0-9a-f]+)$", text)
    if found:
        return (-int(found[2], 16) if found[1] else int(found[2], 16)) & MASK
    return None


def integer(text: str) -> Read:
    """32 bits, with - as the two's complement, ~ as the complement; a half or byte of a register."""
    value = immediate(text)
    if value is not None:
        return lambda w: value
    text = text.replace(".reuse", "")
    sign = text[0] if text[0] in "-~" else ""
    if text.lstrip("-~").startswith("|"):
        inner = raw(text.lstrip("-~").strip("|"))
        return lambda w: abs(signed(inner(w))) * (-1 if sign else 1) & MASK
    plain = raw(text)
    if sign == "-":
        return lambda w: -plain(w) & MASK
    if sign == "~":
        return lambda w: plain(w) ^ MASK
    return plain


def addend(text: str) -> Read:
    """For carries: a subtracted operand as its complement plus one, with the carry that this gives."""
    if text.startswith("-") and immediate(text) is None:
        plain = raw(text[1:])
        return lambda w: (plain(w) ^ MASK) + 1
    return integer(text)


def pair(text: str) -> Read:
    """64 bits of two registers; an immediate is extended with its sign."""
    value = immediate(text)
    if value is not None:
        wide = signed(value) & 0xFFFFFFFFFFFFFFFF
        return lambda w: wide
    sign = text[0] if text[0] in "-~" else ""
    body = text.lstrip("-~")
    low, high = raw(body), raw(body, 1)
    if sign == "-":
        return lambda w: -(low(w) | high(w) << 32)
    if sign == "~":
        return lambda w: ~(low(w) | high(w) << 32)
    return lambda w: low(w) | high(w) << 32


def real(text: str) -> Read:
    """A float operand."""
    text = text.replace(".reuse", "")
    plain = text.strip()
    numbers = {"+INF": float("inf"), "-INF": float("-inf"), "+QNAN": float("nan"), "-QNAN": float("nan")}
    if plain in numbers:
        constant = numbers[plain]
        return lambda w: constant
    if re.match(r"^[-+]?\d+(\.\d*)?(e[-+]?\d+)?$", plain):
        constant = float(plain)
        return lambda w: constant
    bits_value = immediate(plain)
    if bits_value is not None:
        constant = to_float(bits_value)
        return lambda w: constant
    negative = plain.startswith("-")
    body = plain.lstrip("-")
    absolute = body.startswith("|")
    bits = raw(body.strip("|"))

    def read(w: Any) -> float:
        x = to_float(bits(w))
        x = abs(x) if absolute else x
        return -x if negative else x

    return read


def _scaled(base: Read, scale: int) -> Read:
    return lambda w: base(w) * scale


def address(text: str) -> tuple[Read, bool]:
    """Of a memory operand, in brackets or after a descriptor; and whether it names a 64-bit address."""
    inside = re.match(r"^(?:desc\[\w+\])?\[(.*)\]$", text)
    if not inside:
        raise Unknown(f"unknown address: {text}")
    parts, constant, wide = [], 0, False
    for part in inside[1].split("+"):
        part = part.strip()
        value = re.match(r"^-?0x[0-9a-f]+$", part)
        if value:
            constant += int(part, 16)
        elif part.endswith(".64"):
            wide = True
            parts.append(pair(part.removesuffix(".64")))
        elif found := re.match(r"^(U?R\w+?)\.X(\d+)$", part):
            parts.append(_scaled(raw(found[1]), int(found[2])))
        else:
            # A uniform base of a 64-bit address is a pair too.
            body = part.removesuffix(".U32")
            parts.append(pair(body) if wide and body.startswith("UR") and body != "URZ" else raw(body))
    mask = 0xFFFFFFFFFFFFFFFF if wide else MASK
    if len(parts) == 1:
        one = parts[0]
        return (lambda w: one(w) + constant & mask), wide
    return (lambda w: sum(part(w) for part in parts) + constant & mask), wide
