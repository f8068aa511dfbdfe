"""How to go on after a limit."""

from __future__ import annotations

from typing import Any

import pytest

from prnn.training import limits


@pytest.mark.parametrize(
    ("reason", "value", "steps", "found"),
    [
        ("max_steps", 300, 300, ("trainer.max_steps=300", "trainer.max_steps=600")),
        ("max_steps", 1e3, 1000, ("trainer.max_steps=1000", "trainer.max_steps=2000")),
        ("max_steps", 100, 5500, ("trainer.max_steps=100", "trainer.max_steps=11000")),
        ("max_seconds", 1.5, 300, ("trainer.max_seconds=1.5", "trainer.max_seconds=3")),
        ("max_epochs", 2, 300, ("trainer.max_epochs=2", "trainer.max_epochs=4")),
        ("patience", 3, 300, ("trainer.patience=3", "trainer.patience=6")),
        ("min_lr", 1e-5, 300, ("optimizer.schedule.min_lr=1e-05", "optimizer.schedule.min_lr=1e-06")),
        ("max_steps", "many", 300, None), ("max_steps", None, 300, None), ("signal", 3, 300, None),
    ],
)  # fmt: skip
def test_the_limit_and_one_beyond_it(reason: str, value: Any, steps: int, found: tuple[str, str] | None) -> None:
    asked = []
    assert limits.beyond(reason, lambda key: asked.append(key) or value, steps) == found
    assert asked == ([] if reason == "signal" else [limits.LIMITS[reason].setting])
