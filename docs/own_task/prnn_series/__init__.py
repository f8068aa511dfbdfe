"""A task of one's own for prnn: the next value of a time series, by recurrent layers and a linear readout.

T: time steps, B: batch, H: hidden size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from prnn.config import ModelConfig, Ranges, within
from prnn.errors import UserError
from prnn.nn import build
from prnn.task import Batch, Position, Shard, State, Task

GENERATED = 20_000  # values of the generated series


@dataclass
class Config:
    """The section ``task``. A comment is what ``prnn-train --help`` says of a setting."""

    name: str = "series"
    steps: int = 50  # T, values that a prediction may look back at

    RANGES: ClassVar[Ranges] = {"steps": within(1, 100_000)}


@dataclass
class DataConfig:
    """The section ``data``."""

    name: str = "waves"
    path: str | None = None  # a CSV file of yours without a header; null: three waves with noise
    column: int = 0  # the column of the file, from 0
    val_fraction: float = 0.2  # fraction of the series, at its end, held out for validation

    RANGES: ClassVar[Ranges] = {
        "column": within(0, 10_000),
        "val_fraction": (lambda value: 0 < value < 1, "above 0 and below 1"),
    }


class Forecaster(nn.Module):
    """Recurrent layers of any cell, and a linear readout at every step."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.recurrent = build(model, 1)
        self.readout = nn.Linear(model.hidden_size, 1)

    def forward(self, values: Tensor) -> Tensor:
        """Values [T, B, 1] -> the value expected after each [T, B, 1]."""
        output, _ = self.recurrent(values)
        return self.readout(output)


class Saved(TypedDict):
    """The task's state in a checkpoint, which is checked when one is read."""

    mean: float
    std: float


class Series(Task):
    Config: ClassVar[type] = Config
    DataConfig: ClassVar[type] = DataConfig
    Saved: ClassVar[Any] = Saved
    unit = "values"  # of throughput

    def __init__(self, cfg: Any, state: dict[str, Any] | None) -> None:
        self.cfg = cfg
        self._values: np.ndarray | None = None
        # A trained model is used without its data, so what it needs of them is in the checkpoint.
        self.mean, self.std = self._scale() if state is None else (state["mean"], state["std"])

    @classmethod
    def from_config(cls, cfg: Any, state: dict[str, Any] | None = None) -> Series:
        return cls(cfg, state)

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "std": self.std}

    def fingerprint(self) -> str:
        return hashlib.sha256(self.values().tobytes()).hexdigest()

    def build_model(self) -> nn.Module:
        return Forecaster(self.cfg.model)

    def example(self) -> Tensor | None:
        return torch.randn(8, 1, 1)  # for prnn-export

    # Data

    def values(self) -> np.ndarray:
        """The whole series [N], read once."""
        if self._values is None:
            values, least = read(self.cfg.data), 2 * (self.cfg.task.steps + 1)
            held_out = int(len(values) * self.cfg.data.val_fraction)
            if min(held_out, len(values) - held_out) < least:
                raise UserError(
                    f"the series has {len(values)} values: task.steps={self.cfg.task.steps} needs {least} to train on "
                    f"and {least} to validate on, at least."
                )
            self._values = values
        return self._values

    def _validation_start(self) -> int:
        return int(len(self.values()) * (1 - self.cfg.data.val_fraction))

    def _scale(self) -> tuple[float, float]:
        train = self.values()[: self._validation_start()]
        return float(train.mean()), float(train.std()) or 1.0

    def _windows(self, starts: np.ndarray) -> Batch:
        """The windows of T + 1 values that begin at ``starts`` [B], scaled, as inputs and targets [T, B, 1]."""
        T = self.cfg.task.steps
        rows = self.values()[starts[None, :] + np.arange(T + 1)[:, None]]
        scaled = torch.from_numpy(((rows - self.mean) / self.std).astype(np.float32)).unsqueeze(-1)
        return Batch({"inputs": scaled[:-1], "targets": scaled[1:]}, count=T * len(starts), tokens=T * len(starts))

    # Training

    def steps_per_epoch(self) -> int:
        return max(1, len(self._starts()) // self.cfg.trainer.batch_size)

    def _starts(self) -> np.ndarray:
        return np.arange(0, self._validation_start() - self.cfg.task.steps - 1, self.cfg.task.steps)

    def train_batches(self, shard: Shard, position: Position) -> Iterator[list[Batch]]:
        # A function of (seed, epoch, index) alone: so a resumed run, or one on more processes, sees the same batches.
        rng = np.random.default_rng([self.cfg.seed, position.epoch])
        starts = rng.permutation(self._starts() + rng.integers(self.cfg.task.steps))
        starts = np.minimum(starts, self._validation_start() - self.cfg.task.steps - 1)
        size = min(self.cfg.trainer.batch_size, len(starts))
        for index in range(position.index, self.steps_per_epoch()):
            rows = starts[index * size : (index + 1) * size]
            yield shard.batches(size, lambda part, rows=rows: self._windows(rows[part]))

    def loss(self, model: nn.Module, batch: Batch, state: State) -> tuple[Tensor, State]:
        errors = model(batch.tensors["inputs"]) - batch.tensors["targets"]
        return errors.square().sum(), None  # no state is carried to the next batch

    # Validation: in pieces that do not overlap

    def eval_batches(self, shard: Shard) -> Iterator[Batch]:
        T, N = self.cfg.task.steps, len(self.values())
        starts = np.arange(self._validation_start(), N - T, T)
        part = shard.part(len(starts))
        if len(part):
            yield self._windows(starts[part.start : part.stop])

    def eval_step(self, model: nn.Module, batch: Batch, state: State) -> tuple[dict[str, Tensor], State]:
        loss, state = self.loss(model, batch, state)
        unchanged = batch.tensors["inputs"] - batch.tensors["targets"]  # the forecast to beat: the last value
        return {"loss": loss, "error_of_last_value": unchanged.square().sum()}, state

    def sample(self, model: nn.Module, device: torch.device) -> str | None:
        batch = self._windows(np.array([self._validation_start()]))
        inputs, targets = (batch.tensors[name].to(device) for name in ("inputs", "targets"))
        pairs = zip(model(inputs)[-5:, 0, 0].tolist(), targets[-5:, 0, 0].tolist(), strict=True)
        lines = [f"{self._unscaled(expected):10.4f} {self._unscaled(value):10.4f}" for expected, value in pairs]
        return "\n".join(["  forecast      value", *lines])

    def _unscaled(self, value: float) -> float:
        return value * self.std + self.mean


def read(data: DataConfig) -> np.ndarray:
    """The series that ``data`` names, [N] float64; raises ``UserError`` where it cannot be read."""
    if data.path is None:
        t = np.arange(GENERATED)
        waves = sum(np.sin(2 * np.pi * t / period) for period in (23, 57, 131))
        return waves + np.random.default_rng(0).normal(0, 0.1, GENERATED)
    try:
        values = np.loadtxt(Path(data.path).expanduser(), delimiter=",", usecols=data.column, ndmin=1)
    except (OSError, ValueError) as error:
        raise UserError(
            f"data.path={data.path}, column {data.column}, cannot be read: {str(error).rstrip('.')}."
        ) from None
    if not np.isfinite(values).all():
        raise UserError(f"data.path={data.path}, column {data.column}, has values that are no finite numbers.")
    return values


TASK = Series
