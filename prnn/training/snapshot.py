"""From a training run to a checkpoint and back: what exact resume needs, gathered from all ranks."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import torch

from prnn.config import TrainConfig
from prnn.tasks.task import Position, Task, map_state
from prnn.training import checkpoint, optim, report, rng
from prnn.training.checkpoint import Checkpoint
from prnn.training.distributed import World
from prnn.training.progress import Progress
from prnn.training.step import Stepper

_log = logging.getLogger(__name__)


def save(
    run_dir: Path,
    cfg: TrainConfig,
    job: dict[str, Any],
    task: Task,
    stepper: Stepper,
    world: World,
    position: Position,
    progress: Progress,
    wandb_id: str | None,
) -> None:
    """Write the checkpoint of this step; all ranks take part. ``job`` is ``cfg`` as plain types.

    Raises ``UserError``, on all ranks, where rank 0 cannot write it.
    """
    own = {
        "rng": rng.get_state(world.device),
        "carried": [map_state(torch.Tensor.cpu, state) for state in stepper.carried],
    }
    ranks = world.gather(own)

    def write() -> None:
        state = {
            **stepper.state_dict(),
            "ranks": ranks,
            "position": position.state_dict(),
            "steps_per_epoch": task.steps_per_epoch(),
            "progress": progress.state_dict(),
            "wandb_id": wandb_id,
        }
        manifest = {
            "config": job,
            "task": task.state_dict(),
            "val_loss": progress.eval_loss if progress.eval_step == progress.step else None,
            "processes": world.size,
            "versions": report.versions(),
        }
        path = checkpoint.save(run_dir, progress.step, stepper.model.state_dict(), state, manifest)
        if progress.best_step == progress.step and progress.best_loss is not None:
            checkpoint.mark_best(run_dir, path, progress.best_loss)
        checkpoint.prune(run_dir, cfg.trainer.keep_checkpoints)

    world.on_main(write)


def restore(
    loaded: Checkpoint, job: dict[str, Any], steps_per_epoch: int, stepper: Stepper, world: World
) -> tuple[Position, Progress]:
    """Continue where ``loaded`` was written: its weights are in the model already, the rest is put back here.

    Whatever the new job has changed so that it does not fit any more starts anew, with a warning.
    """
    state, before = loaded.state, loaded.manifest["config"]
    position, progress = Position(**state["position"]), Progress.from_state(state["progress"])
    kinds = [optim.state_kind(each["optimizer"]["name"], each["optimizer"]["momentum"]) for each in (before, job)]
    if kinds[0] == kinds[1]:
        stepper.load_state_dict(state)
    else:
        _warn(world, "another optimizer than the checkpoint's, or its momentum turned on or off: its state starts anew")
    other_data = checkpoint.differences(before, job, ("data",)) or state["steps_per_epoch"] != steps_per_epoch
    if other_data or _changed(before, job, "batch_size") or before["seed"] != job["seed"]:
        _warn(world, f"other data, batch size or seed than the checkpoint's: epoch {position.epoch} starts over")
        position.index = 0
    elif loaded.manifest["processes"] != world.size or _changed(before, job, "accumulate"):
        _warn(
            world,
            f"the checkpoint was written by {loaded.manifest['processes']} processes x "
            f"{before['trainer']['accumulate']} micro-batches, this job has {world.size} x "
            f"{job['trainer']['accumulate']}: the position in the data is kept, carried state and random numbers "
            "start anew",
        )
    else:
        own = state["ranks"][world.rank]
        rng.set_state(own["rng"], world.device)
        if _changed(before, job, "precision"):  # the state of a recurrent layer is of the precision it computes in
            _warn(world, "another trainer.precision than the checkpoint's: the carried state starts anew")
        else:
            stepper.carried = [map_state(lambda part: part.to(world.device), carried) for carried in own["carried"]]
    return position, progress


def best_model(
    run_dir: Path, job: dict[str, Any], model: torch.nn.Module, progress: Progress
) -> tuple[torch.nn.Module, int]:
    """The model with the lowest validation loss, and its step; ``model`` itself where it is that, or none is known."""
    if progress.best_step in (-1, progress.step) or checkpoint.best_name(run_dir) is None:
        return model, progress.step
    loaded = checkpoint.read(run_dir, "best")
    best = copy.deepcopy(model)
    checkpoint.load_weights(best, loaded, job)
    return best, loaded.step


def _changed(before: dict[str, Any], now: dict[str, Any], name: str) -> bool:
    return before["trainer"][name] != now["trainer"][name]


def _warn(world: World, sentence: str) -> None:
    if world.is_main:  # all ranks come to the same conclusion
        _log.warning(sentence)
