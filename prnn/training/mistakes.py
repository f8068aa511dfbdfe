"""Errors of the system and of libraries as a one-sentence ``UserError``."""

from __future__ import annotations

import errno
import os
import re

import torch
from omegaconf import DictConfig, OmegaConf

from prnn import ops
from prnn.errors import UserError


def unusable(error: OSError) -> UserError:
    """A path that cannot be made, written or read."""
    no_memory = out_of_memory(error)
    if no_memory is not None:
        return no_memory
    path = error.filename2 or error.filename or "the run directory or a file of the run"  # 2: what is renamed to
    reason = error.strerror or str(error) or type(error).__name__
    return UserError(f"{path} cannot be used ({reason}): free it, or set run_dir to a place that can be written.")


def check_forced_backend() -> None:
    """A misspelt PRNN_BACKEND, before anything is written."""
    given = os.environ.get("PRNN_BACKEND")
    if given and given not in ops.BACKENDS:
        raise UserError(f"PRNN_BACKEND={given} must be one of {', '.join(ops.BACKENDS)}, or not set.")


class GpuLost(UserError):
    """A kernel gave up a wait, and with it this process's use of its GPU."""

    exit_status = 1

    def __init__(self, fault: str) -> None:
        super().__init__(f"{fault.removeprefix('prnn: ')}.")


def gpu_lost() -> GpuLost | None:
    """What an error that CUDA or another process has raised comes from; None where prnn's kernels did not cause it."""
    fault = ops.native.cuda_fault()
    return None if fault is None else GpuLost(fault)


# What torch, Python and prnn's kernels (csrc/out_of_memory.h) say; of sizes beyond 64 bits, torch alone.
_NO_MEMORY = re.compile(
    r"allocate memory|not enough memory|out of memory|bad_alloc|size calculation overflow|multiplication overflow"
    r"|overflow when unpacking",
    re.IGNORECASE,
)
_SIZE = re.compile(r"allocate (?:(\d+) bytes|(\d[\d.]* [KMGTPE]iB))")
_NO_THREAD = "can't start new thread"
# What memory grows with, where the task has it.
_SIZES = [
    "model.hidden_size", "trainer.batch_size", "trainer.batch_tokens", "trainer.micro_batch_size", "task.bptt",
    "task.capacity", "data.length",
]  # fmt: skip


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error of any library means that memory, of the host or a GPU, was not there."""
    return _of_memory(error) is not None


def _of_memory(error: BaseException) -> BaseException | None:
    """Which of an error and its causes says so: torch's writer of a file fails with an error about the file then."""
    each: BaseException | None = error
    while each is not None and not _says_no_memory(each):
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
    return each


def _says_no_memory(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, (RuntimeError, TypeError, ValueError, OverflowError)):  # torch has no class for it on a CPU
        return isinstance(error, torch.OutOfMemoryError) or _NO_MEMORY.search(str(error)) is not None
    return isinstance(error, MemoryError)


def out_of_memory(
    error: Exception, cfg: DictConfig | None = None, remedy: str | None = None, kept: str = ""
) -> UserError | None:
    """Memory, or a thread, that was not to be had, with the settings of ``cfg`` that ask for it, or another ``remedy``,
    and with what is ``kept``; None where the error is another.
    """
    if isinstance(error, RuntimeError) and _NO_THREAD in str(error):
        return UserError(
            "no more threads can be started: raise the limit of processes (ulimit -u) or of memory, or lower "
            f"trainer.threads{kept}."
        )
    if (cause := _of_memory(error)) is None:
        return None
    found = _SIZE.search(str(cause))
    asked = "" if found is None else f" for {_binary(int(found[1])) if found[1] else found[2]} more"
    where = " of the GPU" if "CUDA" in str(cause) else ""
    if remedy is None:
        given = {key: None if cfg is None else OmegaConf.select(cfg, key) for key in _SIZES}
        settings = [f"{key}={value}" for key, value in given.items() if value is not None] or _SIZES[:2]
        remedy = f"lower {' or '.join(settings)}, or raise trainer.accumulate, which makes micro-batches smaller"
    return UserError(f"the memory{where} is not enough{asked}: {remedy}{kept}.")


def _binary(size: float) -> str:
    """Bytes in the unit people read."""
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} PiB"


def backend_refused(error: ops.BackendError) -> UserError:
    """A backend asked for by PRNN_BACKEND that cannot run this model, or another variable that is no good."""
    if str(error).startswith("PRNN_CUDA_"):
        return UserError(f"{str(error).rstrip('.')}.")
    return UserError(
        f"{str(error).rstrip('.')}: unset PRNN_BACKEND, or set it to another of {', '.join(ops.BACKENDS)}."
    )
