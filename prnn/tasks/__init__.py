"""The tasks, looked up by name: prnn's own are the modules of this package that define ``TASK``."""

from __future__ import annotations

from typing import Any

from prnn import importing, plugins
from prnn.config.structure import fault
from prnn.errors import UserError
from prnn.task import Task


def find(name: str) -> type[Task]:
    """The task called ``name``; raises ``UserError`` if there is none, or it cannot be imported."""
    place = plugins.place(name)
    task = importing.find(place.module, place.attribute, f"task.name={name}")
    if not (isinstance(task, type) and issubclass(task, Task)):
        raise UserError(f"task.name={name}: {place.attribute} of {place.module} must be a subclass of prnn.task.Task.")
    return task


def schemas(name: str) -> tuple[type, type]:
    """The dataclasses of the sections ``task`` and ``data``."""
    task = find(name)
    return task.Config, task.DataConfig


def build(cfg: Any, state: dict[str, Any] | None = None, source: object = "") -> Task:
    """The task of a checked ``TrainConfig``; ``state`` is its ``state_dict`` from the checkpoint ``source``.

    Raises ``UserError`` for an invalid state.
    """
    task = find(cfg.task.name)
    if state is not None and (problem := fault(state, task.Saved, "task")) is not None:
        raise UserError(f"the checkpoint {source} is damaged: {problem}.")
    return task.from_config(cfg, state)
