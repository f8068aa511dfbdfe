"""The trained model of a run, for the commands that use one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from prnn import config, importing, tasks
from prnn.error_messages import check_forced_backend
from prnn.errors import UserError
from prnn.task import Task
from prnn.training import checkpoint, run_dir


def load(run: str, which: str) -> tuple[Any, Task, nn.Module]:
    """The configuration, the task and the model of a run directory, or of "latest"; ``which`` of its checkpoints:
    "last" or "best". The training data is not opened.

    Raises ``UserError`` for a run that cannot be read.
    """
    check_forced_backend()
    loaded = checkpoint.read(run_dir.find(run), which)
    saved = loaded.manifest["config"]
    schemas = None
    try:
        tree = OmegaConf.create(config.literal(saved))
        cell, name = (str(OmegaConf.select(tree, key)) for key in ("model.cell", "task.name"))
        importing.find_here(Path.cwd(), cell, name)
        schemas = tasks.schemas(name)
        cfg = config.check(tree, schemas)
    except (UserError, OmegaConfBaseException, RecursionError, TypeError, ValueError, OverflowError) as error:
        if schemas is None and isinstance(error, UserError):  # a task that is not here: the checkpoint is in order
            raise
        reason = checkpoint.first_line(error)
        raise checkpoint.damaged(loaded.path, f"its configuration is not one of this version ({reason})") from error
    task = tasks.build(cfg, loaded.manifest.get("task", {}), loaded.path)
    try:
        with torch.device("meta"):  # no memory is allocated before the sizes are checked
            like = task.build_model()
    except (RuntimeError, ValueError, TypeError) as error:
        reason = checkpoint.first_line(error)
        raise checkpoint.damaged(loaded.path, f"its configuration makes no model ({reason})") from error
    checkpoint.check_weights(like, loaded, saved)
    model = task.build_model()
    checkpoint.load_weights(model, loaded, saved)
    return cfg, task, model
