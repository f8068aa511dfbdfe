"""Tests and benchmarks of the CUDA kernels on a GPU, in one command and at most nine minutes:

    python -m benchmarks.gpu_check --out DIR [--parts build,checks,measure,...] [--shapes REGEX] [--rounds 9]
    python -m benchmarks.gpu_check --resume DIR          resumes an earlier check

    build       uses the existing native library if it supports this GPU, else builds it (benchmarks/gpu_build.py)
    checks      tests/gpu: every cell, dtype and regime against the reference, graphs, streams, devices
    measure     our operators alone, timed with CUDA events, in every regime that fits the layer (measure.py)
    kernels     whole module calls against cuDNN and, if installed, FlashRNN
    cells       cells written in Python: every ready cell against its equations, and calls beside a graphed Python loop,
                a loop over a compiled step, torch's scan and, if installed, snntorch and SpikingJelly
    micro       latencies and throughput of the primitives of the regimes (benchmarks/gpu_check/micro.cu)
    wait        a wait that times out raises a one-sentence error
    plans       more plans of the same layers, for `python -m benchmarks.calibrate DIR`
    graphed     a GEMM per step, as a CUDA graph, against the module
    sanitizer   compute-sanitizer's memcheck, racecheck and synccheck, if installed

Requires torch (a CUDA build), numpy, nvcc (unless the library was built beforehand) and a C++ compiler. Each check and
each measurement runs in a worker process with its own deadline: one that hangs, crashes or loses the GPU is recorded,
and the rest goes on; what does not fit into the time is recorded as not run. DIR gets check.json, which is valid at
all times (record.py), and a log of each part. Exit status: 0, or 1 if anything is wrong or was not run (but a part
whose tool is not installed is skipped), 2 without a GPU, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import groupby
from pathlib import Path

from benchmarks import gpu_build
from benchmarks.common.arguments import at_least, folder
from benchmarks.common.files import ROOT
from benchmarks.gpu_check.record import BAD, Record, Result, device, output_of
from benchmarks.gpu_check.workers import Group, Item, Supervisor

TOTAL_SECONDS = 530
# The time limit of each part, within the remaining total.
SECONDS = {
    "build": 300, "checks": 130, "measure": 100, "kernels": 120, "cells": 120, "micro": 60, "wait": 40, "plans": 90,
    "graphed": 60, "sanitizer": 120,
}  # fmt: skip
ITEM_SECONDS = 25.0
NO_REGIME = 4  # exit status of tests/gpu/wait_check.py where this GPU has no clusters
TOOLS = ("memcheck", "racecheck", "synccheck")
SANITIZED = (
    "rnn_tanh float32 T6 B9 H40",
    "lstm bfloat16 T6 B9 H40",
    "gru float16 T6 B9 H40",
    "memories list float32 T9",
)
PARALLEL_CHECKS = 8


class Check:
    """One run: its options, its record, and its deadline."""

    def __init__(self, options: argparse.Namespace, record: Record, out: Path) -> None:
        self.options, self.record, self.out = options, record, out
        self.end = time.monotonic() + options.seconds

    def deadline(self, part: str) -> float:
        return min(self.end, time.monotonic() + SECONDS[part])

    def worker(self, suite: str) -> list[str]:
        return [sys.executable, "-m", "benchmarks.gpu_check.worker", suite, str(self.options.rounds)]

    def run(self, part: str, groups: Iterable[Group], parallel: int = 1, deadline: float | None = None) -> None:
        """Run the items that --shapes selects and that an earlier run has not completed."""
        chosen = []
        for group in groups:
            selected = [item for item in group.items if re.search(self.options.shapes, item.name)]
            left = self.record.open_items(part, [item.name for item in selected])
            if left:
                chosen.append(dataclasses.replace(group, items=[item for item in selected if item.name in left]))

        def done(name: str, result: Result) -> None:
            if result["status"] in BAD:
                print(f"    {name}: {result['status']}: {result.get('why', '')}", flush=True)
            self.record.add(part, name, result)

        deadline = deadline or self.deadline(part)
        Supervisor(self.out / f"{part}.txt", done, deadline, partial(self.record.begin, part)).run(chosen, parallel)

    def logged(self, part: str) -> gpu_build.Run:
        return gpu_build.logged(self.out / f"{part}.txt", self.deadline(part))


def build(check: Check) -> Result:
    outcome = gpu_build.prepare(check.out / "build.txt", SECONDS["build"], check.logged("build"))
    return {"status": "ok" if outcome.ok else "failed", **dataclasses.asdict(outcome)}


def checks(check: Check) -> Result:
    from tests.gpu.checks import CHECKS, group

    command = check.worker("checks")
    by_group = groupby(sorted(CHECKS, key=group), group)
    groups = [Group([Item(name, ITEM_SECONDS) for name in names], command) for _, names in by_group]
    check.run("checks", groups, PARALLEL_CHECKS)
    return {}


def measure(check: Check) -> Result:
    from benchmarks.gpu_check import measure as measurements

    check.run("measure", [Group([Item(name, ITEM_SECONDS) for name in measurements.items()], check.worker("measure"))])
    return {}


def plans(check: Check) -> Result:
    from benchmarks.gpu_check import measure as measurements

    check.run("plans", [Group([Item(name, ITEM_SECONDS) for name in measurements.plan_items()], check.worker("plans"))])
    return {}


def kernels(check: Check) -> Result:
    check.run("kernels", cases(check, "kernels"))
    return {}


def graphed(check: Check) -> Result:
    check.run("graphed", cases(check, "graphed"))
    return {}


def cells(check: Check) -> Result:
    from benchmarks.gpu_check.worker import MODES
    from benchmarks.kernels.cases import GPU_CELLS
    from tests.gpu.cell_checks import CHECKS

    command, deadline = check.worker("cells"), check.deadline("cells")
    by_cell = groupby(sorted(CHECKS, key=_first_word), _first_word)
    groups = [Group([Item(name, ITEM_SECONDS) for name in names], command) for _, names in by_cell]
    check.run("cells", groups, PARALLEL_CHECKS, deadline)
    timed = [Item(f"{case.name} | {mode}", ITEM_SECONDS) for case in GPU_CELLS for mode in MODES]
    check.run("cells", [Group(timed, command)], deadline=deadline)
    return {}


def _first_word(text: str) -> str:
    return text.split()[0]


def cases(check: Check, suite: str) -> list[Group]:
    from benchmarks.gpu_check.worker import MODES
    from benchmarks.kernels.cases import GPU

    names = [f"{case.name} | {mode}" for case in GPU for mode in MODES if suite == "kernels" or case.plain]
    return [Group([Item(name, ITEM_SECONDS) for name in names], check.worker(suite))]


def micro(check: Check) -> Result:
    """One line for each measurement; its compilation has a time of its own."""
    nvcc = gpu_build.nvcc()
    if nvcc is None:
        return {"status": "skipped", "why": "there is no nvcc"}
    # Asked in another process, which may hang: this one must not.
    outcome = gpu_build.probe_apart(check.logged("micro"))
    if not outcome.get("architectures"):
        return {"status": "failed", "why": outcome["why"]}
    compiled = gpu_build.logged(check.out / "micro.txt", check.end)
    program = gpu_build.compile_micro(compiled, check.out, nvcc, outcome["architectures"][0])
    status, output = check.logged("micro")([str(program)], {}, SECONDS["micro"])
    program.unlink()
    lines = gpu_build.micro_lines(output)
    wrong = [line for line in lines if "error" in line]
    measured: Result = {"status": "failed" if status or wrong else "ok", "measured": lines}
    return measured | ({"why": f"exit status {status}, {len(wrong)} errors"} if status or wrong else {})


def wait(check: Check) -> Result:
    call, outcome, tried = check.logged("wait"), Result(), []
    for regime in ("grid", "cluster"):
        status, output = call([sys.executable, "-m", "tests.gpu.wait_check", regime], {}, ITEM_SECONDS)
        outcome[regime] = output.strip().splitlines()[-1] if output.strip() else gpu_build.ending(status)
        tried += [regime] * (status == 0)
        if status not in (0, NO_REGIME):
            return outcome | {"status": "failed", "why": f"{regime}: {outcome[regime]}"}
    return outcome | ({"status": "ok"} if tried else {"status": "skipped", "why": str(outcome["grid"])})


def sanitizer(check: Check) -> Result:
    from tests.gpu.checks import CHECKS

    if shutil.which("compute-sanitizer") is None:
        return {"status": "skipped", "why": "compute-sanitizer is not installed"}
    # Freed memory is to be freed, for the tool to see it; a slowed kernel may wait.
    environment = (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"), ("PRNN_CUDA_WAIT_SECONDS", "0"))
    names = [name for name in CHECKS if name.startswith(SANITIZED)]
    began, budget = time.monotonic(), min(SECONDS["sanitizer"], check.end - time.monotonic()) / len(TOOLS)
    for number, tool in enumerate(TOOLS):
        # The tool's own exit status says whether it saw an error: a check a process.
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *check.worker("sanitizer")]
        groups = [Group([Item(f"{tool}: {name}", ITEM_SECONDS)], command, environment, True) for name in names]
        check.run("sanitizer", groups, 4, began + (number + 1) * budget)
    return {}


PARTS: dict[str, Callable[[Check], Result]] = {
    "build": build, "checks": checks, "measure": measure, "kernels": kernels, "cells": cells, "micro": micro,
    "wait": wait, "plans": plans, "graphed": graphed, "sanitizer": sanitizer,
}  # fmt: skip


WHOLE = ("micro", "wait")  # parts without items: done or not


def run_part(check: Check, part: str) -> Result:
    """A part's result; of one that consists of items, how many had which end."""
    began = time.monotonic()
    if began >= check.end:
        return {"status": "not run", "why": "out of time"}
    try:
        outcome = PARTS[part](check)
    except Exception as error:  # the parts that follow have their own reasons to run
        outcome = {"status": "failed", "why": f"{type(error).__name__}: {error}"}
    if "status" not in outcome:
        counts: dict[str, int] = {}
        for result in check.record.content["results"].get(part, {}).values():
            counts[str(result["status"])] = counts.get(str(result["status"]), 0) + 1
        outcome = {"status": "failed" if set(counts) & set(BAD) or not counts else "ok", "counts": counts}
        if not counts:
            outcome["why"] = f"there is no item that --shapes {check.options.shapes!r} names"
    return outcome | {"seconds": round(time.monotonic() - began, 1)}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=folder, metavar="DIR", help="folder for the results, check.json")
    parser.add_argument("--resume", type=folder, metavar="DIR", help="the --out of a run that goes on")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them, comma-separated: %(default)s")
    parser.add_argument("--shapes", default="", help="only items whose name matches this regular expression")
    parser.add_argument("--rounds", type=at_least(1), default=9, help="of each measurement (%(default)s)")
    parser.add_argument("--seconds", type=at_least(1), default=TOTAL_SECONDS, help="that the whole may take")
    parser.add_argument("--commit", help="what is measured, where the sources are here without their repository")
    options = parser.parse_args(arguments)
    options.parts = [part.strip() for part in options.parts.split(",")]
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"--parts {','.join(sorted(unknown))!r}: expected some of {', '.join(PARTS)}")
    try:
        re.compile(options.shapes)
    except re.error as error:
        parser.error(f"--shapes {options.shapes} is no regular expression: {error}")
    if (options.out is None) == (options.resume is None):
        parser.error("either --out DIR, where the results go, or --resume DIR, where they went")
    if options.resume is not None:
        try:
            outcome = json.loads((options.resume / "check.json").read_text())
        except (OSError, ValueError, RecursionError) as error:
            parser.error(f"--resume {options.resume}: there is no check.json that can be read ({error})")
        if not is_a_check(outcome):
            parser.error(f"--resume {options.resume}: its check.json is none of a GPU check")
    elif (options.out / "check.json").exists():
        parser.error(f"--out {options.out}: there is a check.json already; --resume goes on, or choose another folder")
    return options


def is_a_check(content: object) -> bool:
    """Whether results may be added to it: parts and items have a status."""
    if not isinstance(content, dict) or not all(isinstance(content.get(key), dict) for key in ("parts", "results")):
        return False
    items = [
        item for part in content["results"].values() for item in (part.values() if isinstance(part, dict) else [0])
    ]
    every = [*content["parts"].values(), *items]
    return all(isinstance(each, dict) and isinstance(each.get("status"), str) for each in every)


def differs(record: Record, here: dict[str, object]) -> str:
    """Why results of here must not go beside those of an earlier run; "" if they may."""
    for key, value in here.items():
        earlier = record.content.get(key, value)
        # The earlier run's own file may be what makes the tree dirty.
        if str(earlier).removesuffix("-dirty") != str(value).removesuffix("-dirty"):
            return f"was measured with {key} {earlier}, and this is {value}: choose another --out"
    return ""


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    print(f"from {ROOT}", flush=True)
    import torch

    if not torch.cuda.is_available():
        reason = "is built without CUDA" if torch.version.cuda is None else "sees no CUDA device"
        print(f"gpu_check: torch {torch.__version__} {reason}: there is nothing to check", file=sys.stderr)
        return 2
    out: Path = (options.resume or options.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    record = Record(out, resume=options.resume is not None)
    commit = options.commit or output_of("git", "describe", "--always", "--dirty", "--abbrev=12") or "unknown"
    nvidia = device()
    here = {"commit": commit, "torch": torch.__version__, "cuda": torch.version.cuda, "gpu": nvidia.get("name")}
    if why := differs(record, here):
        print(f"gpu_check: --resume {options.resume}: {why}", file=sys.stderr)
        return 2
    record.set(**here, nvidia_smi=nvidia)
    record.clocks.start()
    check = Check(options, record, out)
    try:
        for part in options.parts:
            print(f"{part}:", flush=True)
            earlier = record.content["parts"].get(part, {})
            if part in WHOLE and earlier.get("status") == "ok":
                print("    done in an earlier run", flush=True)
                continue
            outcome = run_part(check, part)
            if outcome["status"] == "not run" and earlier:
                outcome = earlier  # what was measured stays
            record.part(part, **outcome)
            shown = {key: value for key, value in outcome.items() if key != "measured"}
            print(f"    {json.dumps(shown)}", flush=True)
            if part == "build" and outcome["status"] != "ok":
                break
    except KeyboardInterrupt:
        print(f"gpu_check: interrupted; --resume {out} goes on", file=sys.stderr)
        return 130
    finally:
        record.clocks.stop()
        record.write()
    print_table(record)
    return 0 if all(outcome["status"] in ("ok", "skipped") for outcome in record.content["parts"].values()) else 1


def print_table(record: Record) -> None:
    """Microseconds a step: of our operators alone, then of whole calls beside the peers'."""
    for name, result in record.content["results"].get("measure", {}).items():
        if isinstance(result.get("plan"), dict) and "microseconds_per_step" in result:
            plan, off = result["plan"], "" if result["correct"] else f" WRONG by {result['error']}"
            print(
                f"{name:58} {result['microseconds_per_step']:7.3f} us/step, {plan['microseconds']:.2f} expected, "
                f"{plan['regime']} {plan['teams']} x {plan['blocks']}, {result['clock_mhz']} MHz{off}"
            )
    for name, result in record.content["results"].get("kernels", {}).items():
        if "milliseconds" in result:
            took = {peer: f"{1e3 * ms['median'] / result['T']:.2f}" for peer, ms in result["milliseconds"].items()}
            print(f"{name:58} us/step {took} {'WRONG' if 'disagreement' in result else ''}")


if __name__ == "__main__":
    sys.exit(main())
