"""Render measured JSON as markdown tables and a plot.

    python -m benchmarks.report benchmarks/results/MACHINE[/NAME.json] [--png FILE] [--markdown FILE]
    python -m benchmarks.report benchmarks/results/reproductions [--markdown docs/reproductions.md]
    python -m benchmarks.report benchmarks/results/MACHINE/scaling.json [--markdown docs/scaling.md] [--png FILE]

Without --markdown the tables are printed. Of a folder, every result file of benchmarks.kernels and
benchmarks.programs is rendered, and the check.json of a GPU check; the plot is of kernels.json (else short.json):
for each case, the speedup over torch.nn of prnn and the other peers. For scaling.json there are two plots, FILE and
NAME_projection.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.common.files import ROOT
from benchmarks.common.markdown import table
from benchmarks.gpu_check import page as gpu_page
from benchmarks.kernels.cases import STEPS_SIZES
from benchmarks.kernels.peers import OURS, REFERENCE
from benchmarks.kernels.picture import draw
from benchmarks.reproduce import page as reproductions_page
from benchmarks.reproduce import records, reproductions
from benchmarks.scaling import page as scaling_page
from benchmarks.scaling import picture as scaling_picture
from prnn.errors import UserError

Record = dict[str, Any]
NAMES = ("kernels", "kernels_avx2", "short", "sweep", "threads", "stacks", "steps", "cells", "memory", "training_step",
         "programs", "loop_overhead", "scaling", "check", "gpu")  # fmt: skip
MODES = ("forward+backward", "forward")


def load(folder: Path) -> dict[str, Record]:
    """The results in a folder, or in one of its files, by name; "kernels" falls back to the short suite."""
    if folder.is_file():
        return {folder.stem: json.loads(folder.read_text())}
    results = {n: json.loads((folder / f"{n}.json").read_text()) for n in NAMES if (folder / f"{n}.json").exists()}
    if not results:
        raise SystemExit(f"{folder}: none of {', '.join(f'{name}.json' for name in NAMES)}")
    short = results.pop("short", None)
    return results if "kernels" in results or short is None else {"kernels": short} | results


def markdown(results: dict[str, Record]) -> str:
    """All tables, each with a line about the machine."""
    render = {"kernels": kernels, "sweep": sweep, "steps": steps, "cells": cells, "memory": memory}
    render |= {"kernels_avx2": kernels_avx2, "threads": threads, "stacks": kernels}
    render |= {"training_step": training_step, "programs": programs, "loop_overhead": loop_overhead}
    render |= {"scaling": scaling_page.tables}
    render |= {"check": gpu_page.tables, "gpu": lambda record: gpu_page.whole_calls(record["cases"])}
    parts = []
    for name, record in results.items():
        parts += [
            f"### {name}",
            f"{gpu_page.where(record) if name == 'check' else where(record)}.",
            *render[name](record),
        ]
    return "\n\n".join(parts) + "\n"


def where(record: Record) -> str:
    """The machine and versions of a measurement."""
    machine = record["machine"]
    versions = ", ".join(f"{key} {machine[key]}" for key in ("torch", "jax", "onnxruntime") if machine.get(key))
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    return f"{machine['processor']}; {threads}; {versions}; commit {machine['commit']}"


def kernels(record: Record) -> Iterable[str]:
    floors = record["floors"]
    yield (
        f"Floors ({floors['source']}): {floors['flops'] / 1e9:.0f} GFLOP/s in fp32 (torch's GEMM "
        f"{floors['gemm_flops'] / 1e9:.0f}); reading L2 {floors['l2_read'] / 1e9:.0f} GB/s, L3 "
        f"{floors['l3_read'] / 1e9:.0f}, DRAM {floors['dram_read'] / 1e9:.0f}. A peer's column: its time over prnn's, "
        f"round by round, median of {record['rounds']} (smallest-largest)."
    )
    for mode in MODES:
        cases = [case for case in record["cases"] if case["mode"] == mode]
        if not cases:
            continue
        peers = list(dict.fromkeys(name for case in cases for name in case.get("ratios", {})))
        head = [mode, "prnn ms", "us/step", "GFLOP/s", "of floor", *peers]
        yield table(head, (kernel_row(case, peers) for case in cases))


def cells(record: Record) -> Iterable[str]:
    packages = ", ".join(f"{name} {version}" for name, version in record["packages"].items()) or "none installed"
    yield (
        f"Cells written in Python; their packages: {packages}. loop: the same equations as a loop in PyTorch, which "
        "takes gates[t]; unbound: gates.unbind(0) instead, so that a step's gradient is not that of all steps. GFLOP/s "
        "count the products with units that do not spike, which prnn leaves out."
    )
    yield from kernels(record)
    notes = [f"{case['name']}: {case['input']}" for case in record["cases"] if "input" in case]
    if notes:
        yield f"Inputs: {'; '.join(notes)}."


def kernel_row(case: Record, peers: list[str]) -> list[str]:
    if "ratios" not in case:
        return [case["name"], without_speed(case), *[""] * (3 + len(peers))]
    figures = [
        figure(case["milliseconds"][OURS]["median"]),
        figure(case["us_per_step"]),
        f"{case['gflops']:.0f}",
        f"{100 * case['floor_share']:.0f} %",
    ]
    return [case["name"], *figures, *(ratio_cell(case, peer) for peer in peers)]


def without_speed(case: Record) -> str:
    return f"skipped: {case['skipped']}" if "skipped" in case else f"wrong: {'; '.join(case['disagreement'])}"


def figure(value: float) -> str:
    """Format with three significant digits, integers in full."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def ratio_cell(case: Record, peer: str) -> str:
    if peer not in case["ratios"]:
        return "n/a"
    ratio = case["ratios"][peer]
    text = f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})"
    if peer in case["met"]:
        text += f", target {case['targets'][peer]:g} {'met' if case['met'][peer] else 'missed'}"
    return text


def sweep(record: Record) -> Iterable[str]:
    skipped = sum("skipped" in case for case in record["cases"])
    wrong = [f"{case['name']} ({without_speed(case)})" for case in record["cases"] if "disagreement" in case]
    if skipped or wrong:
        yield f"Skipped as too slow: {skipped}. Wrong: {', '.join(wrong) or 'none'}."
    for mode, summary in record["summary"].items():
        if summary["shapes"]:
            yield (
                f"{mode}: {summary['shapes']} shapes, median {summary['median']} times torch.nn's speed, "
                f"{summary['below_0.95']} below 0.95. The slowest:"
            )
            yield table(["shape", f"over {REFERENCE}"], ([n, f"{ratio:.2f}"] for n, ratio in summary["worst"].items()))


def kernels_avx2(record: Record) -> Iterable[str]:
    yield "The same on AVX2: PRNN_CPU_ISA=avx2, and torch limited likewise (benchmarks/kernels/floors.py)."
    yield from kernels(record)


def threads(record: Record) -> Iterable[str]:
    """The sweep with one thread and with all."""
    ratios = {f"{case['name']} {case['mode']}": case["ratios"]["one thread"] for case in record["cases"]}
    yield (
        f"One thread's time over that of {record['machine']['threads']}, which choose how many run by trial: "
        f"{len(ratios)} calls, median {statistics.median(ratio['median'] for ratio in ratios.values()):.2f}, "
        f"{len(record['slower'])} below 0.95. The least:"
    )
    least = sorted(ratios.items(), key=lambda item: item[1]["median"])[:10]
    yield table(["call", "ratio"], ([n, f"{r['median']:.2f} ({r['min']:.2f}-{r['max']:.2f})"] for n, r in least))


def steps(record: Record) -> Iterable[str]:
    yield f"Calls of T steps of L layers, I = H: times {REFERENCE}'s speed, median of the rounds; freed memory is kept."
    for mode in MODES:
        ratios: dict[str, dict[str, float]] = {}
        for case in record["cases"]:
            if case["mode"] == mode and "ratios" in case:
                cell, T, B, _, H, *layers = case["name"].split()
                row = f"{cell} {T} L{layers[0] if layers else 1}"
                ratios.setdefault(row, {})[f"{B} {H}"] = case["ratios"][REFERENCE]["median"]
        sizes = [f"B{B} H{H}" for B, H in STEPS_SIZES]
        if ratios:
            rows = ([row, *(f"{of[size]:.2f}" if size in of else "" for size in sizes)] for row, of in ratios.items())
            yield table([mode, *sizes], rows)
    yield from sweep(record)


def memory(record: Record) -> Iterable[str]:
    yield "Peak of forward+backward above module and input, MiB."
    rows = ([c["name"], f"{c['mib'][OURS]:.1f}", f"{c['mib'][REFERENCE]:.1f}"] for c in record["cases"])
    yield table(["case", OURS, REFERENCE], rows)


def training_step(record: Record) -> Iterable[str]:
    head = ["step", "malloc", f"{OURS} ms", f"{REFERENCE} ms", OURS, f"over {REFERENCE}"]
    yield table(head, map(step_row, record["cases"]))


def step_row(case: Record) -> list[str]:
    if "ratio" not in case:
        return [case["name"], case["malloc"], without_speed(case), "", "", ""]
    ratio, took = case["ratio"], case["milliseconds"]
    goal = f"target {case['target']:g} {'met' if case['met'] else 'missed'}"
    return [
        case["name"],
        case["malloc"],
        *(f"{took[name]['median']:.2f}" for name in (OURS, REFERENCE)),
        f"{figure(case['per_second'][OURS])} {case['unit']}/s",
        f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f}), {goal}",
    ]


def programs(record: Record) -> Iterable[str]:
    yield (
        f"Whole steps of third-party programs, with prnn's layers by prnn.convert or prnn.patch. Over {REFERENCE}: its "
        f"time over prnn's, round by round, median of {record['rounds']} (smallest-largest). Losses, outputs and "
        f"gradients agree with {REFERENCE}'s to {record['tolerance']:g} of the largest element, or there is no ratio."
    )
    head = ["program", "package", "step", "layers", "by", "difference", f"{OURS} ms", f"{REFERENCE} ms",
            f"over {REFERENCE}"]  # fmt: skip
    yield table(head, map(program_row, record["cases"]))


def program_row(case: Record) -> list[str]:
    about = [case["name"], case.get("package", ""), case.get("does", "")]
    if "ratio" not in case:
        why = f"absent: {case['absent']}" if "absent" in case else without_speed(case)
        return [*about, *[""] * 5, why]
    ratio, took = case["ratio"], case["milliseconds"]
    return [
        *about,
        "; ".join(case["layers"]),
        case["by"],
        f"{case['difference']:g}",
        *(figure(took[name]["median"]) for name in (OURS, REFERENCE)),
        f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})",
    ]


def loop_overhead(record: Record) -> Iterable[str]:
    share = {name: "{median:.1%} ({min:.1%} to {max:.1%})".format(**record[name]) for name in ("overhead", "noise")}
    goal = f"target {record['target']:.0%} {'met' if record['met'] else 'missed'}"
    yield (
        f"The trainer's step over a bare loop's: {share['overhead']}, {goal}; a second bare loop's: {share['noise']}. "
        f"Median of {record['rounds']} rounds of {record['steps']} steps (smallest to largest)."
    )
    rows = ([n, *(figure(ms[key]) for key in ("median", "min", "max"))] for n, ms in record["step_ms"].items())
    yield table(["step", "ms", "min", "max"], rows)


def scaling(source: Path, page: Path | None, png: Path | None) -> None:
    """Render the page and plots of the scaling study; by default the page refers to plots beside the results."""
    record = json.loads(source.read_text())
    shown = [from_root(path) for path in (source, png or source.with_suffix(".png"))]
    text = scaling_page.render(record, *shown)
    if page:
        page.write_text(text)
    else:
        print(text)
    if png:
        scaling_picture.draw(record, png)


def from_root(path: Path) -> str:
    """The path relative to the repository root, as docs/ refers to it."""
    absolute = path.resolve()
    return str(absolute.relative_to(ROOT) if absolute.is_relative_to(ROOT) else path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="a folder of measurements, or one file")
    parser.add_argument("--png", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    try:
        render(options)
    except (UserError, OSError) as error:
        sys.exit(f"report: {error}")
    except (ValueError, KeyError, TypeError, IndexError, ZeroDivisionError, RecursionError) as error:
        sys.exit(f"report: {options.results} holds no results that can be shown ({type(error).__name__}: {error})")


def render(options: argparse.Namespace) -> None:
    if options.results.name == "scaling.json":
        scaling(options.results, options.markdown, options.png)
        return
    if options.results.is_dir() and set(records.names(options.results)) & reproductions.ROWS.keys():
        if options.markdown:
            reproductions_page.write(options.results, options.markdown)
        else:
            print(reproductions_page.render(reproductions_page.shown(options.results)))
        return
    results = load(options.results)
    text = markdown(results)
    if options.markdown:
        options.markdown.write_text(text)
    else:
        print(text)
    if options.png:
        if "kernels" not in results:
            raise SystemExit(f"{options.results}: no kernels.json or short.json to draw")
        draw(results["kernels"], options.png)


if __name__ == "__main__":
    main()
