"""Validation and samples: they read the model and leave training's random numbers alone."""

from __future__ import annotations

import torch
from torch import nn

from prnn.config import TrainConfig
from prnn.tasks.task import Shard, State, Task
from prnn.training import rng
from prnn.training.distributed import World
from prnn.training.interrupts import Interrupts
from prnn.training.step import autocast, to_device


def evaluate(
    cfg: TrainConfig, task: Task, model: nn.Module, world: World, interrupts: Interrupts
) -> tuple[dict[str, float], list[float]]:
    """Mean figures over the whole validation data, and the signals any process has received meanwhile.

    A process that is told to stop leaves off at once and says so in the exchange that ends every evaluation;
    the figures are then empty. They are empty as well where the task has no validation data.
    """
    sums: dict[str, torch.Tensor] = {}
    count, state = 0, None
    model.eval()
    with torch.no_grad(), rng.isolated(cfg.seed, world.device):
        for batch in task.eval_batches(Shard(world.rank, world.size)):
            if interrupts.received:
                break
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


def sample(cfg: TrainConfig, task: Task, model: nn.Module, world: World, step: int) -> str | None:
    """A sample of the model's output, drawn from the seed and the step alone; None where the task has none."""
    model.eval()
    with torch.no_grad(), rng.isolated(cfg.seed + step, world.device):
        text = task.sample(model, world.device)
    model.train()
    return text
