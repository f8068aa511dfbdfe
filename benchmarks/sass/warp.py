"""The state of a warp, as the functions of its instructions see it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.sass import latencies
from benchmarks.sass.disassembly import Instruction
from benchmarks.sass.operands import Unknown

if TYPE_CHECKING:
    from benchmarks.sass.machine import Machine

WARPS, LANES = 8, 32


class Warp:
    """One warp, by one lane."""

    def __init__(self, machine: Machine, number: int, lane: int) -> None:
        self.machine, self.number, self.lane = machine, number, lane
        self.r, self.ur = [0] * 260, [0] * 68
        self.p, self.up = [False] * 8, [False] * 8
        self.local: dict[int, int] = {}
        self.at = 0  # position of the next instruction
        self.base = self.ready = 0
        self.scoreboards = [0] * 6
        self.done = self.blocked = False
        self.touched = 0
        self.last_store = -1  # since its last fence
        self.copying, self.copied = 0, list[int]()  # when asynchronous copies arrive: of the open group, of the others
        self.wait_until = 0  # of the instruction that is being issued
        self.log: list[tuple[int, int]] = []  # times of issue, positions

    # Called by instructions ------------------------------------------------------------------------------------

    def constant(self, bank: int, at: int, size: int) -> int:
        return self.machine.constant(bank, at, size)

    def special(self, name: str) -> int:
        if name == "SRZ":
            return 0
        if name.startswith(("SR_CLOCK", "SR_GLOBALTIMER")):
            return self.machine.now
        values = {
            "SR_TID.X": self.number * LANES + self.lane,
            "SR_TID.Y": 0,
            "SR_TID.Z": 0,
            "SR_LANEID": self.lane,
            "SR_CTAID.X": self.machine.block,
            "SR_CTAID.Y": 0,
            "SR_CTAID.Z": 0,
            "SR_CgaCtaId": self.machine.rank_in_cluster,
            "SR_EQMASK": 1 << self.lane,
            "SR_LTMASK": (1 << self.lane) - 1,
        }
        if name not in values:
            raise Unknown(f"the special register {name}")
        return values[name]

    def load(self, space: str, at: int, size: int, it: Instruction) -> list[int]:
        count = (size + 3) // 4
        if space == "shared":
            memory = self.machine.shared_words(at, size, it)
        elif space == "local":
            memory = self.local
        else:
            return self.machine.load(at, size, it)
        return [_part(memory.get(at + 4 * i & ~3, 0), at, size) for i in range(count)]

    def store(self, space: str, at: int, size: int, words: list[int], it: Instruction) -> None:
        if space == "shared":
            memory = self.machine.shared_words(at, size, it)
        elif space == "local":
            memory = self.local
        else:
            self.machine.store(self, at, size, words, it)
            return
        for i, word in enumerate(words):
            memory[at + 4 * i & ~3] = _merged(memory.get(at + 4 * i & ~3, 0), word, at, size)

    def send(self, where: int, barrier: int, size: int) -> None:
        self.machine.mailbox(barrier & 0xFFFFFF).send(self.number, self.machine.now)

    def phase(self, barrier: int, parity: int, tries: bool) -> bool:
        machine = self.machine
        box = machine.mailbox(barrier & 0xFFFFFF)
        if box.seen[self.number] % 2 != parity:  # the phase before, which is complete
            return True
        at = box.complete_at(self.number)
        limit = latencies.TRY_WAIT_LIMIT if tries else 0
        if at is None or at > machine.now + limit:
            self.wait_until = machine.now + limit
            return False
        self.wait_until = at
        box.seen[self.number] += 1
        return True

    def arrive(self, barrier: int) -> None:
        """expect_tx: what is expected arrives with the phase."""

    def barrier_init(self, barrier: int) -> None:
        pass

    def barrier(self, number: int, threads: int, waits: bool) -> None:
        self.machine.arrive(self, number, (threads or LANES * WARPS) // LANES, waits, latencies.BLOCK_BARRIER)


def _part(word: int, at: int, size: int) -> int:
    return word >> 8 * (at & 3) & (1 << 8 * size) - 1 if size < 4 else word


def _merged(old: int, new: int, at: int, size: int) -> int:
    if size >= 4:
        return new
    mask = ((1 << 8 * size) - 1) << 8 * (at & 3)
    return old & ~mask | new << 8 * (at & 3) & mask
