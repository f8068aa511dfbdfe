"""What changes from step to step besides weights and optimizer; all of it is in a checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Window:
    """Sums since the last record of the training loss."""

    steps: int = 0
    loss: float = 0.0
    count: int = 0
    tokens: int = 0
    grad_norm: float = 0.0
    seconds: float = 0.0
    waiting: float = 0.0  # seconds of them spent on waiting for data

    def add(self, loss: float, count: int, tokens: int, grad_norm: float, seconds: float, waiting: float) -> None:
        """One more step: its summed loss, and so on."""
        self.steps += 1
        self.loss += loss
        self.count += count
        self.tokens += tokens
        self.grad_norm += grad_norm
        self.seconds += seconds
        self.waiting += waiting


@dataclass
class Progress:
    """How far training is, and how well it went."""

    step: int = 0
    seconds: float = 0.0  # of training: evaluation, samples and checkpoints are not counted
    tokens: int = 0
    eval_step: int = -1  # the step of the last validation
    eval_loss: float | None = None
    eval_figures: dict[str, float] = field(default_factory=dict)  # whatever else that validation measured
    best_step: int = -1
    best_loss: float | None = None
    best_figures: dict[str, float] = field(default_factory=dict)
    bad_evals: int = 0  # scheduled validations since the last improvement
    sample_step: int = -1
    window: Window = field(default_factory=Window)

    @property
    def done(self) -> tuple[int, int, int]:
        """How far training, validation and samples are; the same on all ranks, which the seconds are not."""
        return self.step, self.eval_step, self.sample_step

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Progress:
        """The inverse of ``state_dict``."""
        return cls(**{**state, "window": Window(**state["window"])})
