"""Gradient compression: ``distributed.comm_hook``, a communication hook of torch's DDP.

    none      uncompressed float32
    bf16      half the bytes, 8 bits of precision, float32's range
    fp16      half the bytes, 11 bits of precision, a small range: hence gradients of the mean loss, times ``HEADROOM``
    powersgd  low-rank matrices with error feedback: the residual is added to the next step's gradient
              (Vogels et al., 2019: PowerSGD, arXiv:1905.13727)

The averaged gradients are bitwise identical on all ranks with every hook.
"""

# No `from __future__ import annotations`: DDP compares the hook's annotations with types, not with their names.
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from prnn.config import DistributedConfig
from prnn.training.distributed import World
from prnn.training.exposed import Exposed, timed

# float16 overflows above 65,504 and underflows below 6e-8: with this factor, gradients of the mean loss of up to 1,000
# are representable, and those that underflow are below 1e-9.
HEADROOM = 2.0**6


class Compression:
    """The communication hook of one DDP module, with its state for checkpoints; it also reports the last bucket to
    ``exposed``. A no-op without DDP.
    """

    def __init__(self, net: nn.Module, config: DistributedConfig, world: World, exposed: Exposed) -> None:
        self.name = config.comm_hook if isinstance(net, DistributedDataParallel) else "none"
        self.wants_mean = self.name in ("fp16", "powersgd")  # gradients of the mean loss, not of the sum
        self.world = world
        self.started = False  # until then gradients are not compressed: see Stepper
        self._power: Any = None  # PowerSGDState
        if not isinstance(net, DistributedDataParallel):
            return
        # Imported lazily: they import half of torch.
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

        self._hooks, self._power_hook = default_hooks, powerSGD_hook.powerSGD_hook
        if self.name == "powersgd":
            self._power = powerSGD_hook.PowerSGDState(
                None, config.powersgd_rank, config.powersgd_start_step, orthogonalization_epsilon=1e-8
            )
        net.register_comm_hook(None, timed(self._run, exposed))

    def _run(self, state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        """Average a bucket's gradients over the ranks."""
        group = dist.group.WORLD
        assert group is not None
        if self.name == "powersgd" and self.started:
            return self._power_hook(self._power, bucket)
        if self.name == "bf16":
            return self._hooks.bf16_compress_hook(group, bucket)
        if self.name == "fp16" and self.started:
            return self._hooks.fp16_compress_hook(group, bucket)
        return self._hooks.allreduce_hook(group, bucket)

    def loss_scale(self, count: int) -> float:
        """The factor on this rank's summed loss; ``count``: its predictions in this step.

        Both hooks need gradients of the mean loss: fp16 for its range, powersgd because one step's residual is added
        to the next, which has another number of predictions. That number is therefore all-reduced beforehand.
        """
        if not self.wants_mean:
            return 1.0
        [total] = self.world.all_sum([float(count)])
        return (HEADROOM if self.name == "fp16" else 1.0) / max(total, 1.0)

    def state_dict(self) -> dict[str, Any]:
        """PowerSGD's residuals on this rank and its low-rank factors; {} for the other hooks."""
        power = self._power
        if power is None:
            return {}
        _, keys, *rest = power.rng.get_state()
        return {
            "backend": self.world.backend,
            "iter": power.iter,
            "rng": [list(map(int, keys)), *rest],
            "error": {bucket: tensor.cpu() for bucket, tensor in power.error_dict.items()},
            "p": {bucket: tensor.cpu() for bucket, tensor in power.p_memory_dict.items()},
            "q": {bucket: tensor.cpu() for bucket, tensor in power.q_memory_dict.items()},
        }

    def load_state_dicts(self, states: list[dict[str, Any]]) -> bool:
        """Restore from the ``state_dict`` of every rank of the earlier job; returns whether that was possible.

        With another number of processes each gets the mean of the residuals, so that none of them is lost.
        """
        power = self._power
        if power is None:
            return True
        if not states or not all(state.get("backend") == self.world.backend for state in states):
            return False  # bucket layout depends on the backend
        local = states[self.world.rank % len(states)]
        keys, *rest = local["rng"]
        power.rng.set_state(("MT19937", keys, *rest))
        power.iter = local["iter"]
        errors = [state["error"] for state in states]
        if len(states) == self.world.size:
            error = local["error"]
        else:
            error = {bucket: torch.stack([each[bucket] for each in errors]).mean(0) for bucket in errors[0]}
        for target, source in (
            (power.error_dict, error),
            (power.p_memory_dict, local["p"]),
            (power.q_memory_dict, local["q"]),
        ):
            target.update({bucket: self._to_device(tensor) for bucket, tensor in source.items()})
        return True

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.world.device, copy=True)
