"""Results as tables in markdown."""

from __future__ import annotations

from benchmarks.common import markdown
from benchmarks.sass import stages
from benchmarks.sass.results import SHORT, Result


def summary(results: list[Result]) -> str:
    head = ["shape", "plan", "cycles a step", "us", "instructions a warp", "of the critical warp", "start"]
    rows = [
        [
            r.label, r.plan, f"{r.cycles:,.0f}", f"{r.microseconds:.2f}", f"{r.instructions:,.0f}",
            f"{r.critical:,.0f}", f"{r.start:,} ({r.start_microseconds:.1f}, {r.start_share:.0%})",
        ]
        for r in results
    ]  # fmt: skip
    return markdown.table(head, rows)


def by_stage(results: list[Result]) -> str:
    head = ["shape", *stages.STAGES]
    rows = [
        [r.label, *(f"{r.stage_cycles[s]:,.0f} ({r.stage_instructions[s]:,.0f})" for s in stages.STAGES)]
        for r in results
    ]
    return markdown.table(head, rows)


def by_class(results: list[Result]) -> str:
    names = [*stages.CLASSES, "divisions"]
    rows = [[r.label, *(f"{r.classes[n]:,.0f} / {r.critical_classes[n]:,.0f}" for n in names)] for r in results]
    return markdown.table(["shape", *names], rows)


def validation(results: list[Result]) -> str:
    rows = []
    for r in results:
        if r.measured is None:
            continue
        counted, cycles = r.measured
        rows.append([
            r.label, r.plan, f"{counted:,}", f"{r.instructions:,.0f} ({r.instructions / counted - 1:+.0%})",
            f"{cycles:,}", f"{r.cycles:,.0f} ({r.cycles / cycles - 1:+.0%})",
        ])  # fmt: skip
    if not rows:
        return ""
    head = ["shape", "plan", "instructions, H200", "simulated", "cycles, H200", "simulated"]
    return "\nBeside what was measured on an H200 (docs/kernels.md):\n\n" + markdown.table(head, rows) + "\n"


def page(results: list[Result], title: str) -> str:
    return "\n".join([
        title, "", summary(results), "",
        f"Start: cycles until all warps are in the step loop, with weights from DRAM; in brackets us, and the share of "
        f"a call of {SHORT} steps.", "",
        "Cycles of the warp that does the cell, by stage of its instructions; in brackets how many these are:", "",
        by_stage(results), "",
        "Instructions of a step by class, the mean over the warps / the warp that does the cell:", "",
        by_class(results), validation(results),
    ])  # fmt: skip
