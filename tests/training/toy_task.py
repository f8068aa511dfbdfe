"""A small task of the tests' own: the loop knows nothing of it but the Task protocol.

Predict the next number of noisy sine waves with carried state and dropout. ``nan_at`` makes the loss of one rank
NaN at a step; ``counts`` shares the predictions out unevenly over the rows.
"""

from __future__ import annotations

import gc
import hashlib
import os
import signal
import sys
import threading
import time
from ast import literal_eval
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from prnn.config import ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig, TrainerConfig
from prnn.error_messages import user_error
from prnn.task import Batch, Position, Shard, State, Task, TaskResults
from prnn.training import checkpoint, distributed, fit
from prnn.training.observe import summary

TIME, ROWS = 6, 12  # steps of a batch, validation sequences


@dataclass
class ToyConfig:
    name: str = "toy"
    steps_per_epoch: int = 7
    dropout: float = 0.0
    uneven: bool = False  # row r has 1 + r % 5 predictions instead of 6
    nan_at: int = -1  # the loss of rank `nan_rank` is NaN at this step (0-based, over all epochs)
    nan_rank: int = 0
    signal_at: int = -1  # rank `nan_rank` sends itself `signal` before this batch
    signal: int = int(signal.SIGTERM)
    signal_in_eval: bool = False  # ... or in the first validation at or after that batch
    slow_seconds: float = 0.0  # rank `nan_rank` takes that much longer for each forward pass
    sleep_at: int = -1  # rank `nan_rank` sleeps for `sleep_seconds` before this batch
    sleep_seconds: float = 0.0
    layers: int = 1
    signal_delay: float = 0.0  # above 0: ... or so many seconds after that batch, whatever it is doing then
    save_seconds: float = 0.0  # a checkpoint takes so long
    sample_seconds: float = 0.0  # a sample
    test_seconds: float = 0.0  # and the test
    eval_seconds: float = 0.0  # above 0: rank 0 reads all validation data, in 20 batches that take so long together


@dataclass
class ToyData:
    noise: float = 0.1


class ToyModel(nn.Module):
    def __init__(self, hidden_size: int, dropout: float, layers: int) -> None:
        super().__init__()
        self.rnn = nn.GRU(1, hidden_size, layers)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden_size, 1)

    def forward(self, x: Tensor, h: State) -> tuple[Tensor, Tensor]:
        output, h = self.rnn(x, h)
        return self.head(self.dropout(output)), h


class ToyTask(Task):
    Config, DataConfig, unit = ToyConfig, ToyData, "numbers"

    def __init__(self, cfg: Any) -> None:
        self.cfg = cfg
        self.seen = self.evaluated = 0
        self.slow_seconds = 0.0
        self.unhurried = 0.0  # seconds spent in samples and the test

    @classmethod
    def from_config(cls, cfg: Any, state: dict[str, Any] | None = None) -> ToyTask:
        return cls(cfg)

    def state_dict(self) -> dict[str, Any]:
        time.sleep(self.cfg.task.save_seconds)
        return {"toy": True}

    def build_model(self) -> nn.Module:
        self.model = ToyModel(self.cfg.model.hidden_size, self.cfg.task.dropout, self.cfg.task.layers)
        return self.model

    def steps_per_epoch(self) -> int:
        return self.cfg.task.steps_per_epoch

    def _rows(self, seed: int, rows: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        phase = torch.rand(rows, generator=generator) * 6
        wave = torch.sin(phase + 0.5 * torch.arange(TIME + 1).unsqueeze(1))
        wave = (wave + self.cfg.data.noise * torch.randn(TIME + 1, rows, generator=generator)).unsqueeze(-1)
        mask = torch.ones(TIME, rows, 1)
        if self.cfg.task.uneven:
            mask = (torch.arange(TIME).unsqueeze(1) < 1 + torch.arange(rows) % 5).unsqueeze(-1).float()
        return wave, mask

    def train_batches(self, shard: Shard, position: Position) -> Iterator[list[Batch]]:
        task = self.cfg.task
        for index in range(position.index, task.steps_per_epoch):
            self.seen = position.epoch * task.steps_per_epoch + index
            wave, mask = self._rows(1000 * position.epoch + index, self.cfg.trainer.batch_size)
            if self.seen == task.nan_at and shard.rank == task.nan_rank:
                wave = wave * float("nan")
            if self.seen == task.signal_at and shard.rank == task.nan_rank and not task.signal_in_eval:
                if task.signal_delay:
                    threading.Timer(task.signal_delay, os.kill, (os.getpid(), task.signal)).start()
                else:
                    os.kill(os.getpid(), task.signal)
            if self.seen == task.sleep_at and shard.rank == task.nan_rank:
                fall_asleep(task.sleep_seconds)
            self.slow_seconds = task.slow_seconds if shard.rank == task.nan_rank else 0.0
            yield shard.batches(self.cfg.trainer.batch_size, partial(self._batch, wave, mask, index == 0))

    def _batch(self, wave: Tensor, mask: Tensor, reset_state: bool, rows: slice) -> Batch:
        part = {"wave": wave[:, rows], "mask": mask[:, rows]}
        count = int(part["mask"].sum())
        return Batch(part, count, count, reset_state)

    def loss(self, model: nn.Module, batch: Batch, state: State) -> tuple[Tensor, State]:
        wave = batch.tensors["wave"]
        time.sleep(self.slow_seconds)
        predicted, h = model(wave[:-1], state)
        return ((predicted - wave[1:]) ** 2 * batch.tensors["mask"]).sum(), h.detach()

    def eval_step(self, model: nn.Module, batch: Batch, state: State) -> tuple[dict[str, Tensor], State]:
        loss, state = self.loss(model, batch, state)
        return {"loss": loss, "twice": 2 * loss}, state

    def eval_batches(self, shard: Shard) -> Iterator[Batch]:
        task = self.cfg.task
        if task.signal_in_eval and shard.rank == task.nan_rank and self.seen >= task.signal_at >= 0:
            os.kill(os.getpid(), task.signal)
        numbers = range(shard.rank, 5, shard.world_size)  # five batches: ranks get different numbers of them
        if task.eval_seconds:
            numbers = range(20 if shard.rank == 0 else 0)
        for number in numbers:
            time.sleep(task.eval_seconds / 20)
            self.evaluated += 1
            wave, mask = self._rows(10**6 + number, ROWS)
            yield Batch({"wave": wave, "mask": mask}, int(mask.sum()), int(mask.sum()))

    def test(self, model: nn.Module, device: torch.device) -> TaskResults:
        self._take(self.cfg.task.test_seconds)

        def line() -> Figure:
            figure = Figure(figsize=(1, 1))
            figure.subplots().plot([0, 1])
            return figure

        return TaskResults({"weight": float(model.head.bias)}, {"line": line}, {"weight": "of the head"})

    def sample(self, model: nn.Module, device: torch.device) -> str | None:
        text = f"{float(torch.rand(())):.6f}"  # draws, to show that training is not disturbed
        self._take(self.cfg.task.sample_seconds)
        return text

    def _take(self, seconds: float) -> None:
        """Be busy, in Python, without a look at anything."""
        for _ in range(round(seconds / 0.1)):
            self.unhurried += 0.1
            time.sleep(0.1)


def fall_asleep(seconds: float) -> None:
    time.sleep(seconds)


def toy_config(**settings: Any) -> TrainConfig:
    """A small configuration; ``settings`` are found in the section that knows them, ``schedule`` is a dictionary."""
    cfg = TrainConfig(task=ToyConfig(), data=ToyData(), model=ModelConfig(hidden_size=8), optimizer=OptimizerConfig())
    cfg.trainer = TrainerConfig(
        max_steps=20, batch_size=8, log_every=1, eval_every=5, checkpoint_every=5, threads=1, progress="off"
    )
    if "schedule" in settings:
        settings["schedule"] = ScheduleConfig(**settings["schedule"])
    for key, value in settings.items():
        sections = [s for s in (cfg.task, cfg.data, cfg.trainer, cfg.model, cfg.optimizer, cfg.logger, cfg.distributed)
                    if key in {f.name for f in fields(s)}]  # fmt: skip
        setattr(sections[0] if sections else cfg, key, value)
    return cfg


def main() -> int:
    """``toy_task.py RUN_DIR [resume] key=value ... [-- RUN_DIR ...]``: jobs one after the other, in one process."""
    jobs: list[list[str]] = [[]]
    for word in sys.argv[1:]:
        jobs.append([]) if word == "--" else jobs[-1].append(word)
    summary._loss_plot = lambda path, title: Figure(figsize=(1, 1))  # tests/conftest.py says why
    statuses = [run_job(*words) for words in jobs]
    gc.collect()
    left = sum(type(each) is DistributedDataParallel for each in gc.get_objects())
    print(f"{left or 'no'} network is left", flush=True)
    distributed.leave(max(statuses))
    return max(statuses)


def run_job(run_dir: str, *words: str) -> int:
    cfg = toy_config(**{key: literal_eval(value) for key, value in (w.split("=") for w in words if w != "resume")})
    world = distributed.setup(cfg.distributed, cfg.trainer)
    try:
        resume = world.on_main(lambda: checkpoint.read(run_dir)) if "resume" in words else None
        task = ToyTask(cfg)
        outcome = fit(cfg, task, world, Path(run_dir), resume)
    except Exception as error:
        message = user_error(error)
        if message is None:
            raise
        print(f"{Path(run_dir).name} rank {world.rank}: {message}", flush=True)
        return message.exit_status
    digest = hashlib.sha256(repr([p.tolist() for p in task.model.parameters()]).encode()).hexdigest()
    print(f"{Path(run_dir).name} rank {world.rank} weights {digest}")
    packages = sorted({"wandb", "tensorboard"} & sys.modules.keys())
    print(f"{Path(run_dir).name} rank {world.rank} imported {packages}, evaluated {task.evaluated}")
    print(f"{Path(run_dir).name} rank {world.rank} sampled and tested for {task.unhurried:.1f} s")
    print(f"{Path(run_dir).name} rank {world.rank}: {outcome.reason} {outcome.signal} {outcome.step}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
