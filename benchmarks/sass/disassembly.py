"""The machine code of a cubin: its instructions with their control bits and source lines, loops, and parameters.

nvdisasm is $NVDISASM, or the one on the PATH, or that of the PyPI package nvidia-cuda-nvdisasm, whichever is there.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path


class NoDisassembler(Exception):
    """There is no nvdisasm on this machine."""


def nvdisasm() -> str:
    """The disassembler; raises NoDisassembler."""
    packaged = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin/nvdisasm"))
    for found in (os.environ.get("NVDISASM"), shutil.which("nvdisasm"), *map(str, packaged)):
        if found and Path(found).exists():
            return found
    raise NoDisassembler("no nvdisasm: install a CUDA toolkit, or pip install nvidia-cuda-nvdisasm")


@dataclass(frozen=True)
class Control:
    """The scheduling bits of an instruction, 105 to 125 of its 128 (Jia et al., arXiv 1804.06826, section 2.1)."""

    stall: int  # cycles until the warp's next instruction
    yields: bool
    write: int  # the scoreboard that is set until the result is there; 7: none
    read: int  # the scoreboard that is set until the operands are read; 7: none
    wait: int  # mask of the scoreboards that must be clear before

    @classmethod
    def of(cls, high: int) -> Control:
        """Of the upper 64 bits of an instruction."""
        bits = high >> 41
        return cls(bits & 15, not bits >> 4 & 1, bits >> 5 & 7, bits >> 8 & 7, bits >> 11 & 63)


@dataclass(frozen=True)
class Instruction:
    address: int
    text: str  # without its predicate and semicolon
    predicate: str  # "P0", "!UP1", or ""
    opcode: str  # with its modifiers
    operands: tuple[str, ...]
    control: Control
    frames: tuple[tuple[str, int], ...]  # file and line, from the innermost inlined function to the kernel

    @cached_property
    def name(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.split(".", 1)[0]

    @property
    def modifiers(self) -> list[str]:
        return self.opcode.split(".")[1:]

    def where(self) -> str:
        source = ", in ".join(f"{Path(file).name}:{line}" for file, line in self.frames)
        return f"{self.address:#x}: {self.text}" + (f" ({source})" if source else "")


@dataclass
class Function:
    """One kernel, with the functions that it calls: everything in its section."""

    name: str
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # addresses

    @cached_property
    def index(self) -> dict[int, int]:
        """Positions in ``code`` by address."""
        return {instruction.address: position for position, instruction in enumerate(self.code)}

    def target(self, instruction: Instruction) -> int | None:
        """The address that a branch or call names."""
        for operand in instruction.operands:
            if operand.startswith("`("):
                return self.labels.get(operand[2:].rstrip(")"))
        return None


_LINE = re.compile(r'\s*//## File "([^"]*)", line (\d+)( inlined at)?')
_FIRST = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*/\* (0x[0-9a-f]{16}) \*/")
_SECOND = re.compile(r"\s*/\* (0x[0-9a-f]{16}) \*/")
_LABEL = re.compile(r"^([.$_A-Za-z][^\s]*):$")


def operands_of(text: str) -> tuple[str, ...]:
    """Comma-separated operands; a comma in parentheses or brackets separates nothing."""
    found, depth, part = [], 0, ""
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            found.append(part.strip())
            part = ""
        else:
            part += letter
    if part.strip():
        found.append(part.strip())
    # RET.REL.NODEC R4 `(kernel): two operands without a comma.
    return tuple(piece for operand in found for piece in re.split(r"\s+(?=`\()", operand))


def instruction(
    address: int, text: str, high: int = 0x000FC00000000000, frames: tuple[tuple[str, int], ...] = ()
) -> Instruction:
    """Of nvdisasm's text, such as "@!P0 IADD3 R1, R2, R3, RZ ;", and the upper half of its encoding."""
    text = text.rstrip().rstrip(";").rstrip()
    predicate = ""
    if text.startswith("@"):
        predicate, text = text[1:].split(None, 1)
    opcode, _, rest = text.partition(" ")
    return Instruction(address, text, predicate, opcode, operands_of(rest), Control.of(high), frames)


def parse(listing: Iterator[str] | list[str]) -> list[Function]:
    """The functions of what nvdisasm -c -hex prints, with -gi or without."""
    functions: list[Function] = []
    frames: list[tuple[str, int]] = []
    fresh = True  # whether the next line comment begins another chain
    pending: tuple[int, str] | None = None
    waiting: list[str] = []  # labels of the next instruction
    for line in listing:
        if found := _SECOND.match(line):
            if pending:
                functions[-1].code.append(instruction(*pending, int(found[1], 16), tuple(frames)))
            pending = None
        elif found := _FIRST.match(line):
            pending = int(found[1], 16), found[2]
            for label in waiting:
                functions[-1].labels[label] = pending[0]
            waiting, fresh = [], True
        elif found := _LINE.match(line):
            if fresh:
                frames, fresh = [], False
            frames.append((found[1], int(found[2])))
        elif found := _LABEL.match(line):
            if found[1].startswith(".text."):
                functions.append(Function(found[1].removeprefix(".text.")))
                frames = []
            waiting.append(found[1])
        elif "//--------------------- .text." in line:
            waiting = []
    return functions


def disassemble(cubin: Path, *, lines: bool = False, only: str | None = None) -> list[Function]:
    """The kernels of a cubin, or the one named ``only``; with ``lines`` if it was compiled with -lineinfo."""
    command = [nvdisasm(), "-c", "-hex", *(["-gi"] if lines else [])]
    if only is not None:
        command += ["-fun", str(Elf(cubin.read_bytes()).symbol(only))]
    done = subprocess.run([*command, str(cubin)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"nvdisasm {cubin}: {done.stderr}")
    return parse(iter(done.stdout.splitlines()))


class Elf:
    """Of a cubin: the symbols, and where kernels find their parameters in constant bank 0."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        (start,) = struct.unpack_from("<Q", data, 0x28)
        size, count, names = struct.unpack_from("<HHH", data, 0x3A)
        headers = [struct.unpack_from("<IIQQQQIIQQ", data, start + i * size) for i in range(count)]
        text = headers[names][4]
        self.sections = {self._string(text + h[0]): data[h[4] : h[4] + h[5]] for h in headers if h[1] != 8}
        self._strings = next(headers[h[6]][4] for h in headers if h[1] == 2)

    def _string(self, at: int) -> str:
        return self.data[at : self.data.index(b"\0", at)].decode()

    def symbols(self) -> list[str]:
        table = self.sections[".symtab"]
        return [self._string(self._strings + struct.unpack_from("<I", table, i)[0]) for i in range(0, len(table), 24)]

    def symbol(self, name: str) -> int:
        return self.symbols().index(name)

    def constants(self, kernel: str) -> dict[int, bytes]:
        """The constant banks but 0: 2 is the compiler's of this kernel, 3 the program's."""
        banks = {2: f".nv.constant2.{kernel}", 3: ".nv.constant3"}
        return {bank: self.sections[name] for bank, name in banks.items() if name in self.sections}

    def parameters(self, kernel: str) -> list[tuple[int, int]]:
        """Offsets in constant bank 0, and sizes, in bytes."""
        info, at, base, found = self.sections[f".nv.info.{kernel}"], 0, 0x210, {}
        while at < len(info):
            form, attribute, value = struct.unpack_from("<BBH", info, at)
            at += 4
            if form != 4:  # the value is in the header
                continue
            if attribute == 0x0A:  # EIATTR_PARAM_CBANK
                base = struct.unpack_from("<H", info, at + 4)[0]
            if attribute == 0x17:  # EIATTR_KPARAM_INFO
                _, ordinal, offset, packed = struct.unpack_from("<IHHI", info, at)
                found[ordinal] = offset, packed >> 18
            at += value
        return [(base + offset, size) for _, (offset, size) in sorted(found.items())]


# Control flow -----------------------------------------------------------------------------------------------------


@dataclass
class Block:
    first: int  # positions in the code
    last: int
    after: list[int] = field(default_factory=list)  # blocks


def blocks_of(function: Function) -> list[Block]:
    code, index = function.code, function.index
    starts = {0}
    for position, it in enumerate(code):
        if it.name in ("BRA", "EXIT", "RET", "BRX", "JMP", "WARPSYNC", "CALL"):
            target = function.target(it)
            if it.name in ("BRA", "JMP", "WARPSYNC") and target is not None:
                starts.add(index[target])
            if it.name != "WARPSYNC" or target is not None:
                starts.add(position + 1)
    ordered = sorted(start for start in starts if start < len(code))
    number = {start: i for i, start in enumerate(ordered)}
    blocks = [
        Block(start, (ordered[i + 1] if i + 1 < len(ordered) else len(code)) - 1) for i, start in enumerate(ordered)
    ]
    for block in blocks:
        it = code[block.last]
        target = function.target(it) if it.name in ("BRA", "JMP", "WARPSYNC") else None
        if target is not None:
            block.after.append(number[index[target]])
        conditional = it.predicate or "DIV" in it.modifiers or any(o.lstrip("!")[:1] == "P" for o in it.operands)
        ends = it.name in ("EXIT", "RET", "BRX", "JMP", "BRA") and not conditional
        if it.name == "WARPSYNC" and target is not None:
            ends = False
        if not ends and block.last + 1 in number:
            block.after.append(number[block.last + 1])
    return blocks


def components(blocks: list[Block], inside: set[int]) -> list[set[int]]:
    """The strongly connected components of some blocks that have a cycle (Tarjan's algorithm)."""
    number: dict[int, int] = {}
    lowest: dict[int, int] = {}
    open_blocks: list[int] = []
    is_open: set[int] = set()
    work: list[tuple[int, Iterator[int]]] = []
    found = []

    def enter(block: int) -> None:
        number[block] = lowest[block] = len(number)
        open_blocks.append(block)
        is_open.add(block)
        work.append((block, iter([other for other in blocks[block].after if other in inside])))

    for root in sorted(inside):
        if root in number:
            continue
        enter(root)
        while work:
            block, successors = work[-1]
            for successor in successors:
                if successor not in number:
                    enter(successor)
                    break
                if successor in is_open:
                    lowest[block] = min(lowest[block], number[successor])
            else:
                work.pop()
                if work:
                    lowest[work[-1][0]] = min(lowest[work[-1][0]], lowest[block])
                if lowest[block] == number[block]:
                    at = open_blocks.index(block)
                    members = set(open_blocks[at:])
                    del open_blocks[at:]
                    is_open.difference_update(members)
                    if len(members) > 1 or block in blocks[block].after:
                        found.append(members)
    return found


def loops_of(blocks: list[Block]) -> list[set[int]]:
    """The loops, outer ones first: natural ones, and those that are entered at several places.

    The pass from the last step to the first begins within the step, behind the product.
    """
    loops = []
    work = components(blocks, set(range(len(blocks))))
    while work:
        body = work.pop(0)
        loops.append(body)
        entries = {after for i, block in enumerate(blocks) if i not in body for after in block.after if after in body}
        work += components(blocks, body - (entries or {min(body)}))
    return loops


def is_output(it: Instruction) -> bool:
    """A store of results; those into the workspace of an exchange are strong."""
    return it.name == "STG" and "STRONG" not in it.modifiers


def step_loop(function: Function, has_product: bool = True) -> list[Instruction]:
    """The innermost loop that contains both products of fragments and stores of the outputs; [] without one. In the
    kernel of a diagonal recurrence, not ``has_product``, the innermost with stores of the outputs.

    Several loops one after another, such as one for each regime, are taken together. A loop within, with the same
    products and stores, is a way around that leaves loads out: that of lanes without a sample.
    """
    blocks = blocks_of(function)

    def code_of(members: set[int]) -> list[Instruction]:
        return [it for i in sorted(members) for it in function.code[blocks[i].first : blocks[i].last + 1]]

    tensor = any(it.name in ("HMMA", "HGMMA") for it in function.code)
    products, enough = (("HMMA", "HGMMA"), 1) if tensor else (("FFMA",), 32)  # cells and divisions have a few FFMA
    enough = enough if has_product else 0
    found: list[tuple[set[int], int]] = []  # and the number of products and stores
    for body in loops_of(blocks):
        inside = code_of(body)
        if sum(it.name in products for it in inside) < enough or not any(map(is_output, inside)):
            continue
        work = sum(it.name in (*products, "STG", "STS") for it in inside)
        if not any(body < other and work == others for other, others in found):
            found = [(other, others) for other, others in found if not body < other] + [(body, work)]
    return code_of(set().union(*(body for body, _ in found)))
