"""What changes from step to step besides weights and optimizer; all of it is in a checkpoint."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from prnn.config.structure import Count, Finite


@dataclass
class Window:
    """Sums since the last record of the training loss."""

    steps: Count = 0
    loss: Finite = 0.0
    count: Count = 0
    tokens: Count = 0
    grad_norm: float = 0.0  # infinite where float16 has overflowed
    seconds: Finite = 0.0
    waiting: Finite = 0.0  # seconds of them spent on waiting for data

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
class Plateau:
    """What ``optimizer.schedule.name=plateau`` remembers of the validations that were due."""

    best: Finite | None = None  # the lowest loss
    bad: Count = 0  # validations since one that was better, or since the last cut
    cuts: Count = 0  # how often the learning rate was multiplied by gamma
    back: bool = False  # the next step is to start from the best model

    def see(self, loss: float, patience: int, threshold: float) -> bool:
        """One more validation; returns whether its loss is the lowest so far.

        As torch's ReduceLROnPlateau decides, where ``threshold`` is 0; else that compares with the last loss that was
        better, and this with the lowest.
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
    """How far training is, and how well it went."""

    step: Count = 0
    seconds: Finite = 0.0  # of training: evaluation, samples and checkpoints are not counted
    tokens: Count = 0
    eval_step: int = -1  # the step of the last validation
    eval_loss: Finite | None = None
    eval_figures: dict[str, float] = field(default_factory=dict)  # whatever else that validation measured
    best_step: int = -1
    best_loss: Finite | None = None
    best_figures: dict[str, float] = field(default_factory=dict)
    bad_evals: Count = 0  # scheduled validations since the last improvement
    sample_step: int = -1
    window: Window = field(default_factory=Window)
    plateau: Plateau = field(default_factory=Plateau)

    @property
    def done(self) -> tuple[int, int, int]:
        """How far training, validation and samples are; the same on all ranks, which the seconds are not."""
        return self.step, self.eval_step, self.sample_step

    def validated(self, loss: float, figures: dict[str, float], due: bool) -> None:
        """Remember a validation of this step, and the best. ``due``: it was scheduled, and counts for patience."""
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
        plateau = Plateau(**state.get("plateau", {}))  # older checkpoints have none
        return cls(**{**state, "window": Window(**state.get("window", {})), "plateau": plateau})
