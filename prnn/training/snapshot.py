"""Save and restore the training state: everything an exact resume needs, gathered from all ranks."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import torch

from prnn.config import TrainConfig, written
from prnn.errors import UserError
from prnn.task import Position, Shard, Task, join_rows, map_state
from prnn.training import checkpoint, optim, rng
from prnn.training.checkpoint import Checkpoint, schema, sharded
from prnn.training.distributed import World
from prnn.training.observe import summary
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
    reported: dict[str, Any],
    writer: sharded.Writer | None,
) -> None:
    """Write the checkpoint of this step; a collective. ``job`` is ``cfg`` as plain types, ``reported`` are further
    entries of the state, such as the logger's.

    With a ``writer`` every rank starts to write its share asynchronously; without, rank 0 writes everything before this
    returns. Raises ``UserError`` on all ranks if it cannot be written.
    """
    local_state = {
        "rng": rng.get_state(world.device),
        "carried": [map_state(torch.Tensor.cpu, state) for state in stepper.carried],
        "hook": stepper.hook.state_dict(),
    }
    state = {
        **stepper.state_dict(),
        "position": position.state_dict(),
        "steps_per_epoch": task.steps_per_epoch(),
        "progress": progress.state_dict(),
        **reported,
    }
    manifest = {
        "config": job,
        "task": task.state_dict() if world.is_main else {},
        "val_loss": progress.eval_loss if progress.eval_step == progress.step else None,
        "processes": world.size,
        "versions": summary.versions(),
    }
    snapshot = copy.copy(progress)  # a writer uses it later, when training has gone on

    def on_complete(_: Path) -> None:
        mark_best(run_dir, snapshot)
        checkpoint.prune(run_dir, cfg.trainer.keep_checkpoints)

    if writer is not None:
        tensors, plain = stepper.share()
        common = (state, manifest) if world.is_main else None
        writer.save(run_dir, progress.step, tensors, {**local_state, "optimizer": plain}, common, on_complete)
        return
    state["ranks"] = world.collect(local_state)
    shares = world.collect(stepper.optimizer_state()) if stepper.zero else [stepper.optimizer_state()]

    def write() -> None:
        state["optimizer"]["state"] = dict(sorted((i, each) for share in shares for i, each in share.items()))
        on_complete(checkpoint.save(run_dir, progress.step, stepper.model.state_dict(), state, manifest))

    world.on_main(write)


def mark_best(run_dir: Path, progress: Progress) -> None:
    """Record the checkpoint of the best validation in ``best.json``, if it exists and is not recorded there."""
    best = checkpoint.folder(run_dir) / checkpoint.name_of(max(0, progress.best_step))
    if progress.best_loss is None or checkpoint.best_name(run_dir) == best.name:
        return
    if progress.best_step in map(checkpoint.step_of, checkpoint.listing(run_dir)):
        if progress.best_step != progress.step:
            _log.warning("%s did not name the best checkpoint: it is rewritten", best.with_name(checkpoint.BEST))
        checkpoint.mark_best(run_dir, best, progress.best_loss)


def check(loaded: Checkpoint, job: dict[str, Any], stepper: Stepper) -> None:
    """Raise ``UserError`` if ``loaded`` lacks anything that ``restore`` reads, before any state is changed."""
    saved, asked = (config["model"].get("bias_hh", True) for config in (loaded.manifest["config"], job))
    if saved != asked:  # other parameters are trained; a checkpoint from before the setting trained both biases
        raise UserError(
            f"the checkpoint {loaded.path} was trained with model.bias_hh={written(saved)}, not with {written(asked)}: "
            "restore the setting, or begin a new run."
        )
    problem = schema.state_fault(loaded.manifest, loaded.state)
    if problem is None and _same_optimizer(loaded.manifest["config"], job):
        problem = stepper.state_fault(loaded.state)
    if problem is not None:
        raise checkpoint.damaged(loaded.path, problem)


def restore(
    loaded: Checkpoint,
    job: dict[str, Any],
    steps_per_epoch: int,
    fingerprint: str,
    stepper: Stepper,
    world: World,
    shard: Shard,
) -> tuple[Position, Progress]:
    """Restore everything but the weights from ``loaded``, which ``check`` has validated; the model has its weights.

    State that does not fit the new job's settings is reset, with a warning.
    """
    state, saved = loaded.state, loaded.manifest["config"]
    position, progress = Position(**state["position"]), Progress.from_state(state["progress"])
    if _same_optimizer(saved, job):
        stepper.load_state_dict(state)
    else:
        _warn(world, "the optimizer differs from the checkpoint's, or its momentum was turned on or off: state reset")
    data = state["steps_per_epoch"], state.get("fingerprint", fingerprint)  # an older checkpoint has none
    known = {f"data.{key}" for key in saved.get("data") or {}}  # an older checkpoint lacks newer settings
    changed_data = [key for key, _, _ in checkpoint.differences(saved, job, ("data",)) if key in known]
    other_data = changed_data or data != (steps_per_epoch, fingerprint)
    other_batches = _changed(saved, job, "batch_size") or _changed(saved, job, "batch_tokens")
    if other_data or other_batches or saved["seed"] != job["seed"]:
        _warn(world, f"other data, batch size or seed than the checkpoint's: epoch {position.epoch} starts over")
        position.index = 0
        return position, progress
    ranks = state["ranks"]
    changed = {key for key, _, _ in checkpoint.differences(saved, job, ("distributed",))}
    other_hook = changed & {f"distributed.{key}" for key in ("comm_hook", "powersgd_rank", "bucket_cap_mib")}
    if not stepper.hook.load_state_dicts([] if other_hook else [rank.get("hook", {}) for rank in ranks]):
        _warn(world, "the checkpoint has no powersgd state for these buckets and this rank: powersgd state is reset")
    if len(ranks) == world.size:
        rng.set_state(ranks[world.rank]["rng"], world.device)
    else:
        rng.seed_all(rng.seed_of(job["seed"], world.rank, progress.step))
        _warn(
            world,
            f"the checkpoint was written by {len(ranks)} process{'es' if len(ranks) > 1 else ''}, this job has "
            f"{world.size}: data order and carried state continue; dropout is reseeded from the seed, the rank and the "
            "step",
        )
    if _changed(saved, job, "precision"):  # a recurrent layer's state has the dtype it computes in
        _warn(world, "trainer.precision differs from the checkpoint's: the carried state is reset")
    else:
        carried = join_rows([part for rank in ranks for part in rank["carried"]])
        stepper.restored = loaded.path
        stepper.carried = [map_state(lambda t: t.to(world.device), part) for part in shard.split_rows(carried)]
    return position, progress


def best_model(
    run_dir: Path, job: dict[str, Any], model: torch.nn.Module, progress: Progress
) -> tuple[torch.nn.Module, int]:
    """The model with the lowest validation loss, and its step; ``model`` itself if it is that, or none is recorded."""
    if progress.best_step in (-1, progress.step) or checkpoint.best_name(run_dir) is None:
        return model, progress.step
    loaded = checkpoint.read(run_dir, "best")
    best = copy.deepcopy(model)
    checkpoint.load_weights(best, loaded, job)
    return best, loaded.step


def _same_optimizer(saved: dict[str, Any], job: dict[str, Any]) -> bool:
    """Whether the optimizer states of the two jobs have the same layout."""
    kinds = [optim.state_kind(each["optimizer"]["name"], each["optimizer"]["momentum"]) for each in (saved, job)]
    return kinds[0] == kinds[1]


def _changed(saved: dict[str, Any], job: dict[str, Any], name: str) -> bool:
    return saved["trainer"].get(name) != job["trainer"][name]  # an older checkpoint lacks newer settings


def _warn(world: World, message: str) -> None:
    if world.is_main:  # all ranks decide alike
        _log.warning(message)
