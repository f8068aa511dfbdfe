"""The door between the loop and what is learned: the Task protocol.

The loop in ``prnn.training`` knows this file and nothing of any particular task. A task lives in
``prnn/tasks/<name>.py``, which defines ``TASK``, a subclass of ``Task``; ``task=<name>`` finds it.

One optimizer step consumes one global batch of sequences, its rows, which ``Shard`` splits over processes and
micro-batches, evenly or not. The split changes the order of summation and nothing else: the same sequences meet the
same weights, so 1 process x 4 micro-batches, 4 processes x 1 and 3 processes x 2 follow the same curve.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

# Hidden state carried from batch to batch: None, a tensor, or nested tuples of tensors, each [L, B, H]: a row of the
# batch is an index of dimension ROWS, so that the rows can be shared out anew when the number of processes changes.
State = Any
ROWS = 1


def map_state(function: Callable[[Tensor], Tensor], state: State) -> State:
    """Apply ``function`` to every tensor of a carried state."""
    if state is None:
        return None
    if isinstance(state, Tensor):
        return function(state)
    return tuple(map_state(function, part) for part in state)


def join_rows(states: Sequence[State]) -> State:
    """The state of all rows together, from those of consecutive rows; None stands for no rows."""
    states = [state for state in states if state is not None]
    if not states:
        return None
    if isinstance(states[0], Tensor):
        return torch.cat(states, ROWS)
    return tuple(join_rows(parts) for parts in zip(*states, strict=True))


@dataclass
class Batch:
    """One micro-batch.

    ``tensors`` is what the task's ``loss`` reads; the loop moves it to the device.
    ``count`` is the number of predictions (the loss's denominator); ``tokens`` what throughput counts.
    ``fresh`` says that no state is carried into it (the first batch of an epoch).
    ``stand_in``: it fills the place of a micro-batch without rows; its loss counts nothing (``Shard.batches``).
    """

    tensors: dict[str, Tensor]
    count: int
    tokens: int
    fresh: bool = True
    stand_in: bool = False


@dataclass(frozen=True)
class Shard:
    """Which part of each global batch this process computes, and in how many micro-batches."""

    rank: int = 0
    world_size: int = 1
    accumulate: int = 1  # micro-batches, where micro_batch_size does not say
    micro_batch_size: int | None = None  # most rows of a micro-batch

    def slices(self, batch_size: int) -> list[slice]:
        """This rank's rows of a global batch of ``batch_size``, a slice for each micro-batch.

        Together those of all ranks are all rows, in order, shared out as evenly as they divide: a slice may be empty
        where there are fewer rows than parts. All ranks have the same number of slices.
        """
        share = -(-batch_size // self.world_size)
        wanted = self.accumulate
        if self.micro_batch_size is not None:
            wanted = -(-batch_size // (self.world_size * self.micro_batch_size))
        micros = max(1, min(wanted, share))
        cut = [batch_size * part // (self.world_size * micros) for part in range(self.world_size * micros + 1)]
        first = self.rank * micros
        return [slice(cut[part], cut[part + 1]) for part in range(first, first + micros)]

    def batches(self, batch_size: int, make: Callable[[slice], Batch]) -> list[Batch]:
        """This rank's micro-batches of a global batch of ``batch_size`` rows; ``make`` gives that of some of them.

        DistributedDataParallel wants a backward pass of every rank. Where there are no rows for one the first row of
        the global batch stands in, and counts nothing.
        """
        return [
            make(rows) if rows.start < rows.stop
            else replace(make(slice(0, 1)), count=0, tokens=0, fresh=True, stand_in=True)
            for rows in self.slices(batch_size)
        ]  # fmt: skip

    def part(self, count: int) -> range:
        """This process's part of ``count`` things to validate on, which need not be a multiple of the processes."""
        return range(count * self.rank // self.world_size, count * (self.rank + 1) // self.world_size)

    def split_rows(self, state: State) -> list[State]:
        """The parts of ``state``, which is that of a whole global batch, for this rank's micro-batches."""
        if state is None:
            return []
        sizes: list[int] = []
        map_state(lambda part: sizes.append(part.shape[ROWS]) or part, state)  # type: ignore[func-returns-value]
        return [
            map_state(lambda part, rows=rows: part[:, rows].contiguous(), state)  # type: ignore[misc]
            if rows.start < rows.stop else None
            for rows in self.slices(sizes[0])
        ]  # fmt: skip


@dataclass
class Position:
    """Where training stands in the data: all that is needed to continue with the next batch."""

    epoch: int = 0
    index: int = 0  # optimizer steps already taken in this epoch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "index": self.index}


@dataclass
class Tested:
    """How the best model did, by name.

    A picture is a function that draws it: what it shows is computed before, and where drawing fails the run goes on.
    ``Figure(figsize=...)`` makes one; pyplot would keep it, for a display. No text of it is a formula.
    ``signatures``: of a figure that is computed in more than one way, in which, to be recorded beside it.
    """

    figures: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, Callable[[], Figure]] = field(default_factory=dict)
    signatures: dict[str, str] = field(default_factory=dict)


class Task(ABC):
    """What is learned: the data, the model, the loss and how well it went.

    ``Config`` and ``DataConfig`` are dataclasses: the schemas of the sections ``task`` and ``data``.
    ``unit`` names what throughput counts, in the plural ("characters"). ``Saved`` is the type of ``state_dict``, as
    ``prnn.config.structure`` reads types.
    """

    Config: ClassVar[type]
    DataConfig: ClassVar[type]
    Saved: ClassVar[Any] = dict[str, Any]
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

    def fingerprint(self) -> str:
        """A digest of the data that are read from files, which must be the same on all ranks; "" where none are."""
        return ""

    @abstractmethod
    def build_model(self) -> nn.Module:
        """A freshly initialised model on the CPU, drawing from torch's global generator."""

    @abstractmethod
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the training data."""

    @abstractmethod
    def train_batches(self, shard: Shard, position: Position) -> Iterator[list[Batch]]:
        """Yield, from ``position`` to the end of its epoch, ``shard.batches`` of each step.

        The global batch is a pure function of (seed, epoch, index), whatever the shard: nothing before ``position`` is
        read or skipped over, and an epoch that other numbers of processes go on with has every example once.
        """

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, state: State) -> tuple[Tensor, State]:
        """The summed (not averaged) loss over ``batch.count`` predictions, and the detached state to carry on.

        A row of the state belongs to that row of the batch, and to the same row of the next (see ``State``).
        """

    @abstractmethod
    def eval_batches(self, shard: Shard) -> Iterator[Batch]:
        """This process's part of the validation data (``micro_batch_size`` does not apply); may be empty.

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
