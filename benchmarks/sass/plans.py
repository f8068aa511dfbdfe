"""Simulates the shapes of docs/kernels.md with every plan they admit, for the cost model:

    python -m benchmarks.sass.plans --out DIR [--build DIR]
    python -m benchmarks.calibrate DIR

Writes DIR/check.json, which names no GPU: as benchmarks.gpu_check's, but with the times of simulated steps.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.common import arguments
from benchmarks.common.files import ROOT, write
from benchmarks.sass import launches
from benchmarks.sass.__main__ import compiled, simulate, version
from benchmarks.sass.machine import Fault
from benchmarks.sass.operands import Unknown

T = 1024  # of the record: a call's constant time is not simulated
GHZ = 1.98
FIELDS = ("shape", "row_warps", "blocks", "directions", "teams", "tiles", "columns", "groups", "k_groups")


def admitted(case: launches.Case, built: Path) -> list[launches.Case]:
    """The case with each of its plans."""
    found: dict[tuple[object, ...], launches.Case] = {}
    for regime, shape, row_warps in itertools.product(("block", "cluster", "grid"), range(3), (1, 2, 4, 8)):
        fields = {"regime": regime, "shape": str(shape), "row_warps": str(row_warps)}
        for tiles in (None, *(str(1 << n) for n in range(6))):
            pairs = tuple({**fields, **({"tiles": tiles} if tiles else {})}.items())
            of_plan = dataclasses.replace(case, filter=pairs)
            try:
                launch = launches.launch(built, of_plan)
            except RuntimeError:
                continue  # there is no such plan
            found.setdefault((launch.regime, *(launch.values[name] for name in FIELDS)), of_plan)
    return list(found.values())


def record(case: launches.Case, cubin: Path, built: Path) -> dict[str, Any] | None:
    """A measurement as benchmarks.calibrate reads it; None where the simulation does not follow the plan."""
    launch = launches.launch(built, case)
    try:
        result = simulate(case, cubin, built)
    except (Fault, Unknown, RuntimeError) as error:
        print(f"{case.label}, {launch.plan}: {error}", file=sys.stderr)
        return None
    values = launch.values
    rounds = -(-values["tiles"] // (values["teams"] // values["directions"]))
    launched = case.directions // values["directions"]
    plan = {name: values[name] for name in FIELDS} | {"regime": launch.regime, "tf32": 0}
    return {
        "cell": case.cell, "dtype": case.dtype, "T": T, "B": case.B, "H": case.H, "directions": case.directions,
        "pass": "backward" if case.backward else "forward", "plan": plan, "correct": True,
        "microseconds_per_step": round(result.cycles / GHZ / 1e3 * rounds * launched, 4),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=arguments.folder, required=True, help="folder for check.json")
    parser.add_argument("--build", type=Path, help="folder in which cubins are kept, by a hash of the sources")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.build or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        built = launches.program(ROOT, Path(temporary))
        cubins = {cell: compiled(ROOT, cell, folder) for cell in dict.fromkeys(case.cell for case in launches.CASES)}
        cases = [each for case in launches.CASES for each in admitted(case, built)]
        with ProcessPoolExecutor(2) as pool:
            found = list(
                pool.map(record, cases, [cubins[case.cell] for case in cases], itertools.repeat(built, len(cases)))
            )
    measured = [each for each in found if each]
    check = {
        "gpu": f"none: simulated from the machine code for sm_90a of {version(ROOT)} (benchmarks.sass.plans)",
        "device": {"multiprocessors": 132, "shared_memory": 227 << 10, "clusters": [66, 30, 15, 7], "clock_ghz": GHZ},
    }
    head = json.dumps({"gpu": check["gpu"], "device": check["device"]}, indent=1).removesuffix("\n}")
    records = ",\n  ".join(json.dumps(each) for each in measured)  # a line each
    write(options.out / "check.json", f'{head},\n "measured": [\n  {records}\n ]\n}}\n')
    print(f"{len(measured)} of {len(cases)} plans simulated: {options.out / 'check.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
