"""One optimizer step: forward and backward over the micro-batches, one agreement, one update.

Losses are summed, not averaged. The gradient is divided once, by the number of predictions of the whole
global batch, so that it does not depend on how processes and micro-batches share them out unevenly.
"""

from __future__ import annotations

import copy
import inspect
import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from prnn.config import TrainConfig
from prnn.tasks.task import Batch, State, Task
from prnn.training import optim
from prnn.training.activity import Activity
from prnn.training.distributed import AgreedError, World
from prnn.training.exposed import Exposed, timed
from prnn.training.interrupts import SIGNALS

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# GradScaler's default of 2**16 is meant for mean losses; a summed loss is larger by the number of predictions.
FIRST_SCALE = 2.0**6
LEAST_SCALE = 2.0**-14  # below this, float16 gradients overflow for a reason that scaling does not cure
# DDP's switch for sending buffers at every step; torch has given it a new name and warns of the old one.
_RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
_NO_SYNC_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _RENAMED else "broadcast_buffers": False}


class Diverged(AgreedError):
    """The loss or the gradient is not a number any more; the update was not made."""

    exit_status = 1


@dataclass
class StepResult:
    """What all processes know after a step: sums over the global batch."""

    loss: float  # summed over `count` predictions
    count: int
    tokens: int
    grad_norm: float  # before clipping, of the mean loss
    seconds: float  # rank 0's training time before this step, so that all agree on it
    signals: list[float]  # how many processes have received each of interrupts.SIGNALS
    exposed: float  # this process's own: seconds of exposed communication; 0 for a single process


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The context of every forward pass for ``trainer.precision``."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, PRECISIONS[precision])


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on ``device``."""
    if device.type == "cpu":
        return batch
    return replace(batch, tensors={name: value.to(device, non_blocking=True) for name, value in batch.tensors.items()})


def wrap(model: nn.Module, cfg: TrainConfig, world: World, exposed: Exposed) -> nn.Module:
    """``model`` as training calls it: compiled if asked for, in DistributedDataParallel if there are processes."""
    if cfg.trainer.compile:
        model = torch.compile(model, fullgraph=True)  # type: ignore[assignment]
    if world.size == 1:
        return model
    net = DistributedDataParallel(
        model,
        device_ids=[world.device.index] if world.device.type == "cuda" else None,
        static_graph=cfg.distributed.static_graph,
        bucket_cap_mb=cfg.distributed.bucket_cap_mib,
        gradient_as_bucket_view=True,
        # Buffers are constants, built alike on all ranks (the one-hot matrix): DDP would send them at every step.
        **_NO_SYNC_BUFFERS,
    )
    net.register_comm_hook(None, timed(allreduce_hook, exposed))
    return net


class Stepper:
    """Holds what a step changes: the model, the optimizer, and the state carried by each micro-batch."""

    def __init__(self, cfg: TrainConfig, task: Task, model: nn.Module, world: World, activity: Activity) -> None:
        self.task, self.model, self.world, self.activity = task, model, world, activity
        self.config = cfg.trainer
        self.exposed = Exposed(world.device)
        self.net = wrap(model, cfg, world, self.exposed)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = optim.build(cfg.optimizer, self.parameters)
        fp16 = cfg.trainer.precision == "float16"
        self.scaler = torch.amp.GradScaler(world.device.type, init_scale=FIRST_SCALE, enabled=fp16)
        self.carried: list[State] = [None] * cfg.trainer.accumulate
        schedule = cfg.optimizer.schedule
        self.keeps = schedule.name == "plateau" and schedule.reload_best
        self.kept: dict[str, Any] | None = None  # the best model and the optimizer's state of then

    def run(self, step: int, batches: list[Batch], lr: float, seconds: float, flags: list[float]) -> StepResult:
        """Make update number ``step``. Raises ``Diverged``, on all ranks, before anything is changed for the worse."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._forward_backward(batches)
        mine = [loss, float(sum(b.count for b in batches)), float(sum(b.tokens for b in batches))]
        mine += [seconds if self.world.is_main else 0.0, *flags]
        # The step's only collective besides DDP's: it also tells every rank of a bad loss, and of a signal to stop.
        self.activity.enter("agreement")
        began = time.perf_counter()
        loss, count, tokens, seconds, *signals = self.world.all_sum(mine)
        exposed = 0.0 if self.world.size == 1 else self.exposed.tail() + time.perf_counter() - began
        assert len(signals) == len(SIGNALS)
        self.activity.enter("optimizer")
        self.scaler.unscale_(self.optimizer) if self.scaler.is_enabled() else None
        grads = optim.gradients(self.parameters)
        # DDP has averaged the gradients over the ranks; they are wanted summed, over all predictions.
        factor = self.world.size / max(count, 1.0)
        norm = optim.global_norm(grads)  # of gradients that are the same on all ranks, so they agree on it
        if not math.isfinite(loss) or (not math.isfinite(norm) and not self._overflow()):
            raise self._diverged(step, loss / max(count, 1.0), norm * factor, lr)
        norm = optim.scale_and_clip(grads, norm, factor, self.config.clip_norm, self.config.clip_value)
        optim.set_lr(self.optimizer, lr)
        self.scaler.step(self.optimizer)  # the optimizer's own step unless float16 overflowed
        self.scaler.update()
        return StepResult(loss, int(count), int(tokens), norm, seconds, signals, exposed)

    def _forward_backward(self, batches: list[Batch]) -> float:
        """Accumulate the gradient of the summed loss; return that loss."""
        total = torch.zeros((), dtype=torch.float64, device=self.world.device)
        for micro, batch in enumerate(batches):
            batch = to_device(batch, self.world.device)
            state = None if batch.fresh else self.carried[micro]
            # Gradients travel once a step, with the last micro-batch.
            waits = isinstance(self.net, DistributedDataParallel) and micro < len(batches) - 1
            with self.net.no_sync() if waits else nullcontext():  # type: ignore[operator]
                self.activity.enter("forward")
                with autocast(self.config.precision, self.world.device):
                    loss, self.carried[micro] = self.task.loss(self.net, batch, state)
                self.activity.enter("backward")
                self.scaler.scale(loss).backward()
            total += loss.detach()
        self.exposed.backward_is_through()
        return float(total)

    def _overflow(self) -> bool:
        """Whether gradients that are not finite are float16's ordinary overflow, cured by a smaller scale."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > LEAST_SCALE

    def _diverged(self, step: int, loss: float, norm: float, lr: float) -> Diverged:
        what = "loss" if not math.isfinite(loss) else "gradient"
        clip = "" if self.config.clip_norm is not None else ", or set trainer.clip_norm=5"
        return Diverged(
            f"the {what} is not finite at step {step} (loss {loss:.4g}, gradient norm {norm:.4g}, learning rate "
            f"{lr:.4g}); this update was not made: lower optimizer.lr{clip}."
        )

    def keep(self) -> None:
        """Remember the model, if the schedule may want to go back to it."""
        if self.keeps:
            self.kept = copy.deepcopy({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()})

    def go_back(self) -> bool:
        """Take the remembered model up again; returns whether there is one."""
        if self.kept is None:
            return False
        self.model.load_state_dict(self.kept["model"])
        self._load_averages(copy.deepcopy(self.kept["optimizer"]))  # an optimizer works on what it is given
        return True

    def state_dict(self) -> dict[str, Any]:
        """The optimizer, the float16 loss scale and what ``keep`` remembers; the same on all ranks."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(), "kept": self.kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what ``state_dict`` gave, the optimizer's averages without its hyper-parameters."""
        self._load_averages(state["optimizer"])
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.kept = state.get("kept") if self.keeps else None  # older checkpoints have none

    def _load_averages(self, state: dict[str, Any]) -> None:
        """The hyper-parameters stay those of this job's configuration."""
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
