"""Memory, barriers, other lanes, special registers: what an instruction asks of the warp's machine."""

from __future__ import annotations

from typing import Any

from benchmarks.sass.common import Action
from benchmarks.sass.disassembly import Instruction
from benchmarks.sass.operands import (
    MASK,
    Unknown,
    address,
    immediate,
    integer,
    is_predicate,
    predicate,
    raw,
    set_predicate,
    set_register,
)

LANES = 0xFFFFFFFF  # a vote's mask: all lanes are active and agree


def special(it: Instruction) -> Action:
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


def load(it: Instruction) -> Action:
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


def store(it: Instruction) -> Action:
    space = {"S": "shared", "G": "global", "L": "local"}.get(it.name[2:], "generic")
    where, _ = address(it.operands[0])
    size = bytes_of(it)
    reads = [raw(it.operands[1], 0 if it.operands[1] == "RZ" else i) for i in range(_memory_words(it))]

    def run(w: Any) -> None:
        at = where(w)
        w.touched = at
        w.store(space, at, size, [read(w) for read in reads], it)

    return run


def matrix_load(it: Instruction) -> Action:
    count = int(it.modifiers[-1]) if it.modifiers[-1] in "124" else 1
    puts = [set_register(it.operands[0], i) for i in range(count)]
    where, _ = address(it.operands[1])

    def run(w: Any) -> None:
        w.touched = where(w)
        for put in puts:
            put(w, 0)

    return run


def copy(it: Instruction) -> Action:
    """cp.async: LDGSTS."""
    to, _ = address(it.operands[0])
    source, _ = address(it.operands[1])

    def run(w: Any) -> None:
        w.touched = source(w)
        words = w.load("global", w.touched, bytes_of(it), it)
        w.store("shared", to(w), bytes_of(it), words, it)

    return run


def reduction(it: Instruction) -> Action:
    where, _ = address(it.operands[0])
    value = raw(it.operands[1]) if immediate(it.operands[1]) is None else integer(it.operands[1])

    def run(w: Any) -> None:
        w.touched = where(w)
        w.machine.reduce(w, w.touched, value(w), it)

    return run


def constant(it: Instruction) -> Action:
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


def stas(it: Instruction) -> Action:
    """st.async: a register pair holds the addresses in another block of the data and of the barrier."""
    name = it.operands[0].strip("[]").removesuffix(".64")
    where, barrier = raw(name), raw(name, 1)
    return lambda w: w.send(where(w), barrier(w), bytes_of(it))


def syncs(it: Instruction) -> Action:
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


def barrier(it: Instruction) -> Action:
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


def shuffle(it: Instruction) -> Action:
    """Lanes are alike."""
    done, put, value = set_predicate(it.operands[0]), set_register(it.operands[1]), integer(it.operands[2])

    def run(w: Any) -> None:
        put(w, value(w))
        done(w, True)

    return run


def vote(it: Instruction) -> Action:
    written: list[str] = []
    values: list[str] = []
    read: list[str] = []
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


def elect(it: Instruction) -> Action:
    """This lane is the one."""
    done = set_predicate(it.operands[0])
    return lambda w: done(w, True)
