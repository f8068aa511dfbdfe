"""Overhead of the trainer over a hand-written loop, for a step of the 2x128 LSTM character model.

    python -m benchmarks.loop_overhead [--rounds 9] [--steps 40] [--threads 1] [--out benchmarks/results/MACHINE]

Interleaved in one process, on the same batches (B 50, T 50, Adam 2e-3, clip 5):

    bare            a hand-written loop (benchmarks/training/loops.py), with prnn's module and loss.item()
    bare, again     the same again: an estimate of the measurement noise
    trainer         prnn.training.fit: data, collectives, finite check, records, step times, heartbeat

A round measures the mean step time over ``--steps`` steps, without the trainer's first five. The overhead is
trainer over bare - 1, per round: median, minimum and maximum. Both must first give the same loss curve, or nothing is
timed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.common import machine, stats
from benchmarks.common.arguments import at_least, folder
from benchmarks.training.__main__ import Timed, first_batches, framework, job, mean_loss
from benchmarks.training.loops import PlainLoop
from prnn.training import distributed, fit, rng
from prnn.training.malloc import keep_freed_memory
from prnn.training.observe.record_reader import read_records
from prnn.training.run_files import METRICS

TARGET = 0.05  # of a step
BARE, AGAIN, TRAINER = "bare", "bare, again", "trainer"
TOLERANCE = 1e-4


def bare_loop(task: Timed) -> PlainLoop:
    """The trainer's model and optimizer in a hand-written loop."""
    rng.seed_all(task.cfg.seed)
    model = task.build_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=task.cfg.optimizer.lr, fused=True)
    return PlainLoop(model, mean_loss(task), optimizer, clip=task.cfg.trainer.clip_norm)


def check(steps: int = 5) -> float:
    """The largest relative difference between the two loss curves; exits if it is above rounding error."""
    task = Timed.from_config(job(steps))
    task.cfg.trainer.log_every = 1
    loop, expected = bare_loop(task), []
    for batch in first_batches(task, steps):
        loop([batch])
        expected.append(loop.last_loss)
    task.stamps = []
    with tempfile.TemporaryDirectory() as folder:
        fit(task.cfg, task, distributed.World(), Path(folder) / "run")
        records = read_records(Path(folder) / "run" / METRICS)
    losses = [record["loss"] for record in records if record["kind"] == "train"]
    worst = max(abs(a - b) / b for a, b in zip(losses, expected, strict=True))
    if worst > TOLERANCE:
        sys.exit(f"the two loss curves differ by {worst:.2g}: nothing was timed")
    return worst


def measure(rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds per step of each round, after a warm-up round; the order rotates by one each round."""
    task = Timed.from_config(job(steps + 6))
    batches = first_batches(task, steps)
    loops = {name: bare_loop(task) for name in (BARE, AGAIN)}
    seconds: dict[str, list[float]] = {BARE: [], AGAIN: [], TRAINER: []}
    order = list(seconds)
    for i in range(rounds + 1):
        for name in order:
            took = framework(task, steps) if name == TRAINER else loops[name](batches)
            if i > 0:
                seconds[name].append(took)
        order.append(order.pop(0))
    return seconds


def compare(seconds: dict[str, list[float]]) -> dict[str, object]:
    """The overhead, the noise, and whether the target is met."""
    overhead = stats.spread([b / a - 1 for a, b in zip(seconds[BARE], seconds[TRAINER], strict=True)], 4)
    return {
        "step_ms": {name: stats.milliseconds(values) for name, values in seconds.items()},
        "overhead": overhead,
        "noise": stats.spread([b / a - 1 for a, b in zip(seconds[BARE], seconds[AGAIN], strict=True)], 4),
        "target": TARGET,
        "met": overhead["median"] <= TARGET,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=at_least(7), default=9)  # fewer give no robust median
    parser.add_argument("--steps", type=at_least(1), default=40)
    parser.add_argument("--threads", type=at_least(1), default=1)
    parser.add_argument("--out", type=folder, help="folder for loop_overhead.json")
    options = parser.parse_args()
    stats.limit_threads(options.threads)
    keep_freed_memory()  # as prnn-train does; for both
    difference = check()
    result = compare(measure(options.rounds, options.steps))
    print("overhead of a step: median {median:.2%}, from {min:.2%} to {max:.2%}".format(**result["overhead"]))
    print("two bare loops:     median {median:.2%}, from {min:.2%} to {max:.2%}".format(**result["noise"]))
    if options.out:
        record = {
            "benchmark": "loop overhead",
            "machine": machine.describe(),
            "rounds": options.rounds,
            "steps": options.steps,
            "relative_difference": float(f"{difference:.2g}"),
            **result,
        }
        stats.write(options.out, "loop_overhead", record)


if __name__ == "__main__":
    main()
