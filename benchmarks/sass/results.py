"""What a simulated run says of a step, and of the start."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.sass import stages
from benchmarks.sass.disassembly import step_loop
from benchmarks.sass.launches import Case
from benchmarks.sass.machine import Fault, Machine

CLOCK_GHZ = 1.98
SHORT = 50  # steps of a short call
# What a warp waits for is behind these: the time until its next instruction is theirs.
_BLOCKING = ("BAR", "MEMBAR", "UCGABAR_WAIT")


@dataclass
class Result:
    label: str
    plan: str
    start: int  # cycles, until all warps are in the step loop
    cycles: float  # of a step
    instructions: float  # a warp and step, the mean over the warps
    critical: float  # of the warp that does the cell
    stage_cycles: dict[str, float]  # of that warp
    stage_instructions: dict[str, float]
    classes: dict[str, float]  # the mean over the warps
    critical_classes: dict[str, float]
    measured: tuple[int, int] | None

    @property
    def microseconds(self) -> float:
        return self.cycles / CLOCK_GHZ / 1000

    @property
    def start_microseconds(self) -> float:
        return self.start / CLOCK_GHZ / 1000

    @property
    def start_share(self) -> float:
        """Of a short call."""
        return self.start / (self.start + SHORT * self.cycles)


def start_of(machine: Machine) -> int:
    """When the last warp begins its first step. Some warps have none."""
    code, loop = machine.function.code, {it.address for it in step_loop(machine.function, machine.launch.has_product)}
    begun = [next((when for when, at in warp.log if code[at].address in loop), 0) for warp in machine.warps]
    if not any(begun):
        raise Fault(f"no warp comes to the step loop, of {len(loop)} instructions")
    return max(begun)


def result_of(case: Case, machine: Machine) -> Result:
    first: dict[int, int] = {}
    for when, _, step in machine.outputs:
        first.setdefault(step, when)
    times = list(first.values())
    if len(times) < case.T:
        raise Fault(f"{case.label}: outputs of {len(times)} steps were seen, of {case.T}")
    steps = case.T // 3
    begin, end = times[steps], times[2 * steps]
    code = machine.function.code
    counts: list[Counter[int]] = [
        Counter(position for when, position in warp.log if begin <= when < end) for warp in machine.warps
    ]
    writing = {warp for when, warp, _ in machine.outputs if begin <= when < end}
    critical = max(writing, key=lambda number: counts[number].total())
    cycles = dict.fromkeys(stages.STAGES, 0.0)
    instructions = dict.fromkeys(stages.STAGES, 0.0)
    log = machine.warps[critical].log
    for (earlier, before), (when, position) in pairwise(log):
        if begin < when <= end:
            blames = before if code[before].name in _BLOCKING else position
            cycles[stages.stage(code[blames])] += (when - earlier) / steps
            instructions[stages.stage(code[position])] += 1 / steps
    every: Counter[int] = sum(counts, Counter())

    def classes(counter: Counter[int], over: int) -> dict[str, float]:
        return stages.histogram((code[position], n / over) for position, n in counter.items())

    return Result(
        label=case.label,
        plan=machine.launch.plan(),
        start=start_of(machine),
        cycles=(end - begin) / steps,
        instructions=every.total() / steps / len(counts),
        critical=counts[critical].total() / steps,
        stage_cycles=cycles,
        stage_instructions=instructions,
        classes=classes(every, steps * len(counts)),
        critical_classes=classes(counts[critical], steps),
        measured=case.measured,
    )
