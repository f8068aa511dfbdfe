"""Validation, samples and the test: they read the model and leave training's random numbers alone."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from prnn.config import TrainConfig
from prnn.tasks.task import Batch, Shard, State, Task, Tested
from prnn.training import rng
from prnn.training.activity import Activity
from prnn.training.distributed import World
from prnn.training.interrupts import Interrupts
from prnn.training.step import autocast, to_device

PIECE_SECONDS = 1.0  # of validation between two exchanges of the processes


def evaluate(
    cfg: TrainConfig, task: Task, model: nn.Module, world: World, interrupts: Interrupts, activity: Activity
) -> tuple[dict[str, float], list[float]]:
    """Mean figures over the whole validation data, and the signals any process has received meanwhile.

    When any process is told to stop all leave off, and the figures are empty. They are empty as well where the task
    has no validation data.
    """
    sums: dict[str, torch.Tensor] = {}
    count, state = 0, None
    own = task.eval_batches(Shard(world.rank, world.size))
    piece_seconds = min(PIECE_SECONDS, cfg.distributed.timeout_seconds / 4)
    model.eval()
    with torch.no_grad(), rng.isolated(cfg.seed, world.device):
        for batch in _together(own, world, interrupts, piece_seconds):
            activity.move()
            batch = to_device(batch, world.device)
            before: State = None if batch.fresh else state
            with autocast(cfg.trainer.precision, world.device):
                figures, state = task.eval_step(model, batch, before)
            for name, figure in figures.items():
                sums[name] = sums.get(name, 0) + figure.double()
            count += batch.count
    model.train()
    everyone = world.gather(({name: float(value) for name, value in sums.items()}, count, interrupts.flags()))
    signals = [sum(flags) for flags in zip(*(flags for _, _, flags in everyone), strict=True)]
    total = sum(part for _, part, _ in everyone)
    if any(signals) or total == 0:
        return {}, signals
    names = dict.fromkeys(name for figures, _, _ in everyone for name in figures)  # a rank may have had no batch
    means = {name: sum(figures.get(name, 0.0) for figures, _, _ in everyone) / total for name in names}
    return means, signals


def _together(own: Iterable[Batch], world: World, interrupts: Interrupts, piece_seconds: float) -> Iterator[Batch]:
    """This process's batches, until all processes are through with theirs or one of them is told to stop.

    The shares may differ widely: a text in one stream is all rank 0's. So the processes meet after every piece, those
    without data too: none waits for another longer than a piece and a batch, whatever
    ``distributed.timeout_seconds`` is, and a signal to any is heard by all.
    """
    batches, through = iter(own), False
    while True:
        end = time.monotonic() + piece_seconds
        while not through and not interrupts.received and time.monotonic() < end:
            batch = next(batches, None)
            if batch is None:
                through = True
            else:
                yield batch
        ready, *signals = world.all_sum([float(through), *interrupts.flags()])
        if ready == world.size or any(signals):
            return


def sample(cfg: TrainConfig, task: Task, model: nn.Module, world: World, step: int) -> str | None:
    """A sample of the model's output, drawn from the seed and the step alone; None where the task has none."""
    with _reading(cfg, model, world, step):
        return task.sample(model, world.device)


def test(cfg: TrainConfig, task: Task, model: nn.Module, world: World, step: int) -> Tested:
    """The task's test, of the seed and the step alone."""
    with _reading(cfg, model, world, step):
        return task.test(model, world.device)


@contextmanager
def _reading(cfg: TrainConfig, model: nn.Module, world: World, step: int) -> Iterator[None]:
    """The model is asked, not trained."""
    model.eval()
    with torch.no_grad(), rng.isolated(cfg.seed + step, world.device):
        yield
    model.train()
