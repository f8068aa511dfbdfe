"""The record of a finished run, shown in W&B or TensorBoard afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args, get_origin, get_type_hints

from prnn.config import LoggerConfig
from prnn.errors import UserError
from prnn.reporting.runs import Run
from prnn.training.observe import views


def to_wandb(run: Run, project: str | None, entity: str | None) -> str:
    """Fill the run's W&B run, the one it already has where it logged there; returns what was done, as a sentence.

    The name, the tags, online or offline are as the run's own settings of ``logger`` have them. Raises ``UserError``
    where W&B is not installed or does not start.
    """
    config = logger_config(run)
    config.project, config.entity = project or config.project, entity or config.entity
    if config.wandb_mode == "disabled":  # was meant for the training
        config.wandb_mode = "auto"
    count = _replay(run, lambda: views.WandbView(config, run.path, run.config, views.wandb_id(run.path, None)))
    done = f"{count} records of {run.label} are in W&B's project {config.project}"
    if views.wandb_mode(config.wandb_mode) == "offline":
        return f"{done}, offline; upload them with: wandb sync {run.path}/wandb/offline-run-*"
    return done


def to_tensorboard(run: Run) -> str:
    """Write ``RUN/tensorboard``; returns what was done. Raises ``UserError`` where it has events already."""
    folder = run.path / "tensorboard"
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(
            f"{folder} already holds events, which would be there twice: remove it, or look at it as it is."
        )
    count = _replay(run, lambda: views.TensorBoardView(run.path))
    return f"{count} records of {run.label} are in {folder}; look at them with: tensorboard --logdir {run.path}"


def _replay(run: Run, opened: Callable[[], views.View]) -> int:
    if not run.count:
        raise UserError(f"run={run.path} has no records to replay: nothing was logged yet.")
    view, failed = opened(), True
    try:
        count = views.replay(run.records, view)
        failed = False
    finally:
        view.close(failed)
    return count


def logger_config(run: Run) -> LoggerConfig:
    """The settings of ``logger`` the run was started with; what is not noted, or is not known, as it is by default."""
    noted = run.config.get("logger")
    values: dict[str, Any] = noted if isinstance(noted, dict) else {}
    types = get_type_hints(LoggerConfig)
    return LoggerConfig(**{name: value for name, value in values.items() if name in types and _is(value, types[name])})


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of the type of a setting of ``logger``."""
    if get_origin(kind) is list:
        return isinstance(value, list) and all(isinstance(part, get_args(kind)) for part in value)
    return isinstance(value, kind)
