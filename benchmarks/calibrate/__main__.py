"""Fit the constants of the CUDA kernels' cost model (prnn/csrc/cuda/costs.h) to the measurements of a GPU check:

    python -m benchmarks.calibrate DIR [--out FILE]

Reads DIR/check.json: {"gpu", "device", "measured": [...]}, where each record names a layer (cell, dtype, T, B, H,
directions, pass), the plan that ran it (what the operator cuda_plan says of it), "correct", "microseconds_per_step" and
perhaps "clock_mhz". Prints the constants and how well they are determined, the error of every measurement before and
after, which regime the model would choose, and a patch for `git apply`; --out writes the patch alone.

The error is the log of predicted over measured, so that fast and slow layers have equal weight. A constant that no
measurement depends on keeps its value. Cycles are converted to microseconds with the clock sampled while the kernel
ran, or else with the device's maximum, which a GPU may not sustain. The constant time of a call (launch, loading the
weights) is fitted too if T is recorded, and counted before and after; it is not part of the model.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.calibrate import cost_model
from prnn.errors import UserError

CELLS = cost_model.cells()
DTYPES = ("float32", "bfloat16", "float16")
REGIMES = ("block", "cluster", "grid")
PASSES = ("forward", "backward")
PLAN = ("shape", "row_warps", "blocks", "directions", "teams", "tiles", "columns", "groups", "k_groups", "tf32")
CALL_MICROSECONDS = 10.0  # a guess to begin with
MOST = 1 << 20  # of a plan's numbers
SENSITIVITY = 1e-3  # below that, a constant does not affect the measurements
# Constants stay whose error, a root mean square, is below GOOD, or is not brought below GAIN of it by others.
GOOD, GAIN = 0.01, 0.95
POOR = 0.3  # of PRIOR; above that, the measurements hardly determine a constant


@dataclass(frozen=True)
class Measurement:
    layer: str
    regime: str
    plan: str  # in words
    line: str  # as plan_costs.cpp reads it
    launches: int  # one after the other: two directions, each of which has a plan of its own
    steps: float  # of a call; infinite where it is not known
    microseconds: float  # of a step of all launches
    sampled: bool  # its clock, while it ran


def read(folder: Path) -> tuple[dict[str, Any], list[Measurement]]:
    """The whole file, and the measurements of kernels with correct results. Raises ``UserError``."""
    path = folder / "check.json"
    try:
        check = json.loads(path.read_text())
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): give the folder that the GPU check wrote."
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}.") from error
    if not isinstance(check, dict) or not isinstance(check.get("measured"), list):
        raise UserError(f'{path} has no list "measured": give the folder of a GPU check that measured kernels.')
    records = []
    for position, record in enumerate(check["measured"]):
        try:
            if record["correct"] is True:
                records.append(measurement(record, check.get("device")))
        except (KeyError, TypeError, ValueError, IndexError, ArithmeticError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{path}: record {position} of measured is damaged: {reason}.") from error
    return check, records


def one_of(names: tuple[str, ...], name: object) -> int:
    if name not in names:
        raise ValueError(f"{name!r} is none of {', '.join(names)}")
    return names.index(str(name))


def plan_numbers(plan: dict[str, Any], directions: int) -> dict[str, int]:
    """Validate the fields of PLAN that the cost model divides by or uses as an index."""
    numbers = {name: int(plan[name]) for name in PLAN}
    positive = all(0 < numbers[name] < MOST for name in PLAN if name not in ("shape", "tf32"))
    known = numbers["shape"] in (0, 1, 2) and numbers["row_warps"] in (1, 2, 4, 8)
    known = known and numbers["tf32"] in (0, 1) and directions in (1, 2)
    if not (positive and known and numbers["directions"] <= min(directions, numbers["teams"])):
        raise ValueError(f"there is no plan {plan} for {directions} directions")
    return numbers


def measurement(record: dict[str, Any], device: dict[str, Any]) -> Measurement:
    """One record, checked; KeyError, TypeError or ValueError where it is damaged."""
    plan, directions = record["plan"], record["directions"]
    numbers = plan_numbers(plan, directions)
    clock, seen, steps = (
        record.get("clock_mhz"),
        float(record["microseconds_per_step"]),
        float(record.get("T") or "inf"),
    )
    clock_ghz = float(device["clock_ghz"]) if clock is None else float(clock) / 1e3
    if not (1e-4 < seen < 1e7 and 0.01 < clock_ghz < 100 and steps >= 1):
        raise ValueError(f"{seen} microseconds a step, {steps} steps, at {clock_ghz} GHz")
    named = ((CELLS, record["cell"]), (DTYPES, record["dtype"]), (PASSES, record["pass"]), (REGIMES, plan["regime"]))
    cell, dtype, backward, regime = (one_of(names, name) for names, name in named)
    values = (cell, dtype, backward, clock_ghz, regime, *numbers.values())
    sides = " two directions" if directions == 2 else ""
    words = f"{plan['regime']} {numbers['teams']} x {numbers['blocks']}, shape {numbers['shape']}, "
    words += f"{numbers['row_warps']} x {8 // numbers['row_warps']} warps{', tf32' if numbers['tf32'] else ''}"
    return Measurement(
        layer=f"{record['cell']} {record['dtype']} H{record['H']} B{record['B']}{sides} {record['pass']}",
        regime=plan["regime"],
        plan=words,
        line=" ".join(map(str, values)),
        launches=directions // numbers["directions"],
        steps=steps,
        microseconds=seen,
        sampled=clock is not None,
    )


class Calibration:
    """What is known of a result file: predictions before and after, constants, how well they are determined."""

    def __init__(self, records: list[Measurement], text: str, program: cost_model.Program) -> None:
        self.old = cost_model.constants(text)
        if len(records) < len(self.old):
            raise UserError(
                f"{len(records)} correct measurements with a plan: {len(self.old)} constants need at least as many."
            )
        self.records, self.program = records, program
        self.measured = np.array([record.microseconds for record in records])
        start = np.array([*self.old.values(), CALL_MICROSECONDS])
        self.fit = cost_model.fit(self.predict, start, self.measured)
        self.idle = self.fit.sensitivity < SENSITIVITY
        values = np.where(self.idle, start, [float(cost_model.number(value)) for value in self.fit.values])
        self.call = float(values[-1])
        self.new = dict(zip(self.old, map(float, values[:-1]), strict=True))
        self.before, self.after = self.predict(
            np.array([[*costs.values(), self.call] for costs in (self.old, self.new)])
        )
        errors = np.log(np.array([self.before, self.after]) / self.measured)
        old_error, new_error = np.sqrt((errors**2).mean(1))
        # Whether the new constants predict better. If not, the old ones stay: fits drift among equally good optima.
        self.gained = bool(old_error > GOOD and new_error < GAIN * old_error)

    def predict(self, sets: np.ndarray) -> np.ndarray:
        """Constants and a call's microseconds [K, P + 1] -> microseconds of a step [K, N]."""
        launches = np.array([record.launches for record in self.records])
        steps = np.array([record.steps for record in self.records])
        microseconds = self.program.microseconds([record.line for record in self.records], sets[:, :-1])
        return launches * (microseconds + sets[:, -1:] / steps)

    def choices(self, predicted: np.ndarray) -> list[tuple[str, float]]:
        """Of each layer measured in more than one regime: that of the plan expected to be quickest, and by what factor
        the quickest of all would have been quicker.
        """
        layers: dict[str, list[int]] = {}
        for i, record in enumerate(self.records):
            layers.setdefault(record.layer, []).append(i)
        choices = []
        for members in layers.values():
            if len({self.records[i].regime for i in members}) > 1:
                chosen = min(members, key=lambda i: predicted[i])
                choices.append((self.records[chosen].regime, self.measured[chosen] / self.measured[members].min()))
        return choices


def constants_table(done: Calibration) -> list[str]:
    lines = [
        "| constant | before | after | standard deviation | a percent of it moves a step by up to |",
        "|---|---|---|---|---|",
    ]
    before = [*done.old.values(), CALL_MICROSECONDS]
    for i, (name, value) in enumerate([*done.new.items(), ("(a call, microseconds)", done.call)]):
        known = f"{100 * done.fit.uncertainty[i]:.1f} %"
        if done.idle[i]:
            known = "kept: nothing measured depends on it"
        elif done.fit.uncertainty[i] > POOR * cost_model.PRIOR:
            known += ", poorly determined"
        moved = f"{done.fit.sensitivity[i]:.2f} %"
        lines.append(f"| {name} | {before[i]:.10g} | {value:.10g} | {known} | {moved} |")
    return lines


def errors_table(done: Calibration) -> list[str]:
    lines = ["| layer | plan | measured | before | | after | |", "|---|---|---|---|---|---|---|"]
    for i, record in enumerate(done.records):
        seen, old, new = done.measured[i], done.before[i], done.after[i]
        errors = (f"{value:.3f} | {100 * (value / seen - 1):+.1f} %" for value in (old, new))
        lines.append(f"| {record.layer} | {record.plan} | {seen:.3f} | {' | '.join(errors)} |")
    return lines


def summary(done: Calibration) -> list[str]:
    lines = []
    quickest = done.choices(done.measured)
    for name, predicted in (("before", done.before), ("after", done.after)):
        off = 100 * np.abs(predicted / done.measured - 1)
        line = f"{name}: median error {np.median(off):.1f} %, worst {off.max():.1f} %"
        if quickest:
            chosen = done.choices(predicted)
            right = sum(mine[0] == best[0] for mine, best in zip(chosen, quickest, strict=True))
            line += f"; the quickest regime for {right} of {len(quickest)} layers measured in several, and plans that "
            line += (
                f"take {100 * (np.mean([excess for _, excess in chosen]) - 1):.1f} % longer than the quickest measured"
            )
        lines.append(f"{line}.")
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="DIR", type=Path, help="where the GPU check wrote check.json")
    parser.add_argument("--out", metavar="FILE", type=Path, help="write the patch there, too")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            check, records = read(options.folder)
            text = (cost_model.ROOT / cost_model.COSTS).read_text()
            done = Calibration(records, text, cost_model.Program(Path(temporary)))
        patch = cost_model.patch(text, done.new if done.gained else done.old)
    except UserError as error:
        print(f"calibrate: {error}", file=sys.stderr)
        return 2
    sampled = sum(record.sampled for record in records)
    of = f"{check.get('gpu', 'a GPU')!s}, commit {check.get('commit', 'unknown')!s}".encode("ascii", "replace").decode()
    print(f"{len(records)} correct measurements of {of}; the clock of {sampled} was sampled.\n")
    print("\n".join([*constants_table(done), "", "Microseconds a step:", "", *errors_table(done), "", *summary(done)]))
    print(f"What remains is a standard deviation of {100 * done.fit.noise:.1f} %.")
    print(f"\n{patch}" if done.gained else "The present constants are as good: no patch.\n", end="")
    try:
        if options.out:
            options.out.write_text(patch)
    except OSError as error:
        print(f"calibrate: --out {options.out}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
