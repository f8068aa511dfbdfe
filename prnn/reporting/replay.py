"""Replay the record of a finished run to W&B or TensorBoard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args, get_origin, get_type_hints

from prnn.config import LoggerConfig
from prnn.errors import UserError
from prnn.reporting.runs import Run
from prnn.training.observe import loggers
from prnn.training.observe.wandb_setup import wandb_id, wandb_mode


def to_wandb(run: Run, project: str | None, entity: str | None) -> str:
    """Replay the run to W&B, to its existing W&B run if it has one; returns a status message.

    The name, the tags and the mode come from the run's ``logger`` settings. Raises ``UserError`` if W&B is not
    installed or does not start.
    """
    config = logger_config(run)
    config.project, config.entity = project or config.project, entity or config.entity
    if config.wandb_mode == "disabled":  # applied to training only
        config.wandb_mode = "auto"
    count = _replay(run, lambda: loggers.WandbLogger(config, run.path, run.config, wandb_id(run.path, None)))
    done = f"{count} records of {run.label} are in W&B's project {config.project}"
    if wandb_mode(config.wandb_mode) == "offline":
        return f"{done}, offline; upload them with: wandb sync {run.path}/wandb/offline-run-*"
    return done


def to_tensorboard(run: Run) -> str:
    """Write ``RUN/tensorboard``; returns a status message. Raises ``UserError`` if it already has events."""
    folder = run.path / "tensorboard"
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} already holds events, which would be duplicated: remove it, or use it as it is.")
    count = _replay(run, lambda: loggers.TensorBoardLogger(run.path))
    return f"{count} records of {run.label} are in {folder}; view them with: tensorboard --logdir {run.path}"


def _replay(run: Run, open_logger: Callable[[], loggers.Logger]) -> int:
    if not run.count:
        raise UserError(f"run={run.path} has no records to replay: nothing was logged yet.")
    logger, failed = open_logger(), True
    try:
        count = loggers.replay(run.records, logger)
        failed = False
    finally:
        logger.close(failed)
    return count


def logger_config(run: Run) -> LoggerConfig:
    """The run's ``logger`` settings; defaults for missing and invalid ones."""
    section = run.config.get("logger")
    saved: dict[str, Any] = section if isinstance(section, dict) else {}
    types = get_type_hints(LoggerConfig)
    valid = {name: value for name, value in saved.items() if name in types and _has_type(value, types[name])}
    return LoggerConfig(**valid)


def _has_type(value: Any, kind: Any) -> bool:
    """Whether a value has the type of a ``logger`` setting."""
    if get_origin(kind) is list:
        return isinstance(value, list) and all(isinstance(part, get_args(kind)) for part in value)
    return isinstance(value, kind)
