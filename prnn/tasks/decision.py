"""Perceptual decision making: integrate two noisy streams of evidence, hold the choice for a delay, and respond.

A task that neuroscience trains rate networks on; the trials are described in ``prnn/data/decision.py``.

T: time steps, B: batch, K: choices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from prnn.config import COUNT, FLOAT, ModelConfig, Ranges, within
from prnn.data.decision import CHANNELS, CHOICES, COHERENCES, Periods, Trials, ideal, trials
from prnn.data.sampler import IGNORED
from prnn.errors import UserError
from prnn.nn import build
from prnn.task import Batch, Position, Shard, State, Task, TaskResults
from prnn.tasks.losses import summed_cross_entropy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EVAL_STEPS = 1 << 17  # time steps in a validation batch, over all its trials
MOST_STEPS = 1 << 26  # of trials generated at once: some 2 GB
SAMPLED, TESTED = 5, 10_000  # trials
TRAINING, VALIDATION, TEST = 0, 1, 2  # parts of the generators' seeds
NOISE = "noise"  # the per-step input that a cell may have


@dataclass
class Config:
    """The section ``task``."""

    name: str = "decision"
    noise: float = 0.03  # standard deviation, at each step of training, of the input `noise` of a cell that has one

    RANGES: ClassVar[Ranges] = {"noise": within(0, FLOAT)}


@dataclass
class DataConfig:
    """The section ``data``. With steps of 20 ms a trial takes up to 1.6 s."""

    name: str = "decision"
    fixation: int = 5  # steps before the stimulus
    stimulus: int = 40  # steps of evidence
    delay: int = 25  # most steps between stimulus and response; each trial's are drawn from 0 to this
    response: int = 10  # steps in which the choice is asked for
    noise: float = 0.4  # standard deviation of the evidence at each step
    epoch_trials: int = 100_000  # trials of an epoch; all are new, in every epoch
    val_trials: int = 5_000  # validation trials, the same for every seed of a run

    RANGES: ClassVar[Ranges] = {
        "fixation": within(0, MOST_STEPS),
        "stimulus": within(1, MOST_STEPS),
        "delay": within(0, MOST_STEPS),
        "response": within(1, MOST_STEPS),
        "noise": within(0, FLOAT),
        "epoch_trials": within(1, COUNT),
        "val_trials": within(1, MOST_STEPS),
    }

    @property
    def periods(self) -> Periods:
        return Periods(self.fixation, self.stimulus, self.delay, self.response)

    def validate(self, cfg: Any) -> None:
        """Raise ``UserError`` for settings that exclude each other; ``cfg`` is the whole ``TrainConfig``."""
        if self.epoch_trials < cfg.trainer.batch_size:
            raise UserError(
                f"data.epoch_trials={self.epoch_trials} must be at least trainer.batch_size={cfg.trainer.batch_size}."
            )
        steps = self.periods.steps
        for key, count in (("trainer.batch_size", cfg.trainer.batch_size), ("data.val_trials", self.val_trials)):
            if count * steps > MOST_STEPS:
                raise UserError(
                    f"{key}={count} trials of {steps} steps are generated at once: they must be at most "
                    f"{MOST_STEPS:,} steps."
                )


class Decider(nn.Module):
    """Recurrent layers and a linear readout at every step."""

    def __init__(self, model: ModelConfig, noise: float) -> None:
        super().__init__()
        self.recurrent = build(model, CHANNELS, step_inputs=(NOISE,))
        self.noise = noise
        self.dropout = nn.Dropout(model.dropout)
        self.readout = nn.Linear(model.hidden_size, CHOICES)

    def forward(self, inputs: Tensor) -> Tensor:
        """[T, B, 3] to [T, B, K]; in training, noise N(0, ``noise``²) for each step, trial and unit of each layer."""
        layers = self.recurrent
        if NOISE not in getattr(layers, "step_inputs", ()):
            outputs, _ = layers(inputs)
        else:
            if self.training and self.noise:
                shape = (*inputs.shape[:2], layers.hidden_size)
                noise = [self.noise * torch.randn(shape, device=inputs.device) for _ in range(layers.num_layers)]
            else:
                noise = [torch.zeros(1, device=inputs.device)] * layers.num_layers
            outputs, _ = layers(inputs, inputs={NOISE: noise})
        return self.readout(self.dropout(outputs))


class Decision(Task):
    Config: ClassVar[type] = Config
    DataConfig: ClassVar[type] = DataConfig
    unit = "trials"

    def __init__(self, cfg: Any) -> None:
        self.cfg = cfg

    @classmethod
    def from_config(cls, cfg: Any, state: dict[str, Any] | None = None) -> Decision:
        return cls(cfg)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def build_model(self) -> nn.Module:
        return Decider(self.cfg.model, self.cfg.task.noise)

    def example(self) -> Tensor:
        return torch.rand(16, 2, CHANNELS, generator=torch.Generator().manual_seed(0))

    def steps_per_epoch(self) -> int:
        return self.cfg.data.epoch_trials // self.cfg.trainer.batch_size

    def train_batches(self, shard: Shard, position: Position) -> Iterator[list[Batch]]:
        size = self.cfg.trainer.batch_size
        for index in range(position.index, self.steps_per_epoch()):
            drawn = self._trials(size, TRAINING, self.cfg.seed, position.epoch, index)
            yield shard.batches(size, partial(_batch, drawn))

    def loss(self, model: nn.Module, batch: Batch, state: State) -> tuple[Tensor, State]:
        return self._loss(model(batch.tensors["inputs"]), batch.tensors["targets"]), None

    def eval_batches(self, shard: Shard) -> Iterator[Batch]:
        yield from self._pieces(self._validation, shard.part(self.cfg.data.val_trials))

    def eval_step(self, model: nn.Module, batch: Batch, state: State) -> tuple[dict[str, Tensor], State]:
        logits, targets = model(batch.tensors["inputs"]), batch.tensors["targets"]
        right = choices(logits, targets) == targets.amax(0)
        return {"loss": self._loss(logits, targets), "accuracy": right.sum()}, None

    def sample(self, model: nn.Module, device: torch.device) -> str | None:
        chosen = self._choices(model, device, self._validation, range(SAMPLED))
        names = ("left", "right")
        return "\n".join(
            f"coherence {coherence:+.3f}: {names[choice]}{'' if choice == (coherence > 0) else '  (wrong)'}"
            for coherence, choice in zip(self._validation.coherences, chosen, strict=False)
        )

    def test(self, model: nn.Module, device: torch.device) -> TaskResults:
        """The share of right choices in new trials, and that of an ideal observer; the psychometric curve."""
        data, drawn = self.cfg.data, self._trials(TESTED, TEST)
        chosen = self._choices(model, device, drawn, range(TESTED))
        best = np.mean([ideal(coherence, data.stimulus, data.noise) for coherence in COHERENCES])
        return TaskResults(
            {"accuracy": float((chosen == (drawn.coherences > 0)).mean()), "ideal_accuracy": float(best)},
            {"psychometric": partial(_psychometric, drawn.coherences, chosen, data.stimulus, data.noise)},
        )

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean over the steps of each trial's response, summed over the trials."""
        return summed_cross_entropy(logits, targets) / self.cfg.data.response

    def _choices(self, model: nn.Module, device: torch.device, drawn: Trials, which: range) -> np.ndarray:
        """The model's choices [N], 0 or 1, in the trials ``which``."""
        chosen = [
            choices(model(batch.tensors["inputs"].to(device)).cpu(), batch.tensors["targets"])
            for batch in self._pieces(drawn, which)
        ]
        return torch.cat(chosen).numpy()

    def _trials(self, count: int, *seed: int) -> Trials:
        data = self.cfg.data
        return trials(np.random.default_rng(seed), data.periods, data.noise, count)

    def _pieces(self, drawn: Trials, which: range) -> Iterator[Batch]:
        size = max(1, EVAL_STEPS // self.cfg.data.periods.steps)
        for start in range(which.start, which.stop, size):
            yield _batch(drawn, slice(start, min(start + size, which.stop)))

    @cached_property
    def _validation(self) -> Trials:
        return self._trials(self.cfg.data.val_trials, VALIDATION)


def _batch(drawn: Trials, rows: slice) -> Batch:
    """``count`` is of trials: the loss and the accuracy are means over trials."""
    arrays = {"inputs": drawn.inputs[:, rows], "targets": drawn.targets[:, rows]}
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    count = tensors["targets"].shape[1]
    return Batch(tensors, count=count, tokens=count)


def choices(logits: Tensor, targets: Tensor) -> Tensor:
    """The choice [B] in each trial: the larger logit [T, B, K], summed over the response."""
    responds = (targets != IGNORED).unsqueeze(-1)
    return (logits.float() * responds).sum(0).argmax(-1)


def _psychometric(coherences: np.ndarray, chosen: np.ndarray, stimulus: int, noise: float) -> Figure:
    """Plot how often the network chooses right, by coherence, beside the ideal observer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 4), layout="constrained")
    axes = figure.subplots()
    fine = np.linspace(-max(COHERENCES), max(COHERENCES), 201)
    axes.plot(fine, [100 * ideal(c, stimulus, noise) for c in fine], color="0.6", label="an ideal observer")
    signed = np.unique(coherences)
    axes.plot(signed, [100 * chosen[coherences == c].mean() for c in signed], "o", label="the network")
    axes.set(xlabel="coherence, positive to the right", ylabel="choices of right, %")
    axes.set_title(f"{np.mean(chosen == (coherences > 0)):.1%} of {len(chosen):,} trials are right")
    axes.legend(loc="upper left")
    return figure


TASK = Decision
