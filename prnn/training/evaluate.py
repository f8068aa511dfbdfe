"""Validation, samples and the test, which leave the random numbers of training alone.

All processes call them, and a signal to any process during one raises ``StopRequested`` on all.
"""

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
from prnn.error_messages import backend_refused
from prnn.task import Batch, Shard, State, Task, TaskResults
from prnn.training import rng
from prnn.training.device import autocast, to_device
from prnn.training.distributed import World
from prnn.training.interrupts import Interrupts, first_signal, raise_if_requested
from prnn.training.observe.activity import Activity

T = TypeVar("T")
PIECE_SECONDS = 1.0  # of validation, of a sample or of the test between two collectives


def evaluate(
    cfg: TrainConfig, task: Task, model: nn.Module, world: World, interrupts: Interrupts, activity: Activity
) -> dict[str, float]:
    """Mean figures over the whole validation data; none where the task has no validation data."""
    sums: dict[str, torch.Tensor] = {}
    count, state = 0, None
    local_batches = task.eval_batches(Shard(world.rank, world.size))
    model.eval()
    with torch.no_grad(), rng.isolated(cfg.seed, world.device):
        for batch in _until_all_end(local_batches, world, interrupts, activity, _piece_seconds(cfg)):
            batch = to_device(batch, world.device)
            before: State = None if batch.reset_state else state
            with autocast(cfg.trainer.precision, world.device):
                figures, state = task.eval_step(model, batch, before)
            for name, figure in figures.items():
                sums[name] = sums.get(name, 0) + figure.double()
            count += batch.count
    model.train()
    ranks = world.gather(({name: float(value) for name, value in sums.items()}, count, interrupts.flags()))
    raise_if_requested([sum(flags) for flags in zip(*(flags for _, _, flags in ranks), strict=True)])
    total = sum(part for _, part, _ in ranks)
    if total == 0:
        return {}
    names = dict.fromkeys(name for figures, _, _ in ranks for name in figures)  # a rank may have had no batch
    return {name: sum(figures.get(name, 0.0) for figures, _, _ in ranks) / total for name in names}


def _until_all_end(
    local_batches: Iterable[Batch], world: World, interrupts: Interrupts, activity: Activity, piece_seconds: float
) -> Iterator[Batch]:
    """This process's batches, until all processes have reached the end of theirs or one has received a signal.

    The shares may differ widely: a text in one stream is all rank 0's. So there is a collective after every piece, of
    the processes without data too: none waits for another longer than a piece and a batch, whatever
    ``distributed.timeout_seconds`` is, and all know of a signal to any.
    """
    batches, through = iter(local_batches), False
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
        activity.move()  # a rank at its end waits for the others, and they go on
        if ready == world.size or any(signals):
            return


def _piece_seconds(cfg: TrainConfig) -> float:
    return min(PIECE_SECONDS, cfg.distributed.timeout_seconds / 4)


def sample(
    cfg: TrainConfig, task: Task, model: nn.Module, world: World, interrupts: Interrupts, step: int
) -> str | None:
    """Rank 0's sample of the model's output, a function of the model, the seed and the step alone.

    None where the task has none, and on other ranks.
    """

    def read() -> str | None:
        with _evaluation_mode(model):
            return task.sample(model, world.device)

    return _on_rank_0(read, cfg, world, interrupts, step)


def test(
    cfg: TrainConfig,
    task: Task,
    best: Callable[[], tuple[nn.Module, int]],
    world: World,
    interrupts: Interrupts,
    step: int,
) -> tuple[TaskResults, int] | None:
    """Rank 0's test of the model that ``best`` returns, with its step; a function of the model, the seed and ``step``.

    None on other ranks.
    """

    def read() -> tuple[TaskResults, int]:
        model, of_step = best()
        with _evaluation_mode(model):
            return task.test(model, world.device), of_step

    return _on_rank_0(read, cfg, world, interrupts, step)


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    model.eval()
    try:
        yield
    finally:
        model.train()


def _on_rank_0(read: Callable[[], T], cfg: TrainConfig, world: World, interrupts: Interrupts, step: int) -> T | None:
    """What ``read`` returns on rank 0; None on other ranks.

    It may take hours and checks for no signal, so a signal interrupts it, one to another process too: there is a
    collective after every piece, as in a validation, on rank 0 in a thread.
    """
    through = threading.Event()
    if not world.is_main:
        raise_if_requested(_wait_for_rank_0(world, interrupts, through, 0.0))
        return None
    with torch.no_grad(), rng.isolated(cfg.seed + step, world.device), ThreadPoolExecutor(1) as pool:
        signals = pool.submit(_wait_for_rank_0, world, interrupts, through, _piece_seconds(cfg))
        try:
            value = interrupts.cut_short(read)
        except ops.BackendError as error:  # on rank 0 alone
            raise backend_refused(error) from error
        finally:
            through.set()
    raise_if_requested(signals.result())
    return value


def _wait_for_rank_0(
    world: World, interrupts: Interrupts, through: threading.Event, piece_seconds: float
) -> list[float]:
    """A collective every ``piece_seconds`` until rank 0 is ``through`` or a process received a signal; the flags of
    signals, summed over the processes.
    """
    while True:
        done = through.wait(piece_seconds)
        ready, *signals = world.all_sum([float(done), *interrupts.flags()])
        number = first_signal(signals)
        if number is not None and not done and world.is_main:
            interrupts.pass_on(number)
        if ready or number is not None:
            return signals
