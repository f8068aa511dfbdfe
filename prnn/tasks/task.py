"""The door between the loop and what is learned: the Task protocol.

The loop in ``prnn.training`` knows this file and nothing of any particular task. A task lives in
``prnn/tasks/<name>.py``, which defines ``TASK``, a subclass of ``Task``; ``task=<name>`` finds it.

One optimizer step consumes ``trainer.batch_size`` sequences, split over processes and micro-batches
(``Shard``). The split changes the order of summation and nothing else: the same sequences meet the
same weights, so 1 process x 4 micro-batches and 4 processes x 1 follow the same curve.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

# Hidden state carried from batch to batch: None, a tensor, or nested tuples of tensors.
State = Any


def map_state(function: Callable[[Tensor], Tensor], state: State) -> State:
    """Apply ``function`` to every tensor of a carried state."""
    if state is None:
        return None
    if isinstance(state, Tensor):
        return function(state)
    return tuple(map_state(function, part) for part in state)


@dataclass(frozen=True)
class Shard:
    """Which part of each global batch this process computes."""

    rank: int = 0
    world_size: int = 1
    accumulate: int = 1

    def slice(self, batch_size: int, micro: int) -> slice:
        """Rows of the global batch of ``batch_size`` that belong to micro-batch ``micro`` of this rank."""
        parts = self.world_size * self.accumulate
        size = batch_size // parts
        start = (self.rank * self.accumulate + micro) * size
        return slice(start, start + size)

    def part(self, count: int) -> range:
        """This process's part of ``count`` things to validate on, which need not be a multiple of the processes."""
        return range(count * self.rank // self.world_size, count * (self.rank + 1) // self.world_size)


@dataclass
class Batch:
    """One micro-batch.

    ``tensors`` is what the task's ``loss`` reads; the loop moves it to the device.
    ``count`` is the number of predictions (the loss's denominator); ``tokens`` what throughput counts.
    ``fresh`` says that no state is carried into it (the first batch of an epoch).
    """

    tensors: dict[str, Tensor]
    count: int
    tokens: int
    fresh: bool = True


@dataclass
class Position:
    """Where training stands in the data: all that is needed to continue with the next batch."""

    epoch: int = 0
    index: int = 0  # optimizer steps already taken in this epoch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "index": self.index}


@dataclass
class Tested:
    """How the best model did, by name. ``Figure(figsize=...)`` makes a picture; pyplot would keep it, for a display."""

    figures: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, Figure] = field(default_factory=dict)


class Task(ABC):
    """What is learned: the data, the model, the loss and how well it went.

    ``Config`` and ``DataConfig`` are dataclasses: the schemas of the sections ``task`` and ``data``.
    ``unit`` names what throughput counts, in the plural ("characters").
    """

    Config: ClassVar[type]
    DataConfig: ClassVar[type]
    unit: str = "tokens"

    @classmethod
    @abstractmethod
    def from_config(cls, cfg: Any, state: dict[str, Any] | None = None) -> Task:
        """Build the task from a checked ``TrainConfig``.

        With ``state`` (from ``state_dict`` in a checkpoint), the task must be able to build its model and to
        sample without opening the training data; data is opened by the first call that needs it.
        Raises ``UserError`` for a missing, empty or unreadable file.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold besides weights, as plain JSON: the vocabulary, say."""

    @abstractmethod
    def build_model(self) -> nn.Module:
        """A freshly initialised model on the CPU, drawing from torch's global generator."""

    @abstractmethod
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the training data."""

    @abstractmethod
    def train_batches(self, shard: Shard, position: Position) -> Iterator[list[Batch]]:
        """Yield, from ``position`` to the end of its epoch, the ``shard.accumulate`` micro-batches of each step.

        A pure function of (seed, epoch, index): nothing before ``position`` is read or skipped over.
        """

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, state: State) -> tuple[Tensor, State]:
        """The summed (not averaged) loss over ``batch.count`` predictions, and the detached state to carry on."""

    @abstractmethod
    def eval_batches(self, shard: Shard) -> Iterator[Batch]:
        """This process's part of the validation data (``shard.accumulate`` is 1 here); may be empty.

        The loop carries the state from batch to batch, sums over batches and processes, and divides by the
        global count, so the figure does not depend on the number of processes beyond the order of summation.
        """

    def eval_step(self, model: nn.Module, batch: Batch, state: State) -> tuple[dict[str, Tensor], State]:
        """Summed figures of one validation batch; ``"loss"`` is always among them and decides which model is best."""
        loss, state = self.loss(model, batch, state)
        return {"loss": loss}, state

    def sample(self, model: nn.Module, device: torch.device) -> str | None:
        """A few lines a person can judge the model by, shown and recorded by rank 0; None where there is nothing."""
        return None

    def test(self, model: nn.Module, device: torch.device) -> Tested:
        """Figures of the best model and pictures of what it does, recorded once, by rank 0, when training is through.

        What validation is too often for: a search for the best translation, a length at a time.
        """
        return Tested()
