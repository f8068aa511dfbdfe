"""The scaling study: measured strong and weak scaling, and projections to 1,024 GPUs.

    python -m benchmarks.scaling [--processes 1,2] [--tasks char_lm,irnn_mnist] [--repeats 4] [--windows 3]
                                 [--out benchmarks/results/MACHINE] [--wandb]
    python -m benchmarks.scaling --projection-only [--out DIR]      update only the projections in DIR's record

1. Trainings of 1 to N processes, a thread each, in turn (runs.py), after the same global batch has
   given the same losses on all of them. The goal: weak scaling of ``GOAL`` where each process has a core.
2. gloo's all-reduce by bytes and processes (allreduce.py); an alpha-beta model fitted on every other size
   among two processes, and its error on sizes and numbers of processes the fit has not seen (alpha_beta.py).
3. The model's projection of the same trainings to more processes, each on its own core.
4. The prediction of NCCL's cost model and docs/kernels.md for a cluster of H200, with and without persistent kernels,
   down to 4 sequences per GPU (nccl_model.py, small_batch.py); not measured.

Seven to eight minutes on a quiet machine of two cores. The page: python -m benchmarks.report DIR/scaling.json
--markdown docs/scaling.md --png DIR/scaling.png (and DIR/scaling_projection.png).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.common import machine, stats
from benchmarks.common.arguments import folder
from benchmarks.scaling import allreduce, alpha_beta, nccl_model, small_batch
from benchmarks.scaling import runs as scaling_runs
from benchmarks.scaling.alpha_beta import Link
from prnn.errors import UserError

GOAL = 0.9  # of weak scaling
LEAST_WINDOWS = 7
MOST = 1024
AMONG = (2, 3, 4)  # processes of the all-reduces; the fit knows two


def fitted(points: Sequence[dict[str, Any]], cores: int) -> dict[str, Any]:
    """The link fitted on every other size between two processes, and its errors on held-out points.

    Where processes share cores, which only compute and copy, everything takes n / cores times as long: the error is
    reported without and with that factor.
    """
    known = [(p["processes"], p["bytes"], p["milliseconds"]["median"] / 1e3) for p in points]
    used = [p for p in known if p[0] == 2 and p[1] in allreduce.FITTED]
    link = alpha_beta.fit(used)
    held_out = []
    for n in sorted({p[0] for p in known}):
        others = [p for p in known if p[0] == n and p not in used]
        shared = max(1.0, n / cores)
        row = {"processes": n, "oversubscribed": n > cores, **alpha_beta.errors(link, others)}
        if shared > 1:
            slower = Link(link.alpha * shared, link.beta * shared)
            row["shared_cores"] = alpha_beta.errors(slower, others)
        held_out.append(row)
    return {
        "algorithm": "ring",
        "alpha_us": round(1e6 * link.alpha, 3),
        "beta_ns": round(1e9 * link.beta, 5),  # a byte
        "gb_per_second": round(1e-9 / link.beta, 3) if link.beta else None,
        "fit": {"processes": [2], "bytes": list(allreduce.FITTED), **alpha_beta.errors(link, used)},
        "held_out": held_out,
    }


def link_of(fit: dict[str, Any]) -> Link:
    return Link(fit["alpha_us"] / 1e6, fit["beta_ns"] / 1e9)


def projected(task: dict[str, Any], link: Link, most: int = MOST) -> list[dict[str, Any]]:
    """The task's weak scaling on 2, 4, 8 ... processes by the fitted link, as a ring and as a tree.

    The step of one process, then its gradients in their one bucket, of which nothing hides (see ``gradient_stages``),
    then the step's agreement. Waiting for slower processes and shared memory are not in it.
    """
    step = next(row for row in task["rows"] if row["processes"] == 1)["step_ms"]["median"] / 1e3
    rows = []
    for power in range(most.bit_length()):
        n = 2**power
        row: dict[str, Any] = {"processes": n}
        for name, all_reduce in (("ring", link.ring), ("tree", link.tree)):
            seen = all_reduce(n, task["gradient_bytes"]) + all_reduce(n, small_batch.AGREEMENT_BYTES)
            row[name] = {"exposed_ms": round(1e3 * seen, 4), "efficiency": round(step / (step + seen), 4)}
        rows.append(row)
    return rows


def predictions() -> dict[str, Any]:
    """The predictions for GPUs; nothing is measured."""
    cluster = nccl_model.Cluster()
    nets = [small_batch.study(net, small_batch.persistent_us(net), cluster) for net in small_batch.NETS]
    return {
        "status": "predicted",
        "most": MOST,
        "assumptions": [*nccl_model.assumptions(cluster), *small_batch.SOURCES],
        "cluster": {key: value for key, value in asdict(cluster).items() if key != "ways"},
        "nets": nets,
    }


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """The measurements on this machine; only ``projection`` is not measured."""
    cores = len(os.sched_getaffinity(0))
    counts = options.processes[1:]
    tasks = []
    with tempfile.TemporaryDirectory() as folder:
        runner = scaling_runs.Runner(Path(folder))
        checked = {task: scaling_runs.check(runner, task, counts) for task in options.tasks}
        print("the same global batch gives the same losses:", checked)
        for name in options.tasks:
            windows = scaling_runs.measure(runner, name, counts, options.repeats, options.windows)
            rows = scaling_runs.efficiency(windows, counts)
            for row in rows:
                row["oversubscribed"] = row["processes"] > cores
            weak = [r["efficiency"]["median"] for r in rows if r["scaling"] == "weak" and not r["oversubscribed"]]
            preset = scaling_runs.PRESETS[name]
            tasks.append({
                "task": name,
                "settings": [*preset.overrides, f"trainer.batch_size={preset.batch}"],
                "data": runner.images if name == "irnn_mnist" else runner.corpus,
                "check": checked[name],
                "gradient_bytes": 4 * runner.parameters[name],
                "overlap": preset.gradient_stages,
                "window_steps": preset.window_steps,
                "rows": rows,
                "goal": GOAL,
                "met": min(weak) >= GOAL if weak else None,
            })  # fmt: skip
            for row in rows[1:]:
                efficiency_text = "{median:.3f} ({min:.3f} to {max:.3f})".format(**row["efficiency"])
                print(f"{name:11} {row['scaling']:13} {row['processes']} processes: efficiency {efficiency_text}")
    points = [row for n in AMONG for row in allreduce.measure(n)]
    fit = fitted(points, cores)
    for task in tasks:
        task["projection"] = projected(task, link_of(fit))
    return {"cores": cores, "tasks": tasks, "points": points, "fit": fit}


def study(options: argparse.Namespace) -> dict[str, Any]:
    """The whole record; without measuring, the measurements in DIR's record are kept."""
    record: dict[str, Any] = {"benchmark": "scaling", "machine": machine.describe(), "threads_of_a_process": 1}
    if not options.projection_only:
        record |= {"repeats": options.repeats, "windows": options.windows, **measured(options)}
    elif options.out and (known := options.out / "scaling.json").is_file():
        try:
            record = json.loads(known.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{known} is not JSON ({error}): the projection has no record to go into.") from error
        if not isinstance(record, dict) or not isinstance(record.get("tasks", []), list):
            raise UserError(f"{known} is no record of a scaling study: the projection has none to go into.")
    return record | {"gpu": predictions()}


def to_wandb(record: dict[str, Any], pictures: Sequence[Path], folder: Path) -> None:
    """One W&B run: the record as its configuration, the efficiencies as its summary, the pictures."""
    try:
        import wandb
    except ImportError as error:
        raise UserError("--wandb needs the package wandb: pip install wandb.") from error
    from prnn.training.observe.wandb_setup import wandb_mode

    folder.mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        project="prnn", name="scaling", job_type="benchmark", config=record, dir=str(folder),
        mode=wandb_mode("auto"), settings=wandb.Settings(console="off", silent=True),  # type: ignore[arg-type]
    )  # fmt: skip
    figures = {
        f"efficiency/{task['task']}/{row['scaling']}/{row['processes']}": row["efficiency"]["median"]
        for task in record.get("tasks", []) for row in task["rows"] if "efficiency" in row
    }  # fmt: skip
    run.log({**figures, **{path.stem: wandb.Image(str(path)) for path in pictures}})
    run.finish()


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=_numbers, default=[1, 2], help="1,2: one first, then others (1,2)")
    parser.add_argument("--tasks", type=lambda text: text.split(","), default=[*scaling_runs.PRESETS])
    parser.add_argument("--repeats", type=int, default=4, help="runs of each contender, in turn (4)")
    parser.add_argument("--windows", type=int, default=3, help="of each run (3)")
    parser.add_argument("--projection-only", action="store_true", help="measure nothing")
    parser.add_argument("--out", type=folder, help="for scaling.json and the pictures")
    parser.add_argument("--wandb", action="store_true", help="also to Weights & Biases; needs --out")
    options = parser.parse_args(arguments)
    if unknown := set(options.tasks) - set(scaling_runs.PRESETS):
        parser.error(f"--tasks {','.join(options.tasks)}: {unknown.pop()} is none of {', '.join(scaling_runs.PRESETS)}")
    if options.processes[0] != 1 or len(options.processes) < 2 or sorted(set(options.processes)) != options.processes:
        parser.error("--processes must be 1 and then larger numbers in order, such as 1,2")
    if max(options.processes) > min(scaling_runs.PRESETS[task].batch for task in options.tasks):
        parser.error(f"--processes {max(options.processes)} is more than a batch has sequences to share")
    if min(options.repeats, options.windows) < 1 or options.repeats * options.windows < LEAST_WINDOWS:
        parser.error(
            f"--repeats {options.repeats} --windows {options.windows}: their product must be at least {LEAST_WINDOWS}"
        )
    if options.wandb and options.out is None:
        parser.error("--wandb needs --out, where its files go")
    return options


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be numbers of processes, such as 1,2") from None


def main() -> None:
    options = parse()
    try:
        record = study(options)
        if options.out:
            from benchmarks.scaling import picture as scaling_picture

            stats.write(options.out, "scaling", record)
            pictures = scaling_picture.draw(record, options.out / "scaling.png")
            if options.wandb:
                to_wandb(record, pictures, options.out)
    except UserError as error:
        sys.exit(f"benchmarks.scaling: {error}")


if __name__ == "__main__":
    main()
