"""Training throughput of the 2x128 LSTM character model: prnn against plain torch, in characters per second.

    python -m benchmarks.training [--rounds 9] [--steps 40] [--out benchmarks/results/MACHINE]

Contenders, on the same batches (B 50, T 50, Adam 2e-3, clip 5), each in a separate process; rounds are interleaved, and
the other processes are idle meanwhile:

    torch.nn                a plain loop: forward, backward, clip, update, loss.item(), nothing else
    torch.nn, memory kept   the same with prnn's malloc settings (prnn/training/malloc.py)
    prnn.nn, memory kept    the same with prnn's module
    prnn.train              the full loop: data, finite check, collectives, records

A round measures the mean step time over ``--steps`` steps; the result is the median over rounds with its spread. The
modules must first give the same loss and gradients, or nothing is timed. The last measurement is in
benchmarks/results/, its conclusions in benchmarks/NOTES.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from benchmarks.common import machine, stats
from benchmarks.common.arguments import at_least, folder
from benchmarks.training.loops import Loss, PlainLoop, loss_and_gradients, with_recurrent
from prnn.config import CONF, LoggerConfig, ModelConfig, OptimizerConfig, TrainConfig, TrainerConfig
from prnn.nn import LSTM
from prnn.task import Batch, Position, Shard, State
from prnn.tasks.char_lm import CharLM, Config, DataConfig
from prnn.training import distributed, fit
from prnn.training.malloc import keep_freed_memory


class Timed(CharLM):
    """The task with a timestamp at each step's batch request: the step time includes all the loop does between."""

    stamps: list[float]

    def train_batches(self, shard: Shard, position: Position) -> Iterator[list[Batch]]:
        for batches in super().train_batches(shard, position):
            self.stamps.append(time.perf_counter())
            yield batches


def job(steps: int) -> TrainConfig:
    """The configuration of a measured run of ``steps`` optimizer steps."""
    corpus = "tinyshakespeare" if os.environ.get("PRNN_DATA") else "shakespeare"
    return TrainConfig(
        task=Config(sample_length=0, eval_tokens=2),
        data=DataConfig(**OmegaConf.load(CONF / "data" / f"{corpus}.yaml")),
        model=ModelConfig(cell="lstm", hidden_size=128, num_layers=2),
        optimizer=OptimizerConfig(name="adam", lr=2e-3),
        trainer=TrainerConfig(max_steps=steps, eval_every=0, checkpoint_every=0, log_every=10, progress="off"),
        logger=LoggerConfig(),
    )


def model_of(task: CharLM, module: type[nn.Module]) -> nn.Module:
    """The task's model with torch's or prnn's LSTM and identical weights."""
    torch.manual_seed(0)
    return with_recurrent(task.build_model(), module)


def mean_loss(task: CharLM) -> Loss:
    """The task's loss per prediction."""

    def loss(model: nn.Module, batch: Batch, state: State) -> tuple[Tensor, State]:
        total, state = task.loss(model, batch, state)
        return total / batch.count, state

    return loss


def plain_loop(task: CharLM, module: type[nn.Module]) -> PlainLoop:
    model = model_of(task, module)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, fused=True)
    return PlainLoop(model, mean_loss(task), optimizer, clip=5.0)


def framework(task: Timed, steps: int) -> float:
    """Seconds per step of ``prnn.training.fit``, without the first five steps."""
    task.stamps = []
    with tempfile.TemporaryDirectory() as folder:
        fit(task.cfg, task, distributed.World(), Path(folder) / "run")
    task.stamps = task.stamps[5:]
    return (task.stamps[-1] - task.stamps[0]) / (len(task.stamps) - 1)


def check(task: CharLM, batch: Batch) -> float:
    """The largest relative difference of loss and gradients between the modules; exits if above rounding error."""
    theirs, ours = (loss_and_gradients(model_of(task, m), mean_loss(task), batch) for m in (nn.LSTM, LSTM))
    worst, tensor = stats.disagreement(ours, theirs)
    if worst > 1e-4:
        sys.exit(f"the two modules disagree by {worst:.2g} in {tensor}: nothing was timed")
    return worst


CONTENDERS = ("torch.nn", "torch.nn, memory kept", "prnn.nn, memory kept", "prnn.train")


def worker(connection: Connection, name: str, steps: int) -> None:
    """The process of one contender: runs a round per message and sends its seconds per step."""
    if name != "torch.nn":
        keep_freed_memory()
    torch.set_num_threads(os.cpu_count() or 1)
    task = Timed.from_config(job(steps + 6))
    if name == "prnn.train":
        contender = partial(framework, task, steps)
    else:
        loop = plain_loop(task, LSTM if name.startswith("prnn") else nn.LSTM)
        contender = partial(loop, first_batches(task, steps))
    while connection.recv():
        connection.send(contender())


def first_batches(task: Timed, steps: int) -> list[Batch]:
    task.stamps = []
    stream = task.train_batches(Shard(), Position())
    return [next(stream)[0] for _ in range(steps)]


def measure(rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds per step of each contender and round, after a warm-up round."""
    spawn = multiprocessing.get_context("spawn")
    pipes = {}
    for name in CONTENDERS:
        pipes[name], theirs = spawn.Pipe()
        spawn.Process(target=worker, args=(theirs, name, steps), daemon=True).start()
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for i in range(rounds + 1):
        for name, pipe in pipes.items():
            pipe.send(True)
            took = pipe.recv()
            if i > 0:
                seconds[name].append(took)
    for pipe in pipes.values():
        pipe.send(False)
    return seconds


def compare(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """The speedups and the loop overhead, computed per round."""
    plain, kept, ours, loop = seconds.values()
    ratios = {
        "prnn.train over torch.nn": [a / b for a, b in zip(plain, loop, strict=True)],
        "prnn.train over torch.nn, memory kept": [a / b for a, b in zip(kept, loop, strict=True)],
        "loop overhead over forward+backward+update": [b / a - 1 for a, b in zip(ours, loop, strict=True)],
    }
    return {name: stats.spread(values) for name, values in ratios.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=at_least(1), default=9)
    parser.add_argument("--steps", type=at_least(1), default=40)
    parser.add_argument("--out", type=folder, help="folder for training.json")
    arguments = parser.parse_args()

    torch.set_num_threads(os.cpu_count() or 1)
    task = Timed.from_config(job(1))
    batch = first_batches(task, 1)[0]
    difference = check(task, batch)
    print(f"loss and gradients agree to {difference:.1g}; {arguments.rounds} rounds of {arguments.steps} steps")
    seconds = measure(arguments.rounds, arguments.steps)

    results = {name: stats.spread([1e3 * s for s in values], 2) for name, values in seconds.items()}
    print(f"{'':22} {'ms/step':>8} {'min':>8} {'max':>8} {'characters/s':>13}")
    for name, row in results.items():
        row["characters_per_second"] = round(1e3 * batch.tokens / row["median"])
        print("{:22} {:8.2f} {:8.2f} {:8.2f} {:13,.0f}".format(name, *row.values()))
    ratios = compare(seconds)
    for name, row in ratios.items():
        print("{}: median {}, from {} to {}".format(name, *row.values()))
    if arguments.out:
        record = {
            "benchmark": "training",
            "machine": machine.describe(),
            "rounds": arguments.rounds,
            "steps": arguments.steps,
            "relative_difference": difference,
            "step_ms": results,
            "ratios": ratios,
        }
        stats.write(arguments.out, "training", record)


if __name__ == "__main__":
    main()
