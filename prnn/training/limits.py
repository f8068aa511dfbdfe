"""The settings that end training, and how to go on after one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# By the reason that the loop gives.
SETTINGS = {
    "max_steps": "trainer.max_steps",
    "max_epochs": "trainer.max_epochs",
    "max_seconds": "trainer.max_seconds",
    "patience": "trainer.patience",
    "min_lr": "optimizer.schedule.min_lr",
}


def beyond(reason: str, setting: Callable[[str], Any], steps: int) -> tuple[str, str] | None:
    """The limit that ended a run, and one with which it would go on, both as KEY=VALUE; None for another reason.

    ``setting`` gives the value of a setting of the run by its dotted key; ``steps`` are those it has trained.
    """
    key = SETTINGS.get(reason)
    value = None if key is None else setting(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    reached = max(value, steps) if reason == "max_steps" else value  # resumed with fewer than it had
    return f"{key}={value:.15g}", f"{key}={value / 10 if reason == 'min_lr' else 2 * reached:.15g}"
