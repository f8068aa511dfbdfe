"""Fault injection: random ``kill -9`` of training processes, after which the result must be bitwise unchanged.

    python -m benchmarks.resilience [--kills 50] [--seed 1] [--format file] [--out benchmarks/results/MACHINE]

Two processes of ``prnn.train``, a small language model, a checkpoint every ten steps. The moments are random: while a
checkpoint is being written, at any time, and during startup. So are the victims: one process, both, or the host (both
and torchrun's agent). The agent restarts the processes as forks of itself, since importing torch dominates the startup
time; a host is restarted with the same command, as Slurm requeues a job. After each kill the newest checkpoint must be
valid and at most one interval behind (two with --format sharded, which writes asynchronously). At the end weights,
optimizer, RNG states, carried state and the record without its times must be bitwise equal to those of an undisturbed
run. Prints a line for each kill; the exit status is 1 on any violation.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import arguments, machine
from benchmarks.common.killable import TIMEOUT_SECONDS, Host, wait_for
from prnn.training import checkpoint
from prnn.training.observe.record_reader import read_records
from prnn.training.run_files import METRICS, SAMPLES

INTERVAL, STEPS_PER_KILL, LEAST_STEPS = 10, 12, 60
SETTINGS = [
    "task=char_lm", "task.bptt=8", "task.sample_length=20", "task.eval_tokens=400", "model.hidden_size=64",
    "model.dropout=0.2", "trainer.batch_size=4", "trainer.threads=1", "trainer.device=cpu", "trainer.log_every=1",
    f"trainer.checkpoint_every={INTERVAL}", "trainer.eval_every=20", "trainer.sample_every=30",
    "distributed.timeout_seconds=120",
]  # fmt: skip
COMPARED = ("kind", "step", "epoch", "loss", "lr", "grad_norm", "tokens", "figures", "text", "of_step")


@dataclass(frozen=True)
class Kill:
    """One kill: from ``step`` on, at the next ``moment``; ``fraction`` is its position within that moment."""

    step: int
    moment: str  # saving, any or starting
    victim: str  # rank 0, rank 1, both or host (both and the agent)
    fraction: float


@dataclass
class Outcome:
    """The phase that a kill hit, and the steps and seconds lost."""

    moment: str
    victim: str
    phase: str  # starting, training, validation or saving
    reached: int  # the last recorded step
    kept: int  # the step of the newest valid checkpoint; 0: none
    lost: int
    damaged: int  # newer, invalid checkpoints; must be 0
    recovery_seconds: float = 0.0  # until the next completed step, or the next kill


def draw(kills: int, seed: int) -> list[Kill]:
    """Draw the kills, in order; deterministic for a seed."""
    dice = random.Random(seed)
    last = steps(kills) - 2 * INTERVAL
    moments = dice.choices(["saving", "any", "starting"], [4, 3, 3], k=kills)
    victims = dice.choices(["rank 0", "rank 1", "both", "host"], [3, 3, 2, 1], k=kills)
    where = sorted(dice.randrange(1, last) for _ in range(kills))
    return [Kill(*each, dice.random()) for each in zip(where, moments, victims, strict=True)]


def steps(kills: int) -> int:
    """The length of the run: a kill every dozen steps."""
    return max(LEAST_STEPS, STEPS_PER_KILL * kills)


class Record:
    """The end of ``metrics.jsonl``, read while it is written. Each restart of the run replaces the file."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / METRICS

    def identity(self) -> int:
        """The inode, which changes with each replacement; 0 if the file does not exist."""
        try:
            return self._path.stat().st_ino
        except OSError:
            return 0

    def last(self) -> tuple[int, str]:
        """Step and kind of the last complete record."""
        with contextlib.suppress(OSError), self._path.open("rb") as file:
            file.seek(max(0, self._path.stat().st_size - 4096))
            for line in reversed(file.read().splitlines()):
                with contextlib.suppress(ValueError):
                    record = json.loads(line)
                    return int(record["step"]), str(record["kind"])
        return 0, ""


def unfinished(run_dir: Path) -> set[tuple[str, int]]:
    """Unfinished checkpoints, in progress or left by a killed process: name and modification time."""
    partial = set()
    for path in checkpoint.folder(run_dir).glob(".step_*.tmp"):
        with contextlib.suppress(OSError):  # finished meanwhile
            partial.add((path.name, path.stat().st_mtime_ns))
    return partial


def disturb(host: Host, kills: list[Kill]) -> Iterator[Outcome]:
    """Execute the kills; yields the outcome of each."""
    record = Record(host.run_dir)
    kept, start_seconds, fell = 0, 0.0, 0.0
    previous: Outcome | None = None
    for kill in kills:
        old, left = record.identity(), unfinished(host.run_dir)
        wait_for(lambda: len(host.workers()) == 2, "the restart")
        workers, born = host.workers(), time.monotonic()

        def trains(since: int = old, above: int = kept) -> bool:
            return record.identity() != since and record.last()[0] > above

        def saves(before: set[tuple[str, int]] = left) -> bool:
            return bool(unfinished(host.run_dir) - before)

        if kill.moment == "starting" and start_seconds:
            time.sleep(kill.fraction * start_seconds)
        else:
            wait_for(trains, "a step")
            start_seconds = start_seconds or time.monotonic() - born
            if previous is not None:
                previous.recovery_seconds = time.monotonic() - fell
            wait_for(lambda at=kill.step: record.last()[0] >= at, f"step {kill.step}", 0.001)  # type: ignore[misc]
            if kill.moment == "saving":
                wait_for(saves, "a checkpoint", 0.001)
            else:
                time.sleep(0.2 * kill.fraction)
        if previous is not None:
            previous.recovery_seconds = previous.recovery_seconds or time.monotonic() - fell
            yield previous
        begun = trains()
        step, kind = record.last()
        phase = "starting" if not begun else "saving" if saves() else "training"
        if phase == "training" and step % 20 == 0 and kind == "train":
            phase = "validation"
        fell = time.monotonic()
        host.kill(kill.victim, workers)
        reached = record.last()[0] if trains() else kept
        kept, damaged = newest(host.run_dir)
        previous = Outcome(kill.moment, kill.victim, phase, reached, kept, reached - kept, damaged)
        if kill.victim == "host":
            host.start()
    host.agent.wait(TIMEOUT_SECONDS)
    if previous is not None:
        previous.recovery_seconds = time.monotonic() - fell
        yield previous


def newest(run_dir: Path) -> tuple[int, int]:
    """The step of the newest valid checkpoint (0: none), and the number of newer, damaged ones."""
    damaged = 0
    for path in checkpoint.listing(run_dir)[::-1]:
        try:
            return int(checkpoint.open_checkpoint(path).manifest["step"]), damaged
        except checkpoint.Damaged:
            damaged += 1
    return 0, damaged


def same(one: Any, other: Any) -> bool:
    """Whether two values are bitwise equal."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Mapping):
        return (
            isinstance(other, Mapping) and one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def differences(one: Path, other: Path) -> list[str]:
    """The parts in which two finished runs differ, apart from their times."""
    differing = []
    a, b = checkpoint.read(one), checkpoint.read(other)
    parts = {"step": (a.step, b.step), "weights": (a.model_state, b.model_state)}
    parts |= {name: (a.state[name], b.state[name]) for name in ("optimizer", "ranks", "position")}
    parts["best checkpoint"] = (checkpoint.best_name(one), checkpoint.best_name(other))
    parts[SAMPLES] = ((one / SAMPLES).read_bytes(), (other / SAMPLES).read_bytes())
    parts[METRICS] = (comparable_records(one), comparable_records(other))
    for name, (first, second) in parts.items():
        if not same(first, second):
            differing.append(name)
    return differing


def comparable_records(run_dir: Path) -> list[dict[str, Any]]:
    """The records without their times."""
    return [{key: each[key] for key in COMPARED if key in each} for each in read_records(run_dir / METRICS)]


def measure(
    kills: int, seed: int, folder: Path, say: Callable[[str], None], checkpoint_format: str = "file"
) -> dict[str, Any]:
    """Run once undisturbed and once with kills; returns the result, whose ``faults`` are the violations."""
    job = [*SETTINGS, f"trainer.max_steps={steps(kills)}", f"trainer.checkpoint_format={checkpoint_format}"]
    most, began = INTERVAL if checkpoint_format == "file" else 2 * INTERVAL, time.monotonic()
    straight = Host(folder / "straight", job)
    try:
        status = straight.agent.wait(TIMEOUT_SECONDS)
    finally:
        straight.end()
    faults: list[str] = [] if status == 0 else [f"the undisturbed run ended with status {status}"]
    undisturbed, outcomes = time.monotonic() - began, []
    host = Host(folder / "disturbed", job)
    try:
        for number, outcome in enumerate(disturb(host, draw(kills, seed)), 1):
            outcomes.append(outcome)
            say(f"{number:3}  {outcome.victim:6} {outcome.phase:10} step {outcome.reached:4}, lost {outcome.lost:2}, "
                f"recovered after {outcome.recovery_seconds:.1f} s")  # fmt: skip
            if outcome.damaged or outcome.lost > most:
                faults.append(f"kill {number}: {outcome}")
        if host.agent.returncode != 0:
            faults.append(f"the disturbed run ended with status {host.agent.returncode}")
    finally:
        host.end()
    faults += [f"not the same: {part}" for part in differences(folder / "straight", folder / "disturbed")]
    lost = [outcome.lost for outcome in outcomes]
    return {
        "machine": machine.describe(),
        "seed": seed,
        "settings": job,
        "faults": faults,
        "kills": len(outcomes),
        "by_phase": dict(Counter(outcome.phase for outcome in outcomes)),
        "by_victim": dict(Counter(outcome.victim for outcome in outcomes)),
        "steps_lost": {"most": max(lost, default=0), "mean": round(sum(lost) / max(1, len(lost)), 2)},
        "seconds": {"undisturbed": round(undisturbed, 1), "all": round(time.monotonic() - began, 1)},
        "each": [asdict(outcome) for outcome in outcomes],
    }


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--format", choices=("file", "sharded"), default="file", help="trainer.checkpoint_format")
    parser.add_argument("--out", type=arguments.folder, help="a folder for resilience.json, or resilience_sharded.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(
            options.kills, options.seed, Path(folder), lambda line: print(line, flush=True), options.format
        )
        if result["faults"]:
            print((Path(folder) / "disturbed.log").read_text()[-5000:], file=sys.stderr)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        name = "resilience.json" if options.format == "file" else "resilience_sharded.json"
        (options.out / name).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: result[key] for key in ("faults", "by_phase", "by_victim", "steps_lost", "seconds")}))
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
