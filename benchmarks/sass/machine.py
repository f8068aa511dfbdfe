"""A block on a multiprocessor: eight warps, each by one lane, that issue a kernel's instructions in order.

A scheduler, of four, issues one instruction a cycle, of the warp that has been able to for longest; a warp's next one
waits for its stall count, for the scoreboards in its mask, and for its unit (latencies.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from benchmarks.sass import latencies
from benchmarks.sass.disassembly import Function, Instruction
from benchmarks.sass.exchange import Exchange, Mailbox
from benchmarks.sass.launches import Launch
from benchmarks.sass.operands import immediate, predicate
from benchmarks.sass.semantics import Action, Unknown, action, bytes_of
from benchmarks.sass.warp import LANES, WARPS, Warp

SCHEDULERS = 4
MOST_ISSUES = 4_000_000  # of a run: more is a deadlock
_SHARED = ("LDS", "STS", "LDSM", "STSM", "ATOMS")
_XU = ("MUFU", "I2F", "F2I", "F2F", "POPC", "FLO", "BREV")
_LSU = ("SHFL", "LDC", "STAS", "SYNCS", "ATOM", "ATOMG", "RED", "REDG", "LDGSTS", "LD", "ST")
_BRANCHES = ("BRA", "BSSY", "BSYNC", "CALL", "RET", "EXIT", "WARPSYNC", "BREAK", "BRX", "JMP", "YIELD", "NOP")


class Fault(Exception):
    """The kernel did what it must not: an address outside of every array, or a wait that never ends."""


def unit_of(it: Instruction) -> str:
    name = it.name
    if name == "IMAD":
        return "imad"
    if name in ("FFMA", "FADD", "FMUL"):
        return "fma"
    if name in ("HFMA2", "HADD2", "HMUL2"):
        return "half"
    if name in _XU:
        return "xu"
    if name in ("HMMA", "IMMA"):
        return "tensor"
    if name.startswith("U") or name in ("R2UR", "S2UR"):
        return "uniform"
    if name in _SHARED or name in _LSU or name[:3] in ("LDG", "STG", "LDL", "STL"):
        return "lsu"
    return "branch" if name in _BRANCHES else "alu"


class Decoded:
    """An instruction, ready to be executed."""

    __slots__ = ("act", "condition", "control", "cycles", "it", "unit", "waits")

    def __init__(self, it: Instruction, function: Function) -> None:
        self.it = it
        self.control = it.control
        self.unit = unit_of(it)
        self.cycles = latencies.UNIT_CYCLES[self.unit]
        self.waits = [i for i in range(6) if it.control.wait >> i & 1]
        self.condition: Callable[[Any], bool] | None = predicate(it.predicate) if it.predicate else None
        self.act: Action = action(it, function)


class Machine:
    def __init__(
        self,
        function: Function,
        launch: Launch,
        offsets: list[tuple[int, int]],
        lane: int = 0,
        constants: dict[int, bytes] | None = None,
    ) -> None:
        self.function, self.launch = function, launch
        self.now = 0
        values = launch.values
        self.block = values["rank"]  # of the first team
        self.rank_in_cluster = values["rank"] if launch.regime == "cluster" else 0
        self.decoded: list[Decoded | None] = [None] * len(function.code)
        self.shared: dict[int, int] = {}
        self.shared_end = 0x400 + values["shared_bytes"]  # the first KiB is the system's
        self.exchange = Exchange(*launch.arrays["workspace"], max(values["slot_bytes"], 1))
        self.mailboxes: dict[int, Mailbox] = {}
        self.arrivals: dict[int, list[Warp]] = defaultdict(list)
        self.arrived: dict[int, int] = defaultdict(int)
        self.sectors: dict[int, int] = {}  # 32 bytes of global memory, and when L1 has them
        self.bank, self.constants = self._bank(offsets), constants or {}
        self.ranges = sorted((at, at + size, name) for name, (at, size) in launch.arrays.items())
        self.issue_free = [0] * SCHEDULERS
        self.unit_free = [dict.fromkeys(latencies.UNIT_CYCLES, 0) for _ in range(SCHEDULERS)]
        self.l1_free, self.l2_free, self.weights_free = 0, 0.0, 0.0
        shares = values["blocks"] * values["directions"]  # of the weights
        self.weight_bytes = min(latencies.WEIGHT_BYTES, latencies.DRAM_BYTES / shares)  # a cycle
        self.outputs: list[tuple[int, int, int]] = []  # time, warp, time step of the pass
        self.warps = [Warp(self, number, lane) for number in range(WARPS)]

    def _bank(self, offsets: list[tuple[int, int]]) -> dict[int, int]:
        """Constant bank 0, by bytes."""
        bank: dict[int, int] = {}

        def put(at: int, data: bytes) -> None:
            bank.update(zip(range(at, at + len(data)), data, strict=True))

        v = self.launch.values
        put(0, b"".join(x.to_bytes(4, "little") for x in (LANES * WARPS, 1, 1, v["blocks"] * v["teams"], 1, 1)))
        put(0x28, (0xFFFDC0).to_bytes(4, "little"))  # the stack
        if len(offsets) != len(self.launch.parameters):
            raise Fault(f"the kernel has {len(offsets)} parameters, launches.cpp {len(self.launch.parameters)}")
        for (at, size), data in zip(offsets, self.launch.parameters, strict=True):
            if size != len(data):
                raise Fault(f"a parameter has {size} bytes in the kernel and {len(data)} in launches.cpp")
            put(at, data)
        return bank

    def constant(self, bank: int, at: int, size: int) -> int:
        if bank:
            if at + size > len(self.constants.get(bank, b"")):
                raise Unknown(f"constant bank {bank} at {at:#x}")
            return int.from_bytes(self.constants[bank][at : at + size], "little")
        return sum(self.bank.get(at + i, 0) << 8 * i for i in range(size))

    def shared_words(self, at: int, size: int, it: Instruction) -> dict[int, int]:
        offset = at & 0xFFFFFF
        if not 0x400 <= offset <= self.shared_end - size:
            raise Fault(f"{at:#x} is outside of shared memory, at {it.where()}")
        return self.shared

    def array_of(self, at: int, size: int, it: Instruction) -> str:
        for first, last, name in self.ranges:
            if first <= at <= last - size:
                return name
        near = next((name for first, _, name in self.ranges if first >> 32 == at >> 32), "no array")
        raise Fault(f"{at:#x} is outside of every array ({near}), at {it.where()}")

    def _is_weight(self, at: int) -> bool:
        first, size = self.launch.arrays.get("weight_hh", (0, 0))
        return first <= at < first + size

    def load(self, at: int, size: int, it: Instruction) -> list[int]:
        count = (size + 3) // 4
        if not self.exchange.contains(at):
            self.array_of(at, size, it)
            return [0] * count
        return [self.exchange.load(at + 4 * i, self.now) for i in range(count)]

    def store(self, warp: Warp, at: int, size: int, words: list[int], it: Instruction) -> None:
        warp.last_store = self.now
        if self.exchange.contains(at):
            for i, word in enumerate(words):
                self.exchange.store(at + 4 * i, word, max(self.now, self.l1_free))
            return
        name = self.array_of(at, size, it)
        if name in ("output", "grad_x"):
            step = (at - self.launch.arrays[name][0]) // self.launch.values["step_bytes"]
            self.outputs.append((self.now, warp.number, step))

    def reduce(self, warp: Warp, at: int, value: int, it: Instruction) -> None:
        """An addition of every block of the team to a word of the exchange."""
        if not self.exchange.contains(at) or "ADD" not in it.modifiers:
            raise Unknown(f"a reduction that is no addition to the workspace: {it.where()}")
        warp.last_store = self.now
        self.exchange.add(at, value * self.launch.values["blocks"], max(self.now, self.l1_free))

    def mailbox(self, at: int) -> Mailbox:
        if at not in self.mailboxes:
            self.mailboxes[at] = Mailbox(self.launch.values["blocks"], self.launch.values["received_bytes"])
        return self.mailboxes[at]

    def arrive(self, warp: Warp, number: int, count: int, waits: bool, latency: int) -> None:
        self.arrived[number] += 1
        if waits:
            warp.blocked = True
            self.arrivals[number].append(warp)
        if self.arrived[number] < count:
            return
        for other in self.arrivals.pop(number, []):
            other.blocked = False
            other.wait_until = other.ready = max(other.ready, self.now + latency)
            self._prepare(other)
        self.arrived[number] = 0

    # Timing ------------------------------------------------------------------------------------------------------

    def decode(self, position: int) -> Decoded:
        found = self.decoded[position]
        if found is None:
            found = self.decoded[position] = Decoded(self.function.code[position], self.function)
        return found

    def _prepare(self, warp: Warp) -> None:
        """The earliest issue of a warp's next instruction, but for what warps share."""
        base = warp.ready
        for i in self.decode(warp.at).waits:
            base = max(base, warp.scoreboards[i])
        warp.base = base

    def run(self) -> None:
        """Until all warps have exited."""
        for warp in self.warps:
            self._prepare(warp)
        issues = 0
        while True:
            best, when = None, 0
            for warp in self.warps:
                if warp.done or warp.blocked:
                    continue
                scheduler = warp.number % SCHEDULERS
                t = max(warp.base, self.issue_free[scheduler])
                decoded = self.decoded[warp.at]
                assert decoded is not None
                t = max(t, self.unit_free[scheduler][decoded.unit])
                if best is None or t < when or (t == when and warp.base < best.base):
                    best, when = warp, t
            if best is None:
                break
            self._issue(best, when)
            issues += 1
            if issues > MOST_ISSUES:
                places = ", ".join(f"{w.number}: {self.function.code[w.at].where()}" for w in self.warps if not w.done)
                raise Fault(f"no end after {issues} instructions: {places}")
        waiting = [w for w in self.warps if not w.done]
        if waiting:
            places = ", ".join(f"{w.number}: {self.function.code[w.at].where()}" for w in waiting)
            raise Fault(f"warps wait at a barrier for others that do not come: {places}")

    def _issue(self, warp: Warp, now: int) -> None:
        decoded = self.decoded[warp.at]
        assert decoded is not None
        self.now = now
        scheduler, control, it = warp.number % SCHEDULERS, decoded.control, decoded.it
        warp.log.append((now, warp.at))
        self.issue_free[scheduler] = now + 1
        self.unit_free[scheduler][decoded.unit] = now + decoded.cycles
        warp.ready = now + max(control.stall, 1)
        warp.wait_until = 0
        follows: int | None = None
        if decoded.condition is None or decoded.condition(warp):
            follows = decoded.act(warp)
            self._latency(warp, it, now)
        if follows is None:
            warp.at += 1
        else:
            warp.at = self.function.index[follows]
            warp.ready = max(warp.ready, now + latencies.TAKEN_BRANCH)
        if not warp.done and not warp.blocked:
            self._prepare(warp)

    def _latency(self, warp: Warp, it: Instruction, now: int) -> None:
        """Sets the scoreboards; blocks the warp where the instruction does."""
        name, control = it.name, it.control
        if name == "MEMBAR":
            if {"GPU", "SYS"} & set(it.modifiers):
                stored = warp.last_store + latencies.STORE_AND_FENCE if warp.last_store >= 0 else 0
                warp.ready = max(warp.ready, now + latencies.FENCE_ALONE, stored)
                warp.last_store = -1
        elif name == "CCTL":
            self.sectors.clear()
        elif name == "UCGABAR_WAIT":
            self.arrive(warp, -1, WARPS, True, latencies.CLUSTER_BARRIER)
        elif name == "NANOSLEEP":
            warp.ready = max(warp.ready, now + latencies.NANOSLEEP)
        elif name == "LDGDEPBAR":
            warp.copied.append(warp.copying)
            return
        elif name == "DEPBAR":
            still = immediate(it.operands[-1]) or 0
            warp.ready = max([warp.ready, *warp.copied[: len(warp.copied) - still]])
            return
        if control.write == 7 and control.read == 7 and unit_of(it) != "lsu":
            return
        turn, done = self._memory(warp, it, now)
        if control.write != 7:
            warp.scoreboards[control.write] = max(warp.scoreboards[control.write], done)
        if control.read != 7:
            warp.scoreboards[control.read] = max(warp.scoreboards[control.read], turn + latencies.OPERANDS_READ)

    def _memory(self, warp: Warp, it: Instruction, now: int) -> tuple[int, int]:
        """When an instruction's operands are taken, and when its result is there."""
        name = it.name
        if name in _SHARED:
            wavefronts = max(1, bytes_of(it) * LANES // 128) if name != "LDSM" else int(it.modifiers[-1])
            turn = max(now, self.l1_free)
            self.l1_free = turn + wavefronts
            return turn, turn + latencies.LATENCY["LDS"] + wavefronts - 1
        if name in ("LDG", "LDGSTS"):
            if "STRONG" in it.modifiers or self.exchange.contains(warp.touched):
                turn = max(now, int(self.l2_free))
                self.l2_free = max(now, self.l2_free) + bytes_of(it) * LANES / latencies.L2_BYTES
                return turn, turn + latencies.L2_LOAD
            sector, turn = warp.touched >> 5, max(now, self.l1_free)
            self.l1_free = turn + 1
            arrives = turn + latencies.DRAM_LOAD
            if self._is_weight(warp.touched):
                begins = max(turn, int(self.weights_free))
                self.weights_free = max(turn, self.weights_free) + bytes_of(it) * LANES / self.weight_bytes
                arrives = begins + latencies.WEIGHT_LOAD
            done = max(turn + latencies.L1_LOAD, self.sectors.setdefault(sector, arrives))
            if name == "LDGSTS":
                warp.copying = max(warp.copying, done)
            return turn, done
        if name == "STG":
            turn = max(now, self.l1_free)
            self.l1_free = turn + latencies.STORE_CYCLES
            return turn, turn
        if name == "SYNCS":
            return now, max(now + latencies.LATENCY["SYNCS"], warp.wait_until + 10)
        return now, now + latencies.LATENCY.get(name, 20)


__all__ = ["Fault", "Machine", "Unknown"]
