"""Runs the trials of a target, and says with which seed one failed."""

from __future__ import annotations

import itertools
import random
import tempfile
import time
from pathlib import Path
from types import ModuleType


def run(target: ModuleType, seed: int, trials: int | None, seconds: float | None = None) -> int:
    """Run ``trials`` trials from ``seed`` on, or as many as begin within ``seconds``; returns how many.

    Raises ``AssertionError``, with the seed, at the first that fails.
    """
    began = time.monotonic()
    for number in itertools.count():
        if number == trials or (seconds is not None and time.monotonic() - began > seconds):
            return number
        with tempfile.TemporaryDirectory(prefix="prnn-fuzz-") as folder:
            try:
                target.trial(random.Random(seed + number), Path(folder))
            except Exception as error:
                name = target.__name__.rpartition(".")[2]
                again = f"python -m tests.fuzz {name} --seed {seed + number} --trials 1"
                raise AssertionError(f"{type(error).__name__}: {error}\nagain: {again}") from error
    raise AssertionError("unreachable")
