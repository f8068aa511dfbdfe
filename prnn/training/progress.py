"""Training progress: the state besides weights and optimizer; all of it is in a checkpoint."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from prnn.config.structure import Count, Finite


@dataclass
class Window:
    """Sums over the steps since the last training record."""

    steps: Count = 0
    loss: Finite = 0.0
    count: Count = 0
    tokens: Count = 0
    grad_norm: float = 0.0  # infinite after a float16 overflow
    seconds: Finite = 0.0
    waiting: Finite = 0.0  # the part of them spent waiting for data

    def add(self, loss: float, count: int, tokens: int, grad_norm: float, seconds: float, waiting: float) -> None:
        """Add one step; ``loss`` is its summed loss."""
        self.steps += 1
        self.loss += loss
        self.count += count
        self.tokens += tokens
        self.grad_norm += grad_norm
        self.seconds += seconds
        self.waiting += waiting


@dataclass
class Plateau:
    """State of ``optimizer.schedule.name=plateau`` over the scheduled validations."""

    best: Finite | None = None  # the lowest loss
    bad: Count = 0  # validations since the last improvement or cut
    cuts: Count = 0  # how often the learning rate was multiplied by gamma
    back: bool = False  # restore the best model before the next step

    def see(self, loss: float, patience: int, threshold: float) -> bool:
        """Update with one validation loss; returns whether it is the lowest so far.

        With ``threshold`` 0 it decides like torch's ReduceLROnPlateau. Otherwise torch compares with the last loss
        that counted as an improvement, and this with the lowest loss.
        """
        best = self.best
        lowest = loss < (math.inf if best is None else best)
        better = lowest and (best is None or loss < best - threshold * abs(best))
        self.best = loss if lowest else best
        self.bad = 0 if better else self.bad + 1
        if self.bad >= patience:
            self.bad, self.cuts, self.back = 0, self.cuts + 1, not lowest
        return lowest


@dataclass
class Progress:
    """The counters of a run, and its last and best validation."""

    step: Count = 0
    seconds: Finite = 0.0  # of training, without evaluation, samples and checkpoints
    agreed_seconds: Finite = 0.0  # rank 0's before the last step, the same on all ranks: for limits and schedules
    warmup_seconds: Finite = 0.0  # agreed_seconds at the end of optimizer.schedule.warmup_steps
    tokens: Count = 0
    eval_step: int = -1  # the step of the last validation
    eval_loss: Finite | None = None
    eval_figures: dict[str, float] = field(default_factory=dict)  # the other metrics of that validation
    best_step: int = -1
    best_loss: Finite | None = None
    best_figures: dict[str, float] = field(default_factory=dict)
    bad_evals: Count = 0  # scheduled validations since the last improvement
    sample_step: int = -1
    window: Window = field(default_factory=Window)
    plateau: Plateau = field(default_factory=Plateau)

    @property
    def done(self) -> tuple[int, int, int]:
        """The steps of training, the last validation and the last sample; the same on all ranks, unlike the seconds."""
        return self.step, self.eval_step, self.sample_step

    def validated(self, loss: float, figures: dict[str, float], due: bool) -> None:
        """Record a validation at this step, and update the best. ``due``: it was scheduled, and counts for patience."""
        self.eval_loss, self.eval_figures = loss if math.isfinite(loss) else None, figures
        if math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss):
            self.best_loss, self.best_step, self.best_figures, self.bad_evals = loss, self.step, figures, 0
        elif due:
            self.bad_evals += 1

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Progress:
        """The inverse of ``state_dict``."""
        plateau = Plateau(**state.get("plateau", {}))  # older checkpoints have none, nor agreed_seconds
        agreed = state.get("agreed_seconds", state.get("seconds", 0.0))
        return cls(
            **{**state, "agreed_seconds": agreed, "window": Window(**state.get("window", {})), "plateau": plateau}
        )
