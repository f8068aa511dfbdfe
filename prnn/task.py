"""The interface between the training loop and a task: ``Task``.

The loop in ``prnn.training`` depends only on this file, not on any particular task. A task is a module that defines
``TASK``, a subclass of ``Task``: ``prnn/tasks/<name>.py``, or one of a user's (``prnn.plugins``).

One optimizer step consumes one global batch of sequences, its rows, which ``Shard`` splits over processes and
micro-batches, evenly or not. The split changes only the order of summation: each step uses the same sequences and the
same weights, so 1 process x 4 micro-batches, 4 processes x 1 and 3 processes x 2 follow the same loss curve.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Hidden state carried from batch to batch: None, a tensor, or nested tuples and dictionaries of tensors, each
# [L, B, H]: a row of the batch is an index of dimension ROWS, so that the rows can be resharded when the number of
# processes changes.
State = Any
ROWS = 1


def map_state(function: Callable[[Tensor], Tensor], state: State) -> State:
    """Apply ``function`` to every tensor of a carried state."""
    if state is None:
        return None
    if isinstance(state, Tensor):
        return function(state)
    if isinstance(state, Mapping):
        return {name: map_state(function, part) for name, part in state.items()}
    return tuple(map_state(function, part) for part in state)


def join_rows(states: Sequence[State]) -> State:
    """Concatenate the states of consecutive rows; None stands for no rows."""
    states = [state for state in states if state is not None]
    if not states:
        return None
    if isinstance(states[0], Tensor):
        return torch.cat(states, ROWS)
    if isinstance(states[0], Mapping):
        return {name: join_rows([state[name] for state in states]) for name in states[0]}
    return tuple(join_rows(parts) for parts in zip(*states, strict=True))


@dataclass
class Batch:
    """One micro-batch.

    ``tensors`` are the inputs of the task's ``loss``; the loop moves them to the device.
    ``numbers`` are what else goes with it, such as the noise of its epoch; they stay on the CPU.
    ``count`` is the number of predictions (the loss's denominator); ``tokens`` the count for throughput.
    ``reset_state``: it starts from the initial state, not from the previous batch's (the first batch of an epoch).
    ``dummy``: a dummy batch in place of a micro-batch without rows; its loss has weight 0 (``Shard.batches``).
    """

    tensors: dict[str, Tensor]
    count: int
    tokens: int
    reset_state: bool = True
    dummy: bool = False
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Shard:
    """The part of each global batch that this process computes, and its number of micro-batches."""

    rank: int = 0
    world_size: int = 1
    accumulate: int = 1  # micro-batches, without a micro_batch_size
    micro_batch_size: int | None = None  # maximum rows of a micro-batch

    def slices(self, batch_size: int) -> list[slice]:
        """This rank's rows of a global batch of ``batch_size``, a slice for each micro-batch.

        The slices of all ranks partition the rows, in order and as evenly as possible: a slice may be empty where there
        are fewer rows than parts. All ranks have the same number of slices.
        """
        share = -(-batch_size // self.world_size)
        requested = self.accumulate
        if self.micro_batch_size is not None:
            requested = -(-batch_size // (self.world_size * self.micro_batch_size))
        micros = max(1, min(requested, share))
        cut = [batch_size * part // (self.world_size * micros) for part in range(self.world_size * micros + 1)]
        first = self.rank * micros
        return [slice(cut[part], cut[part + 1]) for part in range(first, first + micros)]

    def batches(self, batch_size: int, make: Callable[[slice], Batch]) -> list[Batch]:
        """This rank's micro-batches of a global batch of ``batch_size`` rows; ``make`` builds one from a slice of them.

        DistributedDataParallel requires a backward pass on every rank. A rank without rows gets the first row of the
        global batch as a dummy batch of weight 0.
        """
        return [
            make(rows) if rows.start < rows.stop
            else replace(make(slice(0, 1)), count=0, tokens=0, reset_state=True, dummy=True)
            for rows in self.slices(batch_size)
        ]  # fmt: skip

    def part(self, count: int) -> range:
        """This process's part of ``count`` validation examples, which need not be a multiple of the world size."""
        return range(count * self.rank // self.world_size, count * (self.rank + 1) // self.world_size)

    def split_rows(self, state: State) -> list[State]:
        """Split ``state``, that of a whole global batch, into those of this rank's micro-batches."""
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
    """The position in the training data: all that is needed to continue with the next batch."""

    epoch: int = 0
    index: int = 0  # optimizer steps already taken in this epoch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "index": self.index}


@dataclass
class TaskResults:
    """Test results of the best model, by name.

    A picture is a function that only draws: its data are computed beforehand, and a drawing error does not end the run.
    Use ``Figure(figsize=...)``, not pyplot, which keeps a reference to every figure. Its texts are not parsed as math.
    ``signatures``: for a figure with more than one definition, which of them, recorded beside it.
    """

    figures: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, Callable[[], Figure]] = field(default_factory=dict)
    signatures: dict[str, str] = field(default_factory=dict)


class Task(ABC):
    """A training task: the data, the model, the loss and the metrics.

    ``Config`` and ``DataConfig`` are dataclasses: the schemas of the sections ``task`` and ``data``.
    ``unit`` is the unit of throughput, in the plural ("characters"). ``Saved`` is the type of ``state_dict``, as a type
    hint for ``prnn.config.structure``.
    """

    Config: ClassVar[type]
    DataConfig: ClassVar[type]
    Saved: ClassVar[Any] = dict[str, Any]
    unit: str = "tokens"

    @classmethod
    @abstractmethod
    def from_config(cls, cfg: Any, state: dict[str, Any] | None = None) -> Task:
        """Build the task from a checked ``TrainConfig``.

        With ``state`` (from ``state_dict`` in a checkpoint), the task must be able to build its model and to sample
        without opening the training data, which is opened lazily.
        Raises ``UserError`` for a missing, empty or unreadable file.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """The task's state in a checkpoint besides the weights, as plain JSON, such as the vocabulary."""

    def fingerprint(self) -> str:
        """A digest of the data read from files, which must be the same on all ranks; "" without such data."""
        return ""

    @abstractmethod
    def build_model(self) -> nn.Module:
        """A freshly initialised model on the CPU, drawing from torch's global generator."""

    def example(self) -> Tensor | None:
        """An input [T,B,*] of the model, of typical values, for ``prnn-export``; None where the model is not called as
        ``model(input, state)``, or ``model(input)``.
        """
        return None

    def pieces(self) -> tuple[tuple[bytes, ...], int, str] | None:
        """Of a model from tokens to the logits of the next: each token's bytes, the token before a text, and the level,
        "char", "byte" or "word"; for the program in C that writes text.
        """
        return None

    @abstractmethod
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the training data."""

    @abstractmethod
    def train_batches(self, shard: Shard, position: Position) -> Iterator[list[Batch]]:
        """Yield, from ``position`` to the end of its epoch, ``shard.batches`` of each step.

        The global batch is a pure function of (seed, epoch, index), whatever the shard: no data before ``position`` are
        read, and an epoch resumed with another number of processes still has every example once.
        """

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, state: State) -> tuple[Tensor, State]:
        """The summed (not averaged) loss over ``batch.count`` predictions, and the detached state to carry on.

        Row i of the state belongs to row i of this batch and of the next one (see ``State``).
        """

    @abstractmethod
    def eval_batches(self, shard: Shard) -> Iterator[Batch]:
        """This process's part of the validation data (micro-batching does not apply); may be empty.

        The loop carries the state from batch to batch, sums over batches and processes, and divides by the
        global count, so the metric does not depend on the number of processes beyond the order of summation.
        """

    def eval_step(self, model: nn.Module, batch: Batch, state: State) -> tuple[dict[str, Tensor], State]:
        """Summed metrics of one validation batch; ``"loss"`` is required and selects the best model."""
        loss, state = self.loss(model, batch, state)
        return {"loss": loss}, state

    def sample(self, model: nn.Module, device: torch.device) -> str | None:
        """A few lines of sample output, shown and recorded by rank 0; None for none."""
        return None

    def test(self, model: nn.Module, device: torch.device) -> TaskResults:
        """Metrics and pictures of the best model, recorded once, by rank 0, at the end of training.

        For what is too expensive at every validation: beam search, or a sweep over lengths.
        """
        return TaskResults()
