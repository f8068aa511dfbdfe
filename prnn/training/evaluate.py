"""Validation, samples and the test: they read the model and leave training's random numbers alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from prnn import ops
from prnn.config import TrainConfig
from prnn.task import Batch, Shard, State, Task, Tested
from prnn.training import mistakes, rng
from prnn.training.device import autocast, to_device
from prnn.training.distributed import World
from prnn.training.interrupts import Interrupts, first_signal
from prnn.training.observe.activity import Activity

T = TypeVar("T")
PIECE_SECONDS = 1.0  # of validation, of a sample or of the test between two exchanges of the processes


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
    model.eval()
    with torch.no_grad(), rng.isolated(cfg.seed, world.device):
        for batch in _together(own, world, interrupts, activity, _piece_seconds(cfg)):
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


def _together(
    own: Iterable[Batch], world: World, interrupts: Interrupts, activity: Activity, piece_seconds: float
) -> Iterator[Batch]:
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
                activity.move()
                yield batch
        ready, *signals = world.all_sum([float(through), *interrupts.flags()])
        activity.move()  # a rank that is through waits for the others, and they go on
        if ready == world.size or any(signals):
            return


def _piece_seconds(cfg: TrainConfig) -> float:
    return min(PIECE_SECONDS, cfg.distributed.timeout_seconds / 4)


def sample(
    cfg: TrainConfig, task: Task, model: nn.Module, world: World, interrupts: Interrupts, step: int
) -> tuple[str | None, list[float]]:
    """Rank 0's sample of the model's output, of the seed and the step alone, and the signals received meanwhile.

    None where the task has none, on other ranks, and where there was a signal.
    """

    def read() -> str | None:
        with _asked(model):
            return task.sample(model, world.device)

    return _alone(read, cfg, world, interrupts, step)


def test(
    cfg: TrainConfig,
    task: Task,
    best: Callable[[], tuple[nn.Module, int]],
    world: World,
    interrupts: Interrupts,
    step: int,
) -> tuple[tuple[Tested, int] | None, list[float]]:
    """Rank 0's test of the model that ``best`` finds, with its step, of the seed and ``step`` alone, and the signals
    received meanwhile.

    None on other ranks, and where there was a signal.
    """

    def read() -> tuple[Tested, int]:
        model, of_step = best()
        with _asked(model):
            return task.test(model, world.device), of_step

    return _alone(read, cfg, world, interrupts, step)


@contextmanager
def _asked(model: nn.Module) -> Iterator[None]:
    """The model is asked, not trained, whatever breaks in."""
    model.eval()
    try:
        yield
    finally:
        model.train()


def _alone(
    read: Callable[[], T], cfg: TrainConfig, world: World, interrupts: Interrupts, step: int
) -> tuple[T | None, list[float]]:
    """What ``read`` finds out about the model on rank 0, and the signals that any process has received meanwhile.

    It may take hours and looks at no signal, so one breaks into it, one to another process too: the processes meet
    after every piece, as in a validation. On rank 0 a thread does that.
    """
    through = threading.Event()
    if not world.is_main:
        return None, _meet(world, interrupts, through, 0.0)
    with torch.no_grad(), rng.isolated(cfg.seed + step, world.device), ThreadPoolExecutor(1) as pool:
        heard = pool.submit(_meet, world, interrupts, through, _piece_seconds(cfg))
        try:
            found = interrupts.cut_short(read)
        except ops.BackendError as error:  # the other processes do not come upon it
            raise mistakes.backend_refused(error) from error
        finally:
            through.set()
    signals = heard.result()
    return (None if any(signals) else found), signals


def _meet(world: World, interrupts: Interrupts, through: threading.Event, piece_seconds: float) -> list[float]:
    """Meet the other processes until rank 0 is ``through`` or one of them is told to stop; the signals received."""
    while True:
        done = through.wait(piece_seconds)
        ready, *signals = world.all_sum([float(done), *interrupts.flags()])
        number = first_signal(signals)
        if number is not None and not done and world.is_main:
            interrupts.pass_on(number)
        if ready or number is not None:
            return signals
