"""The adding problem: read T pairs of numbers and output the sum of the two marked ones.

The constant answer 1 has a mean squared error of 1/6 = 0.167; a trained network comes near 0. The data are described in
``prnn/data/adding.py``.

T: time steps, B: batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from prnn.config import COUNT, Ranges, within
from prnn.data.adding import VARIANCE, sequences
from prnn.errors import UserError
from prnn.task import Batch, Position, Shard, State, Task, TaskResults
from prnn.tasks.last_state import LastState

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EVAL_STEPS = 1 << 17  # time steps in a validation batch, over all its sequences
NEAR = 0.04  # largest error of an answer counted as correct (Hochreiter and Schmidhuber, 1997)
MOST_NUMBERS = 1 << 28  # generated at once: 2 GiB with their marks
DRAWN = 1000  # points in the picture
SAMPLED = 5
TRAINING, VALIDATION = 0, 1  # parts of the generators' seeds


@dataclass
class Config:
    """The section ``task``."""

    name: str = "adding"


@dataclass
class DataConfig:
    """The section ``data``."""

    name: str = "adding"
    length: int = 150  # T, time steps of each sequence
    epoch_sequences: int = 100_000  # sequences of an epoch; all are new, in every epoch
    val_sequences: int = 10_000  # validation sequences, the same for every seed of a run

    RANGES: ClassVar[Ranges] = {
        "length": within(2, MOST_NUMBERS),
        "epoch_sequences": within(1, COUNT),
        "val_sequences": within(1, MOST_NUMBERS),
    }

    def validate(self, cfg: Any) -> None:
        """Raise ``UserError`` for settings that exclude each other; ``cfg`` is the whole ``TrainConfig``."""
        if self.epoch_sequences < cfg.trainer.batch_size:
            raise UserError(
                f"data.epoch_sequences={self.epoch_sequences} must be at least "
                f"trainer.batch_size={cfg.trainer.batch_size}."
            )
        for key, count in (
            ("trainer.batch_size", cfg.trainer.batch_size),
            ("data.val_sequences", self.val_sequences),
        ):
            if count * self.length > MOST_NUMBERS:
                raise UserError(
                    f"{key}={count} sequences of data.length={self.length} are generated at once: they must be at most "
                    f"{MOST_NUMBERS:,} numbers."
                )


class Adding(Task):
    Config: ClassVar[type] = Config
    DataConfig: ClassVar[type] = DataConfig
    unit = "sequences"

    def __init__(self, cfg: Any) -> None:
        self.cfg = cfg

    @classmethod
    def from_config(cls, cfg: Any, state: dict[str, Any] | None = None) -> Adding:
        return cls(cfg)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def build_model(self) -> nn.Module:
        return LastState(2, 1, self.cfg.model)

    def example(self) -> Tensor:
        return torch.rand(16, 2, 2, generator=torch.Generator().manual_seed(0))

    def steps_per_epoch(self) -> int:
        return self.cfg.data.epoch_sequences // self.cfg.trainer.batch_size

    def train_batches(self, shard: Shard, position: Position) -> Iterator[list[Batch]]:
        size = self.cfg.trainer.batch_size
        for index in range(position.index, self.steps_per_epoch()):
            generator = np.random.default_rng([TRAINING, self.cfg.seed, position.epoch, index])
            inputs, sums = sequences(generator, self.cfg.data.length, size)
            yield shard.batches(size, partial(_rows, inputs, sums))

    def loss(self, model: nn.Module, batch: Batch, state: State) -> tuple[Tensor, State]:
        return _errors(model, batch).square().sum(), None

    def eval_batches(self, shard: Shard) -> Iterator[Batch]:
        inputs, sums = self._validation
        size, rows = max(1, EVAL_STEPS // len(inputs)), shard.part(len(sums))
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            yield _batch(inputs[:, part], sums[part])

    def eval_step(self, model: nn.Module, batch: Batch, state: State) -> tuple[dict[str, Tensor], State]:
        """The squared error, and the number of answers within ``NEAR``."""
        errors = _errors(model, batch)
        return {"loss": errors.square().sum(), "accuracy": (errors.abs() <= NEAR).sum()}, None

    def sample(self, model: nn.Module, device: torch.device) -> str | None:
        answers, sums = self._answers(model, device, SAMPLED)
        lines = (f"sum {total:.3f}  answer {answer:.3f}" for total, answer in zip(sums, answers, strict=True))
        return "\n".join(lines)

    def test(self, model: nn.Module, device: torch.device) -> TaskResults:
        """A plot of answers against sums; the metrics are those of validation."""
        answers, sums = self._answers(model, device, DRAWN)
        return TaskResults(pictures={"answers": partial(_draw_answers, answers, sums, self.cfg.data.length)})

    def _answers(self, model: nn.Module, device: torch.device, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The model's answers to the first validation sequences, and the correct sums."""
        inputs, sums = self._validation
        answers = model(torch.from_numpy(inputs[:, :count]).to(device))[:, 0]
        return answers.float().cpu().numpy(), sums[:count]

    @cached_property
    def _validation(self) -> tuple[np.ndarray, np.ndarray]:
        return sequences(np.random.default_rng([VALIDATION]), self.cfg.data.length, self.cfg.data.val_sequences)


def _batch(inputs: np.ndarray, sums: np.ndarray) -> Batch:
    tensors = {"inputs": torch.from_numpy(np.ascontiguousarray(inputs)), "sums": torch.from_numpy(sums)}
    return Batch(tensors, count=len(sums), tokens=len(sums))


def _rows(inputs: np.ndarray, sums: np.ndarray, which: slice) -> Batch:
    return _batch(inputs[:, which], sums[which])


def _errors(model: nn.Module, batch: Batch) -> Tensor:
    """Answers minus sums [B], in float32 at least, even under autocast."""
    answers = model(batch.tensors["inputs"])[:, 0]
    return answers.to(torch.promote_types(answers.dtype, torch.float32)) - batch.tensors["sums"]


def _draw_answers(answers: np.ndarray, sums: np.ndarray, length: int) -> Figure:
    """Plot answers against sums [N] of sequences of ``length`` steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 5.4), layout="constrained")
    axes = figure.subplots()
    axes.scatter(sums, answers, s=6, alpha=0.5, label="a sequence")
    axes.plot([0, 2], [0, 2], color="black", linewidth=0.8, label="correct")
    axes.axhline(1, color="firebrick", linewidth=0.8, linestyle="--", label=f"always 1: squared error {VARIANCE:.3f}")
    axes.set_xlabel("sum of the two marked numbers")
    axes.set_ylabel("answer")
    axes.set_title(f"{length} steps: mean squared error {np.square(answers - sums).mean():.2g}")
    axes.set_aspect("equal")
    axes.legend(loc="upper left")
    return figure


TASK = Adding
