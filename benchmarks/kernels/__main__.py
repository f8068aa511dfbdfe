"""prnn.RNN, GRU and LSTM against torch.nn, torch.compile, JAX and onnxruntime, and cells written in Python against a
Python loop, JAX and other packages, interleaved in one process.

    python -m benchmarks.kernels [--suite table|short|sweep|steps|threads|stacks|cells|gpu|memory|training_step ...]
        [--device cpu] [--threads 2] [--rounds 9] [--out benchmarks/results/MACHINE]
        [--peers torch,compile,jax,onnxruntime] [--cases REGEX]

    table           14 shapes, forward+backward and forward alone, all peers, with target speedups
    short           7 of them, torch.compile only if --peers names it (compiling takes minutes): `make bench`
    sweep           106 shapes of all cells, against torch.nn alone, to find where prnn is slower
    steps           252 calls of 1 to 8 steps, likewise, with prnn.keep_freed_memory for both
    threads         the sweep's shapes with one thread and with all of them, prnn alone
    stacks          9 stacks of few samples, against the same layers in modules of their own, called one after the
                    other (layers), and against one thread (one-thread)
    cells           8 layers of cells written in Python (prnn.cells), forward+backward, with target speedups over the
                    same equations as a loop in PyTorch (loop; unbound: peers/unbound_loop.py), over JAX, and over the
                    cell's own package: snntorch (lif), norse (alif; other equations), xlstm (slstm), speechbrain
                    (ligru); over the built-in GRU (builtin) for one written in Python
    gpu             7 shapes on a GPU (--device cuda): cuDNN, a GEMM per step as a CUDA graph, FlashRNN; also eagerly
                    (slow: tens of thousands of launches per call) if --peers names `steps`
    memory          peak memory of the table's shapes (peak_memory.py)
    training_step   whole training steps (training_step.py)

Forward+backward: from the output's gradient, the gradients of all weights and biases are computed, those of a cell's
parameters that are trained, and that of the input if I > 1; an input of one number per step is raw data, which needs no
gradient. Forward alone runs without gradients. Inputs are random, weights are the initial ones of torch.nn, or of
prnn.Recurrent, the same for all.

Correctness first: every contender's output and gradients are compared with torch.nn's, and those of a cell written in
Python with its equations run by the backend "reference", which is not timed. If one differs by more than TOLERANCE of a
tensor's largest element, the case reports that instead of a speed, and the run exits with status 1. Inputs of spiking
cells are such that no spike depends on rounding (spikes.py), and their spikes are compared as all outputs are.

A ratio is the peer's time over prnn's in the same round; a result is the median over rounds (smallest, largest).
Results go to OUT/kernels.json (short.json, sweep.json, ...), which `python -m benchmarks.report` renders.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterable

import torch

from benchmarks.common import machine, stats
from benchmarks.common.arguments import at_least, folder
from benchmarks.kernels import cases, floors
from benchmarks.kernels.cases import Case
from benchmarks.kernels.peers import (
    ALL_PEERS,
    OURS,
    OWN_PACKAGE,
    PEERS,
    REFERENCE,
    STACK_PEERS,
    Contender,
    Problem,
    build_all,
    build_reference,
    of_cell,
    torch_nn,
)
from prnn.training.malloc import keep_freed_memory

TOLERANCE = {"float32": 2e-4, "bfloat16": 5e-2, "float16": 1e-2}
SLOWEST_SECONDS = {"table": 5.0, "sweep": 1.0}  # of one call of torch.nn (bf16 without instructions for it: minutes)
WARM_CALLS = 8
Record = dict[str, object]


def compare(
    contenders: dict[str, Contender], tolerance: float, difference: stats.Difference = stats.relative_difference
) -> tuple[dict[str, float], dict[str, str]]:
    """Each contender's largest difference from the first, the reference, and a message for each that exceeds the
    tolerance.
    """
    reference, *others = contenders
    expected = contenders[reference].tensors()
    differences, wrong = {}, {}
    for name in others:
        contender = contenders[name]
        if not contender.compared:
            continue
        differences[name], tensor = stats.disagreement(contender.tensors(), expected, difference)
        if differences[name] > tolerance:
            wrong[name] = f"{name} differs from {reference} by {differences[name]:.2g} in {tensor}"
    return differences, wrong


def measure_case(
    problem: Problem,
    peers: list[str],
    rounds: int,
    slowest_seconds: float,
    sample_seconds: float = 0.02,
    on_gpu: bool = False,
) -> Record:
    """One case in one mode. No times, but "disagreement" if a contender is wrong, "skipped" if torch.nn is too slow.

    ``on_gpu``: differences are relative to norms, since single elements may differ where a mask of ReLU flips in 16
    bits; a wrong peer is left out and reported; wrong results of prnn keep their times, with "disagreement".
    """
    _, reference = build_reference(problem)
    if reference.timed:
        took = stats.once(reference.run)
        if took > slowest_seconds and (took := stats.once(reference.run)) > slowest_seconds:  # not by its first call
            return head(problem) | {"skipped": f"one call of torch.nn takes {took:.1f} s"}
    contenders, absent = build_all(problem, peers)
    record = measure_contenders(problem, contenders, rounds, sample_seconds, on_gpu)
    return record | {"absent": absent | record.get("absent", {})}


def head(problem: Problem) -> Record:
    record: Record = {"name": problem.case.name, "mode": "forward+backward" if problem.train else "forward"}
    return record | ({"input": problem.note} if problem.note else {})


def measure_contenders(
    problem: Problem,
    contenders: dict[str, Contender],
    rounds: int,
    sample_seconds: float = 0.02,
    on_gpu: bool = False,
) -> Record:
    case = problem.case
    difference = stats.norm_difference if on_gpu else stats.relative_difference
    differences, wrong = compare(contenders, TOLERANCE[case.dtype], difference)
    record = head(problem) | {"differences": {name: float(f"{value:.2g}") for name, value in differences.items()}}
    if on_gpu:
        contenders = {name: contender for name, contender in contenders.items() if name not in wrong or name == OURS}
        record |= {"absent": {name: why for name, why in wrong.items() if name != OURS}}
        record |= {"disagreement": [wrong[OURS]]} if OURS in wrong else {}
    elif wrong:
        return record | {"disagreement": list(wrong.values())}
    runs = {name: contender.run for name, contender in contenders.items() if contender.timed}
    seconds = stats.interleave(runs, rounds, sample_seconds)
    ratios = {name: stats.ratios(seconds[name], seconds[OURS]) for name in seconds if name != OURS}
    targets = case.targets if problem.train else {}
    return record | {
        "backend": contenders[OURS].note,
        "milliseconds": {name: stats.milliseconds(values) for name, values in seconds.items()},
        "ratios": ratios,
        "targets": targets,
        "met": {name: ratios[name]["median"] >= target for name, target in targets.items() if name in ratios},
    }


def kernel_figures(case: Case, train: bool, milliseconds: float, floor: floors.Floors) -> Record:
    """us/step, GFLOP/s and the share of the floor."""
    floor_seconds, bound = floor.seconds(case, train)
    return {
        "us_per_step": round(1e3 * milliseconds / case.T, 3),
        "gflops": round(case.flops(train) / milliseconds / 1e6, 1),
        "floor_ms": round(1e3 * floor_seconds, 4),
        "floor_bound": bound,
        "floor_share": round(1e3 * floor_seconds / milliseconds, 3),
    }


def run_short(chosen: Iterable[Case], options: argparse.Namespace) -> Record:
    """As the table, without torch.compile unless it is requested."""
    if options.peers is None:
        print("torch.compile absent: compiling takes minutes; --peers torch,compile,jax,onnxruntime adds it")
    return run_table(chosen, options, [name for name in PEERS if name != "compile"])


def run_stacks(chosen: Iterable[Case], options: argparse.Namespace) -> Record:
    """As the table, without JAX and other peers that take only single layers."""
    return run_table(chosen, options, STACK_PEERS)


def run_cells(chosen: Iterable[Case], options: argparse.Namespace) -> Record:
    """As the table, in training alone; by default each cell has the peers of its kind."""
    packages = {name: version for name in OWN_PACKAGE.values() if (version := machine.version(name))}
    return {"packages": packages} | run_table(chosen, options, modes=(True,))


def run_table(
    chosen: Iterable[Case],
    options: argparse.Namespace,
    default: Iterable[str] = tuple(PEERS),
    modes: Iterable[bool] = (True, False),
) -> Record:
    """Each case in each mode (whether it is training), with figures against the floors of this machine."""
    floor = floors.measure(options.threads)
    print(
        f"floors ({floor.source}): {floor.flops / 1e9:.0f} GFLOP/s fp32 (torch GEMM {floor.gemm_flops / 1e9:.0f}, "
        f"bf16 {floor.gemm_bf16_flops / 1e9:.0f}); reading L2 {floor.l2_read / 1e9:.0f} GB/s, "
        f"L3 {floor.l3_read / 1e9:.0f}, DRAM {floor.dram_read / 1e9:.0f}"
    )
    records = []
    for train in modes:
        print(f"\n{'forward+backward' if train else 'forward'}: ms (us/step, GFLOP/s, share of floor); peers' ratios")
        for case in chosen:
            problem = Problem.of(case, train, options.threads, options.device)
            peers = options.peers
            if peers is None:
                peers = of_cell(case) if case.in_python else list(default)
            record = measure_case(problem, peers, options.rounds, SLOWEST_SECONDS["table"])
            if "milliseconds" in record:
                record |= kernel_figures(case, train, record["milliseconds"][OURS]["median"], floor)
            records.append(record)
            print(table_lines(record), flush=True)
    return {"floors": floor.record(), "cases": records}


def table_lines(record: Record) -> str:
    """The line of one case for the terminal."""
    name = f"{record['name']:34}"
    if "milliseconds" not in record:
        return f"{name} {without_speed(record)}"
    ours = record["milliseconds"][OURS]["median"]
    parts = [f"{ours:9.3f} ({record['us_per_step']:.1f}, {record['gflops']:.0f}, {100 * record['floor_share']:.0f} %)"]
    for peer, ratio in record["ratios"].items():
        parts.append(f"{peer} {ratio['median']:.2f}x [{ratio['min']:.2f}-{ratio['max']:.2f}]{verdict(record, peer)}")
    parts += [f"{peer} absent: {reason}" for peer, reason in record["absent"].items()]
    return f"{name} {parts[0]}\n" + "\n".join(f"{'':38}{part}" for part in parts[1:])


def verdict(record: Record, peer: str) -> str:
    """Whether the target is met; empty if there is none."""
    if peer not in record["met"]:
        return ""
    return f" target {record['targets'][peer]:g} {'met' if record['met'][peer] else 'MISSED'}"


def run_gpu(chosen: Iterable[Case], options: argparse.Namespace) -> Record:
    """us/step on a GPU, both modes; what a step needs on paper stands in docs/kernels.md."""
    if options.device != "cuda" or not torch.cuda.is_available():
        raise SystemExit("the suite gpu needs --device cuda and a GPU")
    peers = ["fp16", "graph", "flashrnn"] if options.peers is None else options.peers
    # By default cuDNN uses tf32 for float32: disabled for a fair comparison.
    torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.rnn.fp32_precision = "ieee"
    records = []
    for case in chosen:
        for train in (False, True):
            record = measure_gpu_case(case, train, peers, options.rounds)
            records.append(record)
            print(gpu_lines(record, case.T), flush=True)
            if options.out:  # at once: gpu_check may run out of time
                stats.write(options.out, "gpu", {"machine": machine.describe(), "cases": records})
    return {"cases": records}


def measure_gpu_case(case: Case, train: bool, peers: Iterable[str], rounds: int) -> Record:
    problem = Problem.of(case, train, torch.get_num_threads(), "cuda")
    return measure_case(problem, list(peers), rounds, SLOWEST_SECONDS["table"], on_gpu=True)


def gpu_lines(record: Record, T: int) -> str:
    name = f"{record['name']} {record['mode']}"
    if "milliseconds" not in record or "disagreement" in record:
        return f"{name}: {without_speed(record)}"
    took = {peer: 1e3 * spread["median"] / T for peer, spread in record["milliseconds"].items()}
    lines = [f"{name}: {took[OURS]:.2f} us/step, {record['backend']}"]
    for peer, ratio in record["ratios"].items():
        lines.append(f"    {peer}: {took[peer]:.2f} us/step, {ratio['median']:.2f}x{verdict(record, peer)}")
    lines += [f"    {peer} absent: {reason}" for peer, reason in record["absent"].items()]
    return "\n".join(lines)


def run_sweep(chosen: Iterable[Case], options: argparse.Namespace) -> Record:
    """Many shapes against torch.nn alone, in short samples, to find the lowest ratios."""
    records, rounds = [], min(options.rounds, 7)
    for case in chosen:
        for train in (True, False):
            problem = Problem.of(case, train, options.threads, options.device)
            slowest = SLOWEST_SECONDS["sweep"]
            record = measure_case(problem, [], rounds, slowest, sample_seconds=0.004)
            records.append(record)
            print(sweep_line(record), flush=True)
    timed = [record for record in records if "ratios" in record]
    summary = {mode: summarise([r for r in timed if r["mode"] == mode]) for mode in ("forward+backward", "forward")}
    for mode, total in summary.items():
        if total["shapes"]:
            print(f"{mode}: {total['below_0.95']} of {total['shapes']} shapes below 0.95, median {total['median']}")
            print("\n".join(f"    {ratio:6.2f}  {name}" for name, ratio in total["worst"].items()))
    return {"rounds": rounds, "summary": summary, "cases": records}


def run_steps(chosen: Iterable[Case], options: argparse.Namespace) -> Record:
    """``run_sweep`` with freed memory kept: by where its blocks happen to lie, glibc returns the gradients of a step to
    the system or does not, and the page faults are up to three quarters of the step's time, on either side.
    """
    keep_freed_memory()
    return run_sweep(chosen, options)


def run_threads(chosen: Iterable[Case], options: argparse.Namespace) -> Record:
    """One thread's time over that of all, which must not be slower."""
    records, rounds = [], min(options.rounds, 7)
    for case in chosen:
        for train in (True, False):
            problem = Problem.of(case, train, options.threads, options.device)
            contender = torch_nn.build_prnn(problem)

            def with_threads(threads: int, contender: Contender = contender) -> Callable[[], object]:
                def run() -> object:
                    torch.set_num_threads(threads)
                    return contender.run()

                return run

            runs = {"one": with_threads(1), "all": with_threads(options.threads)}
            for _ in range(WARM_CALLS):  # the number of threads of such calls is found by trial
                runs["all"]()
            seconds = stats.interleave(runs, rounds, sample_seconds=0.004)
            ratio = stats.ratios(seconds["one"], seconds["all"])
            took = {name: stats.milliseconds(values) for name, values in seconds.items()}
            records.append(head(problem) | {"milliseconds": took, "ratios": {"one thread": ratio}})
            print(
                f"{records[-1]['name']:48} {records[-1]['mode']:17} one {took['one']['median']:9.3f} ms, all "
                f"{took['all']['median']:9.3f}, {ratio['median']:5.2f}x [{ratio['min']:.2f}-{ratio['max']:.2f}]",
                flush=True,
            )
    slower = [record for record in records if record["ratios"]["one thread"]["median"] < 0.95]
    print(f"slower than one thread by more than 5 %: {len(slower)} of {len(records)}")
    return {"rounds": rounds, "slower": [f"{record['name']} {record['mode']}" for record in slower], "cases": records}


def without_speed(record: Record) -> str:
    if "skipped" in record:
        return f"skipped: {record['skipped']}"
    return f"WRONG, no speed: {'; '.join(record['disagreement'])}"


def sweep_line(record: Record) -> str:
    name = f"{record['name']:48} {record['mode']:17}"
    if "milliseconds" not in record:
        return name + without_speed(record)
    ratio, took = record["ratios"][REFERENCE], record["milliseconds"]
    times = f"{took[OURS]['median']:9.3f} ms, torch.nn {took[REFERENCE]['median']:9.3f}"
    return f"{name}{times}, {ratio['median']:6.2f}x [{ratio['min']:.2f}-{ratio['max']:.2f}]"


def summarise(records: list[Record]) -> Record:
    ratios = {record["name"]: record["ratios"][REFERENCE]["median"] for record in records}
    return {
        "shapes": len(ratios),
        "below_0.95": sum(ratio < 0.95 for ratio in ratios.values()),
        "median": stats.spread(list(ratios.values()))["median"] if ratios else None,
        "worst": dict(sorted(ratios.items(), key=lambda item: item[1])[:10]),
    }


def run_memory(chosen: list[Case], options: argparse.Namespace) -> Record:
    from benchmarks.kernels import peak_memory as memory

    return memory.run(chosen, options.threads)


def run_training_step(_: list[Case], options: argparse.Namespace) -> Record:
    from benchmarks.kernels import training_step  # needs the configuration's packages, which the kernels do without

    return training_step.run(options.threads, options.rounds)


# name -> file, cases, how they are run
SUITES: dict[str, tuple[str, tuple[Case, ...], Callable[[list[Case], argparse.Namespace], Record]]] = {
    "table": ("kernels", cases.TABLE, run_table),
    "short": ("short", cases.SHORT, run_short),
    "sweep": ("sweep", cases.SWEEP, run_sweep),
    "steps": ("steps", cases.STEPS, run_steps),
    "threads": ("threads", cases.SWEEP, run_threads),
    "stacks": ("stacks", cases.STACKS, run_stacks),
    "cells": ("cells", cases.CELLS, run_cells),
    "gpu": ("gpu", cases.GPU, run_gpu),
    "memory": ("memory", cases.TABLE, run_memory),
    "training_step": ("training_step", (), run_training_step),
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", nargs="+", choices=SUITES, default=["table"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of table, short, sweep and gpu")
    parser.add_argument("--threads", type=at_least(1), default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--rounds", type=at_least(1), default=9, help="7 or more, to be quoted; the sweep takes 7 at most"
    )
    parser.add_argument("--out", type=folder, help="folder for the JSON files")
    parser.add_argument("--peers", help=f"some of {','.join(ALL_PEERS)}; the reference always takes part")
    parser.add_argument("--cases", default="", help="only cases whose name matches this regular expression")
    options = parser.parse_args(arguments)
    options.peers = None if options.peers is None else [name for name in options.peers.split(",") if name]
    unknown = set(options.peers or ()) - set(ALL_PEERS)
    if unknown:
        parser.error(f"--peers {','.join(sorted(unknown))}: expected some of {', '.join(ALL_PEERS)}")
    try:
        pattern = re.compile(options.cases)
    except re.error as error:
        parser.error(f"--cases {options.cases} is no regular expression: {error}")
    for suite in options.suite:
        _, all_cases, _ = SUITES[suite]
        if all_cases and not any(pattern.search(case.name) for case in all_cases):
            parser.error(f"--cases {options.cases}: --suite {suite} has no such case; one is {all_cases[0].name}")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    stats.limit_threads(options.threads)
    wrong = False
    for suite in options.suite:
        name, all_cases, run = SUITES[suite]
        chosen = [case for case in all_cases if re.search(options.cases, case.name)]
        print(f"\n{suite}: {machine.processor()}, {options.threads} threads, torch {torch.__version__}")
        result = run(chosen, options)
        wrong |= any("disagreement" in record for record in result["cases"])
        if options.out:
            record = {"benchmark": name, "machine": machine.describe(), "rounds": options.rounds}
            stats.write(options.out, name, record | result)
    if wrong:
        sys.exit("a contender disagrees with the reference: see above")


if __name__ == "__main__":
    main()
