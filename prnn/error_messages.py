"""Exceptions as messages: the one place that turns an error of the system or of a library into a ``UserError``.

``run_command`` prints it for the commands of a single process, and ``train.py`` for ``prnn-train``, which has several.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from prnn import extras
from prnn.errors import AgreedError, UserError
from prnn.terminal import OutputClosed, finish_streams, prepare_streams, put, say

if TYPE_CHECKING:  # not at run time: prnn-doctor and prnn.check need torch alone
    from omegaconf import DictConfig

    from prnn import ops

_PATH_REMEDY = "free it, or set run_dir to a place that can be written"


class GpuLost(UserError):
    """A kernel gave up a wait, and with it this process's use of its GPU."""

    exit_status = 1

    def __init__(self, fault: str) -> None:
        super().__init__(f"{fault.removeprefix('prnn: ')}.")


class PeerLost(UserError):
    """Another process of the job is gone; its own message says why."""

    exit_status = 1

    def __init__(self, detail: str) -> None:
        reason = shorten(next(iter(detail.splitlines()), ""), 200, placeholder=" ...")
        super().__init__(
            f"another process of this job was lost or did not answer (on {socket.gethostname()}: {reason}); its own "
            "message says why, and resume goes on from the last checkpoint, if one was written."
        )


def run_command(
    arguments: list[str] | None,
    help_text: Callable[[], str],
    command: Callable[[list[str]], object],
    memory_remedy: str,
    path_remedy: str,
) -> int:
    """Run a command of a single process with its arguments (None: this process's); returns its exit status.

    0; that of a ``UserError``, whose message goes to stderr; 130 after Ctrl-C. Other exceptions pass. ``--help`` and
    ``--version`` are answered here.
    """
    prepare_streams()
    words = sys.argv[1:] if arguments is None else arguments
    extras.end_imports()
    try:
        if {"--help", "-h"} & set(words):
            put(help_text())
        elif "--version" in words:
            put(version())
        else:
            command(words)
    except OutputClosed:
        pass
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as error:
        message = user_error(error, memory_remedy=memory_remedy, path_remedy=path_remedy)
        if message is None:
            raise
        say(f"prnn: {message}", sys.stderr)
        return message.exit_status
    finally:
        finish_streams()
    return 0


def version() -> str:
    """The answer to ``--version``."""
    from prnn import __version__

    return f"prnn {__version__}"


def user_error(
    error: Exception,
    cfg: DictConfig | None = None,
    memory_remedy: str | None = None,
    path_remedy: str = _PATH_REMEDY,
    kept: Callable[[], str] = str,
    known_keys: Callable[[], Iterable[str]] | None = None,
) -> UserError | None:
    """The message for an error that the user can do something about; None for any other, which is a bug.

    Args:
        error: what was raised.
        cfg: the configuration, whose settings that memory grows with are named; or ``memory_remedy``, the advice.
        path_remedy: the advice about a path that cannot be used.
        kept: gives a clause about the last checkpoint, appended to the message where training ran out of memory.
        known_keys: the settings there are, for suggestions; left out: those that all tasks have.
    """
    if isinstance(error, UserError):
        return error
    if isinstance(error, _loaded("prnn.ops", "BackendError")):  # the model is the same on all ranks
        return AgreedError(str(backend_refused(error)))
    of_hydra = _loaded("hydra.errors", "HydraException") + _loaded("omegaconf.errors", "OmegaConfBaseException")
    if isinstance(error, of_hydra):  # and so is the command line
        return AgreedError(str(_of_hydra(error, known_keys)))
    if not isinstance(error, (OSError, RuntimeError, MemoryError, TypeError, ValueError, OverflowError)):
        return None
    fault = _cuda_fault()
    if fault is not None:  # whatever CUDA or another process raises after it is a consequence
        return GpuLost(fault)
    message = out_of_memory(error, cfg, memory_remedy, kept)
    if message is None and _is_of_collective(error):
        return PeerLost(str(error))
    if message is None and isinstance(error, OSError):
        return unusable(error, path_remedy)
    return message


def _loaded(module: str, name: str) -> tuple[Any, ...]:
    """A class for ``isinstance``; none where nothing has imported its module, and so raised it.

    A command that needs no torch starts in a fifth of the time, and one that needs no Hydra runs without it.
    """
    found = sys.modules.get(module)
    return () if found is None else (getattr(found, name),)


def _cuda_fault() -> str | None:
    native = sys.modules.get("prnn.native")
    return None if native is None else native.cuda_fault()


def unusable(error: OSError, remedy: str = _PATH_REMEDY) -> UserError:
    """A path that cannot be made, written or read."""
    no_memory = out_of_memory(error)
    if no_memory is not None:
        return no_memory
    path = error.filename2 or error.filename or "the run directory or a file of the run"  # 2: what is renamed to
    reason = error.strerror or str(error) or type(error).__name__
    return UserError(f"{path} cannot be used ({reason}): {remedy}.")


def check_forced_backend() -> None:
    """Refuse a misspelt PRNN_BACKEND before anything is written."""
    from prnn import ops

    try:
        ops.forced()
    except ops.BackendError as error:
        raise backend_refused(error) from None


def backend_refused(error: ops.BackendError) -> UserError:
    """A backend forced by PRNN_BACKEND that cannot run this model, or another variable with an invalid value."""
    from prnn import ops

    if str(error).startswith("PRNN_"):  # it names the variable
        return UserError(f"{str(error).rstrip('.')}.")
    return UserError(
        f"{str(error).rstrip('.')}: unset PRNN_BACKEND, or set it to another of {', '.join(ops.BACKENDS)}."
    )


def not_composed(error: Exception) -> UserError:
    """What Hydra does not catch while it composes: a value that no part of it expects."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return AgreedError(f"Hydra makes no configuration of the overrides ({reason}): write each as KEY=VALUE.")


def _of_hydra(error: Exception, known_keys: Callable[[], Iterable[str]] | None) -> UserError:
    """An error of Hydra's or OmegaConf's, of several lines, as one sentence."""
    from hydra.errors import MissingConfigException, OverrideParseException
    from omegaconf.errors import InterpolationResolutionError

    from prnn import command_line, config

    for cause in _causes(error):  # raised within a resolver, say
        if isinstance(cause, UserError):
            return cause
        if isinstance(cause, OSError) and isinstance(error, InterpolationResolutionError):
            return unusable(cause)
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        options = [each for each in error.options or () if each != "default"]
        known = f": the known ones are {', '.join(options)}" if options else ""
        if not group:
            return UserError(f"there is no configuration {name!r}.")
        return UserError(f"there is no {group}={name}{config.did_you_mean(name, options)}{known}.")
    if isinstance(error, OverrideParseException):
        return command_line.unreadable(str(error.override))
    if "does not support sweep type" in text:
        return UserError("--multirun takes lists and ranges, as model=lstm,gru: interval(...) is for prnn-tune.")
    if match := re.match(r"Ambiguous value for argument '(.*)'\n1\. ", text, re.DOTALL):
        return command_line.several(match[1])
    if match := re.search(r"Could not override '([^']+)'", text):
        return UserError(f"{match[1]} is not a setting{config.suggest(match[1], (known_keys or config.known_keys)())}")
    return UserError(" ".join(text.split()))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what led to it. OmegaConf drops ``__cause__``, and ``__context__`` remains."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_of_collective(error: Exception) -> bool:
    """Whether a collective failed, because another process died or hangs."""
    # gloo raises plain RuntimeErrors that name its source file
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    of_gloo = several and isinstance(error, RuntimeError) and "gloo" in str(error)
    return of_gloo or isinstance(error, _loaded("torch.distributed", "DistError"))


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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of any library means that memory, of the host or a GPU, was not there."""
    return _memory_cause(error) is not None


def _memory_cause(error: BaseException) -> BaseException | None:
    """Which of an error and its causes says so: torch's writer of a file fails with an error about the file then."""
    each: BaseException | None = error
    while each is not None and not _says_no_memory(each):
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
    return each


def _says_no_memory(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, (RuntimeError, TypeError, ValueError, OverflowError)):  # torch has no class for it on a CPU
        return isinstance(error, _loaded("torch", "OutOfMemoryError")) or _NO_MEMORY.search(str(error)) is not None
    return isinstance(error, MemoryError)


def out_of_memory(
    error: Exception, cfg: DictConfig | None = None, remedy: str | None = None, kept: Callable[[], str] = str
) -> UserError | None:
    """Memory, or a thread, that was not available, with the settings of ``cfg`` that need it, or another ``remedy``,
    and with what ``kept`` gives; None where the error is another.
    """
    if isinstance(error, RuntimeError) and _NO_THREAD in str(error):
        return UserError(
            "no more threads can be started: raise the limit of processes (ulimit -u) or of memory, or lower "
            f"trainer.threads{kept()}."
        )
    if (cause := _memory_cause(error)) is None:
        return None
    match = _SIZE.search(str(cause))
    size = "" if match is None else f" for {binary(int(match[1])) if match[1] else match[2]} more"
    where = " of the GPU" if "CUDA" in str(cause) else ""
    if remedy is None:
        values = {} if cfg is None else _selected(cfg, _SIZES)
        settings = [f"{key}={value}" for key, value in values.items() if value is not None] or _SIZES[:2]
        remedy = f"lower {' or '.join(settings)}, or raise trainer.accumulate, which makes micro-batches smaller"
    return UserError(f"the memory{where} is not enough{size}: {remedy}{kept()}.")


def _selected(cfg: DictConfig, keys: Iterable[str]) -> dict[str, Any]:
    from omegaconf import OmegaConf

    return {key: OmegaConf.select(cfg, key) for key in keys}


def binary(size: float) -> str:
    """Bytes in the unit people read."""
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} PiB"
