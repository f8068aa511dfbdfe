"""The stage of a step, and the class, that an instruction belongs to."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from benchmarks.sass.disassembly import Instruction

STAGES = ("receive", "product", "sum", "cell", "publish", "output", "other")

# FILE:FUNCTION of the source, the first that matches; where none does, the function that this one is inlined in. The
# last lines are for functions in other files, by their names.
RULES = [
    (re.compile(pattern), stage)
    for pattern, stage in (
        (r"^cells\.h:", "cell"),
        (r"^wait\.cuh:", "receive"),
        (r"^exchange\.cuh:(receive|gather|whole|poll|await|collect|arrived)", "receive"),
        (r"^exchange\.cuh:(put|publish|broadcast|send|clear|flush)", "publish"),
        (r"^product\.cuh:load", "other"),
        (r"^product\.cuh:", "product"),
        (r"^team\.cuh:(multiply|share|total|sum)", "sum"),
        (r"^team\.cuh:(load)", "output"),
        (r"^(forward|backward)\.cuh:(write|prefetch|load|store)", "output"),
        (r"^(forward|backward)\.cuh:(step|differentiate|published|activate)", "cell"),
        (r"^backward\.cuh:receive", "sum"),
        (r":(receive|gather|poll|wait|collect)", "receive"),
        (r":(publish|put|broadcast|send)", "publish"),
        (r":(prefetch|write|output|emit)", "output"),
        (r":(total|reduce|sum)", "sum"),
        (r":(product|multiply|matmul|mma)(?!_add|_tile)", "product"),
    )
]

_KINDS = r"PRNN_DEVICE_MEMBER|PRNN_DEVICE|PRNN_COLD|PRNN_BOTH|PRNN_CELL_FUNCTION|PRNN_KERNEL\(\w+\)"
_FUNCTION = re.compile(rf"^[^\n#/]*\b(?:{_KINDS})([^;{{}}()]*?)\b(\w+)\s*\(", re.MULTILINE)


@cache
def functions_of(path: Path) -> list[tuple[int, int, str]]:
    """First and last lines and names of the functions that a source file defines."""
    if not path.exists():
        return []
    text = path.read_text()
    found = []
    for match in _FUNCTION.finditer(text):
        depth, at = 0, match.end() - 1
        while at < len(text) and not (depth == 0 and text[at] in ";{"):
            depth += (text[at] == "(") - (text[at] == ")")
            at += 1
        if at >= len(text) or text[at] == ";":
            continue
        depth = 0
        for end in range(at, len(text)):
            depth += (text[end] == "{") - (text[end] == "}")
            if depth == 0:
                break
        first, last = (text.count("\n", 0, place) + 1 for place in (match.start(), end))
        found.append((first, last, match[2]))
    return found


@cache
def function_at(file: str, line: int) -> str:
    """The innermost function around a line, or ""."""
    around = [f for f in functions_of(Path(file)) if f[0] <= line <= f[1]]
    return min(around, key=lambda f: f[1] - f[0])[2] if around else ""


@cache
def stage_of_frames(frames: tuple[tuple[str, int], ...]) -> str:
    for file, line in frames:
        place = f"{Path(file).name}:{function_at(file, line)}"
        for pattern, stage in RULES:
            if pattern.search(place):
                return stage
    return "other"


def stage(it: Instruction) -> str:
    return stage_of_frames(it.frames)


CLASSES = ("products", "integer", "float", "branches", "loads and stores", "conversions", "barriers", "other")

_BRANCHES = ("BRA", "BSSY", "BSYNC", "BREAK", "CALL", "RET", "EXIT", "WARPSYNC", "BRX", "JMP", "YIELD")
_CONVERSIONS = ("I2F", "F2I", "F2F", "F2FP", "I2FP", "HADD2")
_BARRIERS = ("BAR", "MEMBAR", "ERRBAR", "CGAERRBAR", "CCTL", "UCGABAR_ARV", "UCGABAR_WAIT", "DEPBAR", "FENCE")
_MEMORY = re.compile(r"^(LD|ST|ATOM|RED|U?LDC|SYNCS)")
_FLOAT = ("FADD", "FMUL", "FFMA", "FSEL", "FSET", "FSETP", "FMNMX", "MUFU", "HFMA2", "HMUL2")


def class_of(it: Instruction) -> str:
    name = it.name
    if name in ("HMMA", "HGMMA") or (name == "FFMA" and stage(it) == "product"):
        return "products"
    if name in _BRANCHES:
        return "branches"
    if name in _CONVERSIONS:
        return "conversions"
    if name in _BARRIERS:
        return "barriers"
    if _MEMORY.match(name):
        return "loads and stores"
    # nvcc moves constants with HFMA2 too.
    if name in _FLOAT:
        return "float" if name != "HFMA2" else "integer"
    if name in ("NOP", "SHFL", "S2R", "CS2R", "VOTE"):
        return "other"
    return "integer"


def is_division(it: Instruction) -> bool:
    return it.name == "I2F" and "RP" in it.modifiers


def histogram(code: Iterable[tuple[Instruction, float]]) -> dict[str, float]:
    """Instructions by class, and "divisions", of instructions with their counts."""
    found = dict.fromkeys((*CLASSES, "divisions"), 0.0)
    for it, count in code:
        found[class_of(it)] += count
        found["divisions"] += count * is_division(it)
    return found
