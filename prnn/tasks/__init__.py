"""The tasks, looked up by name: a module in this package that defines ``TASK`` is a task."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Any

from prnn.config.structure import fault
from prnn.errors import UserError
from prnn.task import Task


def find(name: str) -> type[Task]:
    """The task called ``name``; raises ``UserError``, with the list of known ones, if there is none."""
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__))
    task = getattr(import_module(f"{__name__}.{name}"), "TASK", None) if name in modules else None
    if task is None:
        known = [module for module in modules if hasattr(import_module(f"{__name__}.{module}"), "TASK")]
        raise UserError(f"there is no task {name!r}: the known tasks are {', '.join(known)}.")
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
