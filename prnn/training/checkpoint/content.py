"""A loaded checkpoint, and its validation against a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prnn.errors import UserError
from prnn.training.checkpoint import schema
from prnn.training.checkpoint.directory import damaged


@dataclass
class Checkpoint:
    """A loaded checkpoint. ``manifest["config"]`` and ``manifest["task"]`` rebuild the task and its model."""

    path: Path
    manifest: dict[str, Any]
    model_state: Mapping[str, Tensor]
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.manifest["step"])


def load_weights(model: torch.nn.Module, loaded: Checkpoint, config: dict[str, Any]) -> None:
    """Load the weights into ``model``. Raises ``UserError`` as ``check_weights`` does."""
    weights = dict(loaded.model_state)
    check_weights(model, loaded, config, weights)
    model.load_state_dict(weights)


def check_weights(
    model: torch.nn.Module, loaded: Checkpoint, config: dict[str, Any], weights: Mapping[str, Tensor] | None = None
) -> None:
    """Raise ``UserError`` if the weights do not fit ``model``; the message lists the settings that differ."""
    weights = loaded.model_state if weights is None else weights
    problem = schema.weights_fault(weights, model.state_dict(), "weights")
    if problem is not None:
        changed = differences(loaded.manifest["config"], config, ("model", "task", "data"))
        listed = ", ".join(f"{key}={old} (this job asks for {new})" for key, old, new in changed)
        if changed:
            raise UserError(f"the checkpoint {loaded.path} does not fit this model: it has {listed}.")
        raise damaged(loaded.path, problem)


def differences(old: dict[str, Any], new: dict[str, Any], sections: tuple[str, ...]) -> list[tuple[str, Any, Any]]:
    """The settings of ``sections`` that differ: dotted key, old value, new value."""
    changed = []
    for section in sections:
        before, after = old.get(section) or {}, new.get(section) or {}
        for key in sorted(set(before) | set(after)):
            if before.get(key) != after.get(key):
                changed.append((f"{section}.{key}", before.get(key), after.get(key)))
    return changed
