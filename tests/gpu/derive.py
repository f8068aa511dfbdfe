"""Measures how far from right the kernels of a CPU are, and writes it into bounds.py:

    python -m tests.gpu.derive [--only CELL ...]

That is: prnn's own, torch's, and what the CUDA kernels' arithmetic comes to (stand_in.py), at all sizes, with all
options, over several draws of each. A quarter of an hour on a core. Run it after a change of the checks' problems.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch

from prnn.cell_table import CELLS
from tests.gpu import bounds, memory_checks, recurrence_checks
from tests.gpu.compare import Errors, Measure
from tests.gpu.problems import OPTIONS
from tests.gpu.targets import CPU, STAND_IN, TORCH, prepare

SEEDS = 5
LARGE = 40_000  # T * B * H; beyond it roundings average out, and an operation takes long
Key = tuple[str, str, bool]  # cell, kind of arithmetic, is it a gradient?


def errors(wanted: list[str]) -> Iterator[tuple[str, str, Errors]]:
    """Of every case, target and seed: cell, kind, errors by result."""
    for case in recurrence_checks.cases():
        T, B, H = case.size
        for seed in range(SEEDS if case.cell in wanted else 0):
            turned = OPTIONS[(OPTIONS.index(case.options) + seed) % len(OPTIONS)]
            case = case if case.both else case._replace(options=turned)
            for target in (CPU, STAND_IN, TORCH):
                if case.kind not in target.kinds or (case.both and target.directions is None):
                    continue
                if T * B * H > LARGE and seed >= (1 if target is TORCH else 2):
                    continue
                yield case.cell, case.kind, recurrence_checks.measured(target, case, seed=seed)
    for cell in set(wanted) & set(CELLS):
        for target in (CPU, TORCH):
            yield cell, "float32", recurrence_checks.module_errors(target, cell)
    for memory in memory_checks.cases() if "memories" in wanted else ():
        T, B, H = memory.size[:3]
        for seed in range(1 if T * B * H > LARGE else SEEDS):
            for target in (CPU, TORCH):
                yield "memories", memory.kind, memory_checks.measured(target, memory, seed)


def worst(wanted: list[str]) -> dict[Key, Measure]:
    found: dict[Key, Measure] = {}
    for cell, kind, by_result in errors(wanted):
        for what, measure in by_result.items():
            key = cell, kind, "grad" in what
            norm, of_slice, bias = (abs(value) for value in measure)
            before = found.get(key, (0.0, 0.0, 0.0))
            found[key] = max(norm, before[0]), max(of_slice, before[1]), max(bias, before[2])
    return found


def as_text(table: bounds.Table) -> str:
    lines = ["TABLE: Table = {"]
    for cell, kinds in table.items():
        lines.append(f'    "{cell}": {{')
        for kind, pair in kinds.items():
            states, gradients = ("(" + ", ".join(f"{value:.1e}" for value in row) + ")" for row in pair)
            lines.append(f'        "{kind}": ({states}, {gradients}),')
        lines.append("    },")
    return "\n".join([*lines, "}", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*CELLS, "memories"]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="CELL")
    options = parser.parse_args()
    prepare()
    torch.set_num_threads(1)
    table = {cell: dict(kinds) for cell, kinds in bounds.TABLE.items() if cell not in options.only}
    found = worst(options.only)
    for cell, kind, gradient in sorted(found, key=lambda key: names.index(key[0])):
        if gradient:
            table.setdefault(cell, {})[kind] = (found[cell, kind, False], found[cell, kind, True])
    path = Path(bounds.__file__)
    before, begin, rest = path.read_text().partition("TABLE: Table = {")
    after = rest.partition("\n}\n")[2]
    assert begin, "bounds.py has no table"
    path.write_text(before + as_text(dict(sorted(table.items(), key=lambda item: names.index(item[0])))) + after)


if __name__ == "__main__":
    main()
