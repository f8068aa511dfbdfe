"""One optimizer step: forward and backward over the micro-batches, one all-reduce of loss, counts
and signals, one update.

Losses are summed, not averaged. The gradient is divided once, by the number of predictions of the whole
global batch, so that it does not depend on how processes and micro-batches share them out unevenly.
"""

from __future__ import annotations

import copy
import inspect
import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from prnn.config import TrainConfig
from prnn.error_messages import is_out_of_memory
from prnn.errors import AgreedError
from prnn.task import Batch, State, Task
from prnn.training import checkpoint, optim, rng
from prnn.training.checkpoint.schema import weights_fault
from prnn.training.checkpoint.sharded import share_out
from prnn.training.compression import Compression
from prnn.training.device import autocast, to_device
from prnn.training.distributed import World
from prnn.training.exposed import Exposed
from prnn.training.interrupts import SIGNALS
from prnn.training.observe.activity import Activity

# GradScaler's default of 2**16 is meant for mean losses; a summed loss is larger by the number of predictions.
FIRST_SCALE = 2.0**6
ONE_BUCKET_MIB = 2**20  # more than any model
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


def wrap(model: nn.Module, cfg: TrainConfig, world: World) -> nn.Module:
    """``model`` as training calls it: compiled if configured, in DistributedDataParallel if distributed."""
    if cfg.trainer.compile:
        model = torch.compile(model, fullgraph=True)  # type: ignore[assignment]
    if world.size == 1:
        return model
    settings = cfg.distributed
    # gloo runs the second half of PowerSGD in threads, whose messages may come in another order on another process
    # when there are several buckets.
    one_bucket = settings.comm_hook == "powersgd" and world.backend == "gloo"
    return DistributedDataParallel(
        model,
        device_ids=[world.device.index] if world.device.type == "cuda" else None,
        static_graph=settings.static_graph,
        bucket_cap_mb=ONE_BUCKET_MIB if one_bucket else settings.bucket_cap_mib,
        gradient_as_bucket_view=settings.gradient_as_bucket_view,
        # Buffers are constants, built alike on all ranks (the one-hot matrix): DDP would send them at every step.
        **_NO_SYNC_BUFFERS,
    )


class Stepper:
    """Holds what a step changes: the model, the optimizer, and the state carried by each micro-batch."""

    def __init__(self, cfg: TrainConfig, task: Task, model: nn.Module, world: World, activity: Activity) -> None:
        self.task, self.model, self.world, self.activity = task, model, world, activity
        self.config = cfg.trainer
        self.exposed = Exposed(world.device)
        self.net = wrap(model, cfg, world)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.hook = Compression(self.net, cfg.distributed, world, self.exposed)
        self.zero = cfg.distributed.zero and world.size > 1
        self.optimizer = optim.build(cfg.optimizer, self.parameters, self.zero)
        fp16 = cfg.trainer.precision == "float16"
        self.scaler = torch.amp.GradScaler(world.device.type, init_scale=FIRST_SCALE, enabled=fp16)
        self.carried: list[State] = []  # of each micro-batch, from the step before
        schedule = cfg.optimizer.schedule
        self.keeps = schedule.name == "plateau" and schedule.reload_best
        self.kept: dict[str, Any] | None = None  # the best model, and the optimizer's state beside it
        self.like = optim.example_state(cfg.optimizer)  # of one parameter
        self.restored: Path | None = None  # the checkpoint whose carried state the next step is the first to use

    def run(self, step: int, batches: list[Batch], lr: float, seconds: float, flags: list[float]) -> StepResult:
        """Make update number ``step``. Raises ``Diverged``, on all ranks, before anything is changed for the worse."""
        self._settle(batches[-1])
        self.optimizer.zero_grad(set_to_none=True)
        predictions = sum(b.count for b in batches)
        if self.hook.wants_mean:
            self.activity.enter("agreement")
            if self.world.device.type == "cuda":  # the update before is not what is waited for
                torch.cuda.synchronize(self.world.device)
        began = time.perf_counter()
        scale = self.hook.loss_scale(predictions)
        waited = time.perf_counter() - began
        loss = self._forward_backward(batches, scale)
        mine = [loss, float(predictions), float(sum(b.tokens for b in batches))]
        mine += [seconds if self.world.is_main else 0.0, *flags]
        self.activity.enter("agreement")
        began = time.perf_counter()
        # Besides DDP's, a hook's and ZeRO's the step's only collective: it also tells every rank of a bad loss, and of
        # a signal to stop.
        loss, count, tokens, seconds, *signals = self.world.all_sum(mine)
        exposed = 0.0 if self.world.size == 1 else waited + self.exposed.tail() + time.perf_counter() - began
        assert len(signals) == len(SIGNALS)
        self.activity.enter("optimizer")
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        grads = optim.gradients(self.parameters)
        # DDP has averaged the gradients over the ranks; they are wanted summed, over all predictions.
        factor = self.world.size / (scale * max(count, 1.0))
        norm = optim.global_norm(grads)  # of gradients that are the same on all ranks, so they agree on it
        if not math.isfinite(loss) or (not math.isfinite(norm) and not self._overflow()):
            raise self._diverged(step, loss / max(count, 1.0), norm * factor, lr)
        norm = optim.scale_and_clip(grads, norm, factor, self.config.clip_norm, self.config.clip_value)
        optim.set_lr(self.optimizer, lr)
        self.scaler.step(self.optimizer)  # the optimizer's own step unless float16 overflowed
        self.scaler.update()
        return StepResult(loss, int(count), int(tokens), norm, seconds, signals, exposed)

    def _settle(self, batch: Batch) -> None:
        """Let DDP lay out its buckets, which it does by the order of the first backward pass's gradients.

        That pass is made here, and thrown away. So all steps sum in one order, those after a resume too, and what a
        hook remembers of a bucket fits the bucket.
        """
        if self.hook.started or not isinstance(self.net, DistributedDataParallel):
            return
        with rng.isolated(0, self.world.device), autocast(self.config.precision, self.world.device):
            loss, _ = self.task.loss(self.net, to_device(batch, self.world.device), None)
        loss.backward()
        self.hook.started = True

    def _forward_backward(self, batches: list[Batch], scale: float) -> float:
        """Accumulate the gradient of the summed loss times ``scale``; return that loss."""
        total = torch.zeros((), dtype=torch.float64, device=self.world.device)
        if len(self.carried) != len(batches):
            self.carried = [None] * len(batches)
        for micro, batch in enumerate(batches):
            batch = to_device(batch, self.world.device)
            state = None if batch.reset_state else self.carried[micro]
            # Gradients travel once a step, with the last micro-batch.
            waits = isinstance(self.net, DistributedDataParallel) and micro < len(batches) - 1
            with self.net.no_sync() if waits else nullcontext():  # type: ignore[operator]
                self.activity.enter("forward")
                with autocast(self.config.precision, self.world.device):
                    loss, state = self._loss(batch, state)
                self.carried[micro] = None if batch.dummy else state
                loss = loss * 0 if batch.dummy else loss
                self.activity.enter("backward")
                self.scaler.scale(loss if scale == 1.0 else loss * scale).backward()
            total += loss.detach()
        self.exposed.backward_is_through()
        self.restored = None
        return float(total)

    def _loss(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        """The task's loss. Only the model knows the shapes of the state it carries, and refuses a checkpoint's."""
        try:
            return self.task.loss(self.net, batch, state)
        except Exception as error:
            if self.restored is None or state is None or is_out_of_memory(error):
                raise
            # Of the model alone: with other processes, one that is gone is another reason.
            if not self._fails(batch, state) or self._fails(batch, None):
                raise
            raise checkpoint.damaged(
                self.restored, f"the carried state does not fit the model ({checkpoint.first_line(error)})"
            ) from error

    def _overflow(self) -> bool:
        """Whether gradients that are not finite are float16's ordinary overflow, cured by a smaller scale."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > LEAST_SCALE

    def _diverged(self, step: int, loss: float, norm: float, lr: float) -> Diverged:
        what = "loss" if not math.isfinite(loss) else "gradient"
        clip = "" if self.config.clip_norm is not None else ", or set trainer.clip_norm=5"
        if self.hook.name == "fp16" and math.isfinite(loss):
            clip += ", or take distributed.comm_hook=bf16, whose range is larger"
        return Diverged(
            f"the {what} is not finite at step {step} (loss {loss:.4g}, gradient norm {norm:.4g}, learning rate "
            f"{lr:.4g}); this update was not made: lower optimizer.lr{clip}."
        )

    def keep(self) -> None:
        """Remember the model, if the schedule may want to go back to it."""
        if self.keeps:
            state = optim.get_state(self.optimizer, self.parameters)
            self.kept = copy.deepcopy({"model": self.model.state_dict(), "optimizer": state})

    def go_back(self) -> bool:
        """Take the remembered model up again; returns whether there is one."""
        if self.kept is None:
            return False
        self.model.load_state_dict(self.kept["model"])
        # A copy, since an optimizer works on what it is given.
        optim.set_state(self.optimizer, self.parameters, copy.deepcopy(self.kept["optimizer"]))
        return True

    def optimizer_state(self) -> dict[int, dict[str, Any]]:
        """The optimizer's state of each parameter that this process has it of, on the CPU."""
        state = optim.get_state(self.optimizer, self.parameters)
        return {i: {k: v.cpu() if isinstance(v, Tensor) else v for k, v in each.items()} for i, each in state.items()}

    def share(self) -> tuple[dict[str, Tensor], dict[int, dict[str, Any]]]:
        """This process's share of the weights and the optimizer's state: tensors by name, and numbers by parameter.

        Together the shares of all processes are everything, each once.
        """
        model, world = self.model.state_dict(), self.world
        names = share_out({name: tensor.numel() for name, tensor in model.items()}, world.size)[world.rank]
        tensors = {f"model.{name}": model[name] for name in names}
        state = optim.get_state(self.optimizer, self.parameters)
        if not self.zero:  # all have all of it
            sizes = {str(i): self.parameters[i].numel() for i in state}
            state = {int(i): state[int(i)] for i in share_out(sizes, world.size)[world.rank]}
        plain: dict[int, dict[str, Any]] = {i: {} for i in state}
        for i, each in state.items():
            for key, value in each.items():
                if isinstance(value, Tensor) and value.dim():
                    tensors[f"optimizer.{i}.{key}"] = value
                else:
                    plain[i][key] = value.cpu() if isinstance(value, Tensor) else value
        return tensors, plain

    def state_dict(self) -> dict[str, Any]:
        """The optimizer, but for its state, the float16 loss scale and what ``keep`` remembers; the same on all ranks.

        As torch's optimizers write it, whether the state is shared out or not.
        """
        numbers = list(range(len(self.parameters)))
        groups = [dict(sorted({**group, "params": numbers}.items())) for group in self.optimizer.param_groups]  # one
        return {
            "optimizer": {"state": {}, "param_groups": groups},
            "scaler": self.scaler.state_dict(),
            "kept": self.kept,
        }

    def _fails(self, batch: Batch, state: State) -> bool:
        try:
            with torch.no_grad():
                self.task.loss(self.model, batch, state)
        except Exception:  # whatever a task raises
            return True
        return False

    def state_fault(self, state: dict[str, Any]) -> str | None:
        """What in ``state`` does not fit the model; of tensors on the disk, those of this process are read."""
        parts = [("state.optimizer.state", state["optimizer"]["state"])]
        kept = state.get("kept") if self.keeps else None
        if kept is not None:
            if problem := weights_fault(kept["model"], self.model.state_dict(), "state.kept.model"):
                return problem
            parts.append(("state.kept.optimizer", kept["optimizer"]))
        for where, each in parts:
            if problem := optim.state_fault(self.optimizer, self.parameters, each, self.like, where):
                return problem
        return None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back the optimizer's averages; its hyper-parameters stay those of this job's configuration."""
        optim.set_state(self.optimizer, self.parameters, state["optimizer"]["state"])
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.kept = state.get("kept") if self.keeps else None  # older checkpoints have none
