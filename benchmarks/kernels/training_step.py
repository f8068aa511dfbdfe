"""Whole training steps with prnn's layer and with torch.nn's, interleaved in one process.

    irnn_paper  pixel-by-pixel digits: RNN (relu, identity), B 16 as in the paper, T 784, I 1, H 100, linear classifier
                to 10 classes, cross entropy, RMSprop 1e-6, gradients clipped to norm 1. Its unit is an image.
    irnn_keras  the same with the B 32 of Keras' example.
    char_lm     prnn's 2x128 LSTM character model: B 50, T 50, 65 symbols, embedding 128, state carried on, Adam 2e-3,
                clip 5. Its unit is a character.

Both with the default malloc settings and, in further rows, with prnn.training.malloc.keep_freed_memory, as in
prnn-train: in two consecutive processes, since the setting is per process. Data is random; loss and gradients of the
two layers are compared first.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prnn
from benchmarks.common import stats
from benchmarks.common.arguments import at_least
from benchmarks.kernels.peers import OURS, REFERENCE
from benchmarks.training.loops import Loss, PlainLoop, loss_and_gradients, with_recurrent
from prnn.config import ModelConfig
from prnn.task import map_state
from prnn.tasks.char_lm import CharModel
from prnn.training.malloc import keep_freed_memory

PACKAGES = {REFERENCE: nn, OURS: prnn}
MALLOC = ("default", "freed memory kept")
TOLERANCE = 2e-4


class Irnn(nn.Module):
    """ReLU RNN initialized with the identity (Le, Jaitly and Hinton 2015); last state to 10 classes."""

    def __init__(self, H: int) -> None:
        super().__init__()
        self.recurrent = nn.RNN(1, H, nonlinearity="relu")
        self.classifier = nn.Linear(H, 10)
        with torch.no_grad():
            self.recurrent.weight_hh_l0.copy_(torch.eye(H))
            self.recurrent.weight_ih_l0.normal_(0, 0.001)
            self.recurrent.bias_ih_l0.zero_()
            self.recurrent.bias_hh_l0.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """x [T,B,1] -> logits [B,10]"""
        return self.classifier(self.recurrent(x)[0][-1])


def irnn_loss(model: nn.Module, batch: tuple[Tensor, Tensor], state: None) -> tuple[Tensor, None]:
    return F.cross_entropy(model(batch[0]), batch[1]), None


def char_loss(model: nn.Module, batch: tuple[Tensor, Tensor], state: Any) -> tuple[Tensor, Any]:
    logits, state = model(batch[0], state)
    return F.cross_entropy(logits.flatten(0, 1), batch[1].flatten()), map_state(torch.Tensor.detach, state)


@dataclass(frozen=True)
class Job:
    loss: Loss
    batch_size: int
    clip: float
    unit: str
    units_of_a_sample: int
    target: float  # over torch.nn

    def model(self, package: object) -> nn.Module:
        torch.manual_seed(0)
        if self.loss is irnn_loss:
            return with_recurrent(Irnn(100), package.RNN)  # type: ignore[attr-defined]
        model = CharModel(65, ModelConfig(cell="lstm", hidden_size=128, num_layers=2, embedding_size=128))
        return with_recurrent(model, package.LSTM)  # type: ignore[attr-defined]

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        if self.loss is irnn_loss:
            return torch.optim.RMSprop(model.parameters(), lr=1e-6)
        return torch.optim.Adam(model.parameters(), lr=2e-3, fused=True)

    def batches(self, count: int) -> list[tuple[Tensor, Tensor]]:
        torch.manual_seed(1)
        B = self.batch_size
        if self.loss is irnn_loss:
            return [(torch.rand(784, B, 1), torch.randint(10, (B,))) for _ in range(count)]
        return [(torch.randint(65, (50, B)), torch.randint(65, (50, B))) for _ in range(count)]


JOBS = {
    "irnn_paper": Job(irnn_loss, 16, 1.0, "images", 1, 4.0),
    "irnn_keras": Job(irnn_loss, 32, 1.0, "images", 1, 4.0),
    "char_lm": Job(char_loss, 50, 5.0, "characters", 50, 1.3),
}


def measure(job: Job, rounds: int, batches: int) -> dict[str, object]:
    """Measure one job in this process, with the current malloc settings; times are per step."""
    data = job.batches(batches)
    models = {name: job.model(package) for name, package in PACKAGES.items()}
    results = {name: loss_and_gradients(model, job.loss, data[0]) for name, model in models.items()}
    difference, tensor = stats.disagreement(results[OURS], results[REFERENCE])
    if difference > TOLERANCE:
        return {"disagreement": [f"{OURS} differs from {REFERENCE} by {difference:.2g} in {tensor}"]}
    loops = {name: PlainLoop(model, job.loss, job.optimizer(model), job.clip) for name, model in models.items()}
    runs = {name: partial(loop, data) for name, loop in loops.items()}
    seconds = {name: [s / batches for s in values] for name, values in stats.interleave(runs, rounds).items()}
    ratio = stats.ratios(seconds[REFERENCE], seconds[OURS])
    milliseconds = {name: stats.milliseconds(values) for name, values in seconds.items()}
    units = job.batch_size * job.units_of_a_sample
    return {
        "difference": float(f"{difference:.2g}"),
        "milliseconds": milliseconds,
        "per_second": {name: round(1e3 * units / row["median"], 2) for name, row in milliseconds.items()},
        "unit": job.unit,
        "ratio": ratio,
        "target": job.target,
        "met": ratio["median"] >= job.target,
    }


def run(threads: int, rounds: int, batches: int = 3) -> dict[str, object]:
    """All jobs under both settings of malloc, each setting in a fresh process."""
    records = []
    for malloc in MALLOC:
        command = [sys.executable, "-m", "benchmarks.kernels.training_step", f"--threads={threads}"]
        command += [f"--rounds={rounds}", f"--batches={batches}", f"--malloc={malloc}"]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        for record in json.loads(output.splitlines()[-1]):
            records.append(record)
            print(line(record), flush=True)
    return {"cases": records}


def line(record: dict[str, Any]) -> str:
    head = f"{record['name']:10} malloc: {record['malloc']:18}"
    if "disagreement" in record:
        return f"{head} WRONG, no speed: {'; '.join(record['disagreement'])}"
    ratio = record["ratio"]
    shown = [
        f"{name} {record['milliseconds'][name]['median']:.2f} ms ({record['per_second'][name]:,.1f} {record['unit']}/s)"
        for name in (OURS, REFERENCE)
    ]
    goal = f"target {record['target']} {'met' if record['met'] else 'MISSED'}"
    return f"{head} {', '.join(shown)}, {ratio['median']:.2f}x [{ratio['min']:.2f}-{ratio['max']:.2f}] {goal}"


def main() -> None:
    """The process for one malloc setting: prints a JSON list as its last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=at_least(1), default=torch.get_num_threads())
    parser.add_argument("--rounds", type=at_least(1), default=9)
    parser.add_argument("--batches", type=at_least(1), default=3, help="steps in one sample")
    parser.add_argument("--malloc", choices=MALLOC, default=MALLOC[0])
    options = parser.parse_args()
    if options.malloc != MALLOC[0] and not keep_freed_memory():
        print("[]")  # no glibc: there is nothing to set
        return
    stats.limit_threads(options.threads)
    records = {name: measure(job, options.rounds, options.batches) for name, job in JOBS.items()}
    print(json.dumps([{"name": name, "malloc": options.malloc} | record for name, record in records.items()]))


if __name__ == "__main__":
    main()
