"""The settings that end training, and how to go on after one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Limit:
    """The setting, and the words for a run that it has ended."""

    setting: str
    words: str


# By the reason that the loop gives.
LIMITS = {
    "max_steps": Limit("trainer.max_steps", "step limit"),
    "max_epochs": Limit("trainer.max_epochs", "epoch limit"),
    "max_seconds": Limit("trainer.max_seconds", "time limit"),
    "patience": Limit("trainer.patience", "no more improvement"),
    "min_lr": Limit("optimizer.schedule.min_lr", "least learning rate"),
}


def beyond(reason: str, setting: Callable[[str], Any], steps: int) -> tuple[str, str] | None:
    """The limit that ended a run, and one with which it would go on, both as KEY=VALUE; None for another reason.

    ``setting`` gives the value of a setting of the run by its dotted key; ``steps`` are those it has trained.
    """
    if reason not in LIMITS:
        return None
    key = LIMITS[reason].setting
    value = setting(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    reached = max(value, steps) if reason == "max_steps" else value  # resumed with fewer than it had
    return f"{key}={value:.15g}", f"{key}={value / 10 if reason == 'min_lr' else 2 * reached:.15g}"
