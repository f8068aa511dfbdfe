"""Perceptual decisions: which of two noisy streams of evidence is the stronger one, to be said after a delay.

T: time steps, B: trials.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from prnn.data.sampler import IGNORED

CHANNELS, CHOICES = 3, 2  # fixation and two streams; left and right
COHERENCES = (0.032, 0.064, 0.128, 0.256, 0.512)  # strengths of the evidence, as in the experiments with moving dots


@dataclass(frozen=True)
class Periods:
    """The periods of a trial, in steps; a trial's delay is uniform in 0..delay, and the response lasts to its end."""

    fixation: int
    stimulus: int
    delay: int
    response: int

    @property
    def steps(self) -> int:
        """T, of all trials."""
        return self.fixation + self.stimulus + self.delay + self.response


@dataclass(frozen=True)
class Trials:
    """``inputs`` [T, B, 3] float32; ``targets`` [T, B] int64: 0 (left) or 1 (right) in the ``response`` steps after the
    delay, IGNORED at all others; ``coherences`` [B], positive where right is correct.
    """

    inputs: np.ndarray
    targets: np.ndarray
    coherences: np.ndarray


def trials(generator: np.random.Generator, periods: Periods, noise: float, count: int) -> Trials:
    """Trials of the random-dot task in its version with a delay, as networks are trained on it.

    The fixation input is 1 until the delay ends, and then 0: the signal to respond. During the stimulus the streams are
    (1 - c) / 2 and (1 + c) / 2 plus independent noise N(0, ``noise``²) at every step, with a coherence c drawn from
    ±``COHERENCES``. Song, Yang and Wang, "Training excitatory-inhibitory recurrent neural networks for cognitive
    tasks" (2016); Yang, Joglekar, Song, Newsome and Wang, "Task representations in neural networks trained to perform
    many cognitive tasks" (2019). What differs: one task, two choices as two classes, periods in steps.
    """
    T, onset = periods.steps, periods.fixation
    offset = onset + periods.stimulus
    coherences = generator.choice(COHERENCES, count) * generator.choice((-1, 1), count)
    go = offset + generator.integers(0, periods.delay + 1, count)
    steps = np.arange(T)[:, None]
    inputs = np.zeros((T, count, CHANNELS), dtype=np.float32)
    inputs[..., 0] = steps < go
    means = np.stack([1 - coherences, 1 + coherences], axis=-1) / 2
    inputs[onset:offset, :, 1:] = means + noise * generator.standard_normal((periods.stimulus, count, 2))
    responds = (steps >= go) & (steps < go + periods.response)
    targets = np.where(responds, coherences > 0, IGNORED).astype(np.int64)
    return Trials(inputs, targets, coherences)


def ideal(coherence: float, steps: int, noise: float) -> float:
    """The share of right choices of who sums the difference of the streams over all ``steps``: no observer is better.

    The sum is N(c n, 2 σ² n) for n steps.
    """
    if noise == 0:
        return 1.0
    return 0.5 * math.erfc(-coherence * math.sqrt(steps) / (2 * noise))
