"""What instructions do to a warp: each as a function of its state, for one representative lane.

Integers, predicates and control flow are exact. Floats are computed, rounded to nearest; tensor cores' results are
their addends. An instruction that is not known raises when it is executed, with its text and source line.

A function returns None, or the address of the next instruction where that is not the following one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.sass import accesses, floats, integers
from benchmarks.sass.accesses import bytes_of
from benchmarks.sass.common import Action
from benchmarks.sass.disassembly import Function, Instruction
from benchmarks.sass.operands import Unknown, is_predicate, predicate, raw


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


# By name, without the modifiers.
_BUILD: dict[str, Callable[[Instruction], Action]] = {
    name: build
    for build, names in (
        (integers.iadd3, "IADD3 VIADD IADD"),
        (integers.imad, "IMAD"),
        (integers.lea, "LEA"),
        (integers.lop3, "LOP3"),
        (integers.plop3, "PLOP3"),
        (integers.isetp, "ISETP"),
        (integers.shf, "SHF"),
        (integers.uniform_shift, "SHL SHR"),
        (integers.prmt, "PRMT"),
        (integers.sel, "SEL"),
        (integers.mov, "MOV"),
        (integers.minmax, "VIMNMX IMNMX VIADDMNMX VIMNMX3"),
        (integers.bits, "POPC FLO BREV IABS REDUX R2UR"),
        (integers.bmsk, "BMSK"),
        (integers.sgxt, "SGXT"),
        (integers.r2p, "R2P"),
        (integers.p2r, "P2R"),
        (floats.arithmetic(lambda x, y: x + y), "FADD"),
        (floats.arithmetic(lambda x, y: x * y), "FMUL"),
        (floats.arithmetic(lambda x, y, z: x * y + z), "FFMA"),
        (floats.arithmetic(lambda x, y, least: min(x, y) if least else max(x, y)), "FMNMX"),
        (floats.fsetp, "FSETP"),
        (floats.fset, "FSET"),
        (floats.fsel, "FSEL"),
        (floats.mufu, "MUFU"),
        (floats.i2f, "I2F I2FP"),
        (floats.f2i, "F2I"),
        (floats.f2fp, "F2FP"),
        (floats.f2f, "F2F"),
        (floats.packed, "HFMA2 HADD2 HMUL2"),
        (floats.hmma, "HMMA"),
        (accesses.special, "S2R CS2R"),
        (accesses.load, "LDS LDG LDL LD"),
        (accesses.store, "STS STG STL ST"),
        (accesses.reduction, "RED REDG"),
        (accesses.matrix_load, "LDSM"),
        (accesses.copy, "LDGSTS"),
        (accesses.constant, "LDC"),
        (accesses.stas, "STAS"),
        (accesses.syncs, "SYNCS"),
        (accesses.barrier, "BAR"),
        (accesses.shuffle, "SHFL"),
        (accesses.vote, "VOTE"),
        (accesses.elect, "ELECT"),
        (_return, "RET"),
        (_exit, "EXIT"),
    )
    for name in names.split()
}
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


__all__ = ["Action", "Unknown", "action", "bytes_of"]
