"""From a training run to a checkpoint and back: what exact resume needs, gathered from all ranks."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import torch

from prnn.config import TrainConfig
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
    """Write the checkpoint of this step; all ranks take part. ``job`` is ``cfg`` as plain types, ``reported`` what
    others add to the state.

    With a ``writer`` every rank begins to write its share; without, rank 0 writes everything before this returns.
    Raises ``UserError``, on all ranks, where it cannot be written.
    """
    local = {
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
    reached = copy.copy(progress)  # a writer comes to it later

    def then(_: Path) -> None:
        mark_best(run_dir, reached)
        checkpoint.prune(run_dir, cfg.trainer.keep_checkpoints)

    if writer is not None:
        tensors, plain = stepper.share()
        common = (state, manifest) if world.is_main else None
        writer.save(run_dir, progress.step, tensors, {**local, "optimizer": plain}, common, then)
        return
    state["ranks"] = world.collect(local)
    shares = world.collect(stepper.optimizer_state()) if stepper.zero else [stepper.optimizer_state()]

    def write() -> None:
        state["optimizer"]["state"] = dict(sorted((i, each) for share in shares for i, each in share.items()))
        then(checkpoint.save(run_dir, progress.step, stepper.model.state_dict(), state, manifest))

    world.on_main(write)


def mark_best(run_dir: Path, progress: Progress) -> None:
    """Note the checkpoint of the best validation, where it is there and not noted yet, or no longer."""
    best = checkpoint.folder(run_dir) / checkpoint.name_of(max(0, progress.best_step))
    if progress.best_loss is None or checkpoint.best_name(run_dir) == best.name:
        return
    if progress.best_step in map(checkpoint.step_of, checkpoint.listing(run_dir)):
        if progress.best_step != progress.step:
            _log.warning("%s did not name the best checkpoint: it is written anew", best.with_name(checkpoint.BEST))
        checkpoint.mark_best(run_dir, best, progress.best_loss)


def check(loaded: Checkpoint, job: dict[str, Any], stepper: Stepper) -> None:
    """Raise ``UserError`` where ``loaded`` does not hold what ``restore`` reads; nothing is changed by then."""
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
    """Continue where ``loaded`` was written, and ``check`` found no fault: its weights are in the model already, the
    rest is put back here.

    Whatever the new job has changed so that it does not fit any more starts anew, with a warning.
    """
    state, before = loaded.state, loaded.manifest["config"]
    position, progress = Position(**state["position"]), Progress.from_state(state["progress"])
    if _same_optimizer(before, job):
        stepper.load_state_dict(state)
    else:
        _warn(world, "another optimizer than the checkpoint's, or its momentum turned on or off: its state starts anew")
    data = state["steps_per_epoch"], state.get("fingerprint", fingerprint)  # an older checkpoint has none
    other_data = checkpoint.differences(before, job, ("data",)) or data != (steps_per_epoch, fingerprint)
    other_batches = _changed(before, job, "batch_size") or _changed(before, job, "batch_tokens")
    if other_data or other_batches or before["seed"] != job["seed"]:
        _warn(world, f"other data, batch size or seed than the checkpoint's: epoch {position.epoch} starts over")
        position.index = 0
        return position, progress
    ranks = state["ranks"]
    changed = {key for key, _, _ in checkpoint.differences(before, job, ("distributed",))}
    other_hook = changed & {f"distributed.{key}" for key in ("comm_hook", "powersgd_rank", "bucket_cap_mib")}
    if not stepper.hook.load_state_dicts([] if other_hook else [rank.get("hook", {}) for rank in ranks]):
        _warn(world, "the checkpoint is not of powersgd with these buckets and this rank: powersgd starts anew")
    if len(ranks) == world.size:
        rng.set_state(ranks[world.rank]["rng"], world.device)
    else:
        rng.seed_all(rng.seed_of(job["seed"], world.rank, progress.step))
        _warn(
            world,
            f"the checkpoint was written by {len(ranks)} processes, this job has {world.size}: data and carried state "
            "go on where they were; dropout draws new random numbers, of the seed, the rank and the step",
        )
    if _changed(before, job, "precision"):  # the state of a recurrent layer is of the precision it computes in
        _warn(world, "another trainer.precision than the checkpoint's: the carried state starts anew")
    else:
        carried = join_rows([part for rank in ranks for part in rank["carried"]])
        stepper.restored = loaded.path
        stepper.carried = [map_state(lambda t: t.to(world.device), part) for part in shard.split_rows(carried)]
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


def _same_optimizer(before: dict[str, Any], job: dict[str, Any]) -> bool:
    """Whether the state of the one job's optimizer is one for the other's."""
    kinds = [optim.state_kind(each["optimizer"]["name"], each["optimizer"]["momentum"]) for each in (before, job)]
    return kinds[0] == kinds[1]


def _changed(before: dict[str, Any], now: dict[str, Any], name: str) -> bool:
    return before["trainer"].get(name) != now["trainer"][name]  # an older checkpoint does not know every setting


def _warn(world: World, sentence: str) -> None:
    if world.is_main:  # all ranks come to the same conclusion
        _log.warning(sentence)
