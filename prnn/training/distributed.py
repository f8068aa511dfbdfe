"""Processes: rank, device, and the few collectives the loop needs.

torchrun (or another launcher) describes the job in the environment: RANK, WORLD_SIZE, LOCAL_RANK,
LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT. A single process makes no process group at all, and every
collective below is then the identity.
"""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from prnn.config import DistributedConfig, TrainerConfig
from prnn.error_messages import user_error
from prnn.errors import AgreedError, UserError
from prnn.terminal import finish_streams
from prnn.training import cores

T = TypeVar("T")
CPU = torch.device("cpu")
# Without a process group there is no barrier: the other ranks wait so long before they exit, since torchrun ends all
# processes, rank 0 with its message among them, as soon as one has ended.
REPORT_SECONDS = 2.0


@dataclass(frozen=True)
class World:
    """This process's place among the processes of the job."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    device: torch.device = CPU
    backend: str | None = None  # None: a single process

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes the files and prints to the terminal."""
        return self.rank == 0

    def all_sum(self, values: list[float]) -> list[float]:
        """Element-wise sum over all processes, in float64; the same answer on every rank."""
        if self.size == 1:
            return values
        place = self.device if self.backend == "nccl" else "cpu"
        tensor = torch.tensor(values, dtype=torch.float64, device=place)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of ranks, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def collect(self, value: T) -> list[T]:
        """Every rank's value on rank 0; elsewhere nothing."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_main else None
        dist.gather_object(value, values)
        return values or []

    def broadcast(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device if self.backend == "nccl" else None)
        return box[0]

    def on_main(self, function: Callable[[], T]) -> T:
        """What ``function`` returns on rank 0, on every rank; its ``UserError`` as well, as an ``AgreedError``.

        An ``OSError`` is a path that the user can do something about, and becomes a ``UserError``.
        """
        answer: tuple[Any, str | None] = (None, None)
        if self.is_main:
            try:
                answer = (function(), None)
            except (UserError, OSError) as error:
                message = user_error(error) or error
                if self.size > 1:
                    answer = (None, str(message))
                elif message is error:
                    raise
                else:
                    raise message from error
        value, problem = self.broadcast(answer)
        if problem is not None:
            raise AgreedError(problem)
        return value


def environment() -> tuple[int, int, int, int]:
    """Rank, world size, local rank and local world size, as the launcher set them; (0, 1, 0, 1) without one."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    try:
        rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        local_rank, local_size = int(os.environ.get("LOCAL_RANK", rank)), int(os.environ.get("LOCAL_WORLD_SIZE", size))
    except ValueError:
        given = ", ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)
        raise UserError(f"the launcher's environment must hold integers, got {given}.") from None
    if not 0 <= local_rank < local_size:
        raise UserError(
            f"the launcher's environment has process {local_rank} of {local_size} on this host (LOCAL_RANK and "
            "LOCAL_WORLD_SIZE, or RANK and WORLD_SIZE): it must be from 0 to one less."
        )
    return rank, size, local_rank, local_size


def choose_device(name: str, local_rank: int) -> torch.device:
    """The device of this process for ``trainer.device`` (auto, cpu or cuda)."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("trainer.device=cuda, but torch sees no CUDA device here; set trainer.device=cpu or auto.")
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"this node starts process {local_rank + 1}, but has {torch.cuda.device_count()} GPUs; "
            "lower --nproc-per-node or set trainer.device=cpu."
        )
    return torch.device("cuda", local_rank)


def choose_backend(name: str, device: torch.device) -> str:
    """The communication library for ``distributed.backend`` (auto, gloo or nccl)."""
    if name == "auto":
        return "nccl" if device.type == "cuda" else "gloo"
    if name == "nccl" and device.type != "cuda":
        raise UserError("distributed.backend=nccl needs GPUs, and this job runs on the CPU; set it to auto or gloo.")
    return name


def setup(distributed: DistributedConfig, trainer: TrainerConfig) -> World:
    """Choose the device and the threads, and join the process group if the launcher started several processes.

    A second call in the same process (the next job of a sweep) uses the group that is there.
    """
    rank, size, local_rank, local_size = environment()
    device = choose_device(trainer.device, local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    threads = cores.set_threads(trainer.threads, local_size)
    cores.bind(distributed.bind_cores and device.type == "cpu", local_rank, local_size, threads)
    if size == 1:
        return World(device=device)
    backend = choose_backend(distributed.backend, device)
    if not dist.is_initialized():
        timeout = timedelta(seconds=distributed.timeout_seconds)
        store = _store(rank, size, timeout, one_agent=local_size == size)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
        cores.calm_gloo()
    return World(rank, size, local_rank, local_size, device, dist.get_backend())


def _store(rank: int, size: int, timeout: timedelta, one_agent: bool) -> dist.Store:
    """Where the processes tell each other their addresses.

    torchrun keeps one store for all lives of a job. In it a process that is quick after a restart would find where the
    former lives of the others listened, and give up (https://github.com/pytorch/pytorch/issues/135712); so each life
    has keys of its own. On several nodes the agents may have counted different numbers of restarts: there the launcher
    sets TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1.
    """
    store, *_ = next(dist.rendezvous("env://", rank, size, timeout=timeout))
    life = os.environ.get("TORCHELASTIC_RESTART_COUNT")
    return dist.PrefixStore(f"life {life}", store) if life is not None and one_agent else store


def tell_launcher(sentence: str) -> None:
    """Leave the reason for a failure to torchrun, which ends with it; it prints its own traceback otherwise alone."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        report = {"message": {"message": sentence, "extraInfo": {"timestamp": str(int(time.time()))}}}
        with suppress(OSError):
            Path(path).write_text(json.dumps(report))


def leave(status: int, together: bool = True) -> None:
    """Leave the process group, if there is one, on the way out with ``status``.

    ``together``: all processes are leaving, and wait for each other, since rank 0 may still be writing. Otherwise
    others may be gone, the threads of the group cannot be joined, and the interpreter would abort on its way out
    (status 134 instead of ours): this process then ends here.
    """
    if not (dist.is_available() and dist.is_initialized()):
        if together and status and environment()[0] > 0:
            time.sleep(REPORT_SECONDS)
        return
    if together:
        # DDP has cycles, and may be freed late. If it is the last that holds the group, torch joins gloo's threads with
        # the interpreter's lock held, which one of them may be waiting for to drop a hook's future.
        gc.collect()
        with suppress(RuntimeError):
            dist.barrier()
            dist.destroy_process_group()
            return
    finish_streams()
    os._exit(status)
