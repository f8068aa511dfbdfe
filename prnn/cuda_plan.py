"""What the CUDA kernels' planner says of a layer: whether its weights fit, and how long a step is expected to take.

Shapes: B batch, H hidden size.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist

from prnn import native
from prnn.cell_table import Cell, lookup
from prnn.errors import UserError
from prnn.native import constant_when_traced

REGIMES = ("block", "cluster", "grid")
CAPABILITY = (8, 0)  # sm_80
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # csrc/layer_args.h


class BackendError(ValueError):
    """The backend that was forced does not exist, or cannot run what it is given."""

    __module__ = "prnn.ops"  # where users find it


def tf32() -> bool:
    """Whether torch lets float32 products be rounded to tf32; prnn's kernels then do it too, where that is quicker."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


# NCCL runs a block for each channel, of which it long had 32 at most; newer releases may take 64 where links are many.
NCCL_BLOCKS = 32

_reserved: int | None = None  # what ``cuda_reserve_sms`` was given


def cuda_reserve_sms(multiprocessors: int | None) -> None:
    """Leave so many multiprocessors of each GPU to other kernels than prnn's, from the next call of a layer on.

    The blocks of a layer whose weights are spread over a GPU wait for each other, while a kernel of another stream may
    occupy multiprocessors that they need: NCCL's, which wait for other GPUs (docs/distributed.md). None, the default,
    leaves 32 (or what NCCL_MAX_CTAS or NCCL_MAX_NCHANNELS says) while torch.distributed has more than one process and
    NCCL, and at most half of the GPU, else none; 0 leaves none at any time. PRNN_CUDA_MAX_SMS is a limit besides: the
    smaller one holds. A layer that does not fit into what is left runs on the `torch` backend.

    Raises:
        TypeError: not an integer.
        ValueError: below 0. As many as the GPU has are refused where a layer runs (``prnn.ops.BackendError``).

    Example::

        prnn.cuda_reserve_sms(16)  # with NCCL_MAX_CTAS=16 in the environment
    """
    global _reserved
    if multiprocessors is not None and (isinstance(multiprocessors, bool) or not isinstance(multiprocessors, int)):
        raise TypeError(
            f"cuda_reserve_sms takes a number of multiprocessors or None, got {type(multiprocessors).__name__}"
        )
    if multiprocessors is not None and multiprocessors < 0:
        raise ValueError(f"cuda_reserve_sms takes a number of multiprocessors, 0 or more, got {multiprocessors}")
    _reserved = multiprocessors


def multiprocessors(device: int) -> tuple[int, str]:
    """At most how many multiprocessors of a GPU plans may use at this moment, and that in words: (0, "") for all."""
    given, reserved = os.environ.get("PRNN_CUDA_MAX_SMS") or None, _reserved
    for_nccl = reserved is None and _nccl_runs()
    if given is not None and not (_is_number(given) and int(given) > 0):
        raise BackendError(f"PRNN_CUDA_MAX_SMS={given}: expected the number of multiprocessors that prnn may use")
    if given is None and not reserved and not for_nccl:
        return 0, ""
    every = _multiprocessors_of(device)
    if for_nccl:
        reserved = min(_nccl_blocks(), every // 2)
    reserved = reserved or 0
    if reserved >= every:
        raise BackendError(f"cuda_reserve_sms({reserved}) leaves none of the {every} multiprocessors of cuda:{device}")
    most = min(every - reserved, every if given is None else int(given))
    if most == every:
        return 0, ""
    reasons = [f"{reserved} left to NCCL" if for_nccl else f"cuda_reserve_sms({reserved})"] if reserved else []
    reasons += [] if given is None else [f"PRNN_CUDA_MAX_SMS={given}"]
    return most, f"at most {most} of {every} multiprocessors: {', '.join(reasons)}"


@lru_cache
def _multiprocessors_of(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _nccl_runs() -> bool:
    """Whether kernels of NCCL may run beside a layer's."""
    if not (dist.is_available() and dist.is_initialized()):
        return False
    return dist.get_world_size() > 1 and "cuda:nccl" in dist.get_backend_config()


def _nccl_blocks() -> int:
    """How many blocks NCCL may run; it ignores a limit that is no number above 0."""
    limits = (os.environ.get(name, "") for name in ("NCCL_MAX_CTAS", "NCCL_MAX_NCHANNELS"))
    return min((int(limit) for limit in limits if _is_number(limit) and int(limit) > 0), default=NCCL_BLOCKS)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def expected(
    cell: str, dtype: torch.dtype, B: int, H: int, device: int, gradients: bool, regime: str = "", K: int = -1
) -> tuple[float | None, str]:
    """Microseconds expected of a step forward, and the plan in words; or None, and why there is no plan. ``regime``
    is the plan's, if it is not the cheapest of all; ``K`` are the columns of weight_hh, -1 for H.
    """
    regime = os.environ.get("PRNN_CUDA_REGIME") or regime  # the library reads it itself, too
    if regime not in ("", *REGIMES):
        raise BackendError(f"PRNN_CUDA_REGIME={regime}: expected one of {', '.join(REGIMES)}")
    _check_wait(os.environ.get("PRNN_CUDA_WAIT_SECONDS") or "0")
    if torch.cuda.get_device_capability(device) < CAPABILITY:
        return None, "the CUDA kernels need sm_80 or later"
    most, limit = multiprocessors(device)
    limit = limit and f"; {limit}"
    try:
        forced = os.environ.get("PRNN_CUDA_PLAN")
        forward, backward = _plans(cell, dtype, B, H, device, tf32(), most, regime, forced, K)
    except UserError as error:  # the cell was not compiled
        return None, str(error)
    except RuntimeError as error:  # built for other GPUs, for example; not remembered, since it may pass
        if native.cuda_fault() is not None:  # the `torch` backend could do no more on this GPU
            raise
        message = str(error).splitlines()[0]
        if "PRNN_CUDA_PLAN=" in message:
            raise BackendError(message[message.index("PRNN_CUDA_PLAN=") :]) from error
        return None, message
    wishes = (f"{name}={os.environ[name]}" for name in ("PRNN_CUDA_REGIME", "PRNN_CUDA_PLAN") if os.environ.get(name))
    admitted = " with ".join(["", *wishes])
    for plan, which in ((forward, ""), (backward, " backward")):
        if not plan and (not which or gradients):
            return None, f"the weights of {H} units fit into no regime of this GPU{which}{admitted}{limit}"
    microseconds, text = forward.split(" ", 1)
    text += f", {float(microseconds):.2g} us a step expected"
    if backward:
        more, words = backward.split(" ", 1)
        text += f"; backward: {words}, {float(more):.2g} us"
    return float(microseconds), text + limit


constant_when_traced(expected)


def other_regimes(
    cell: str, dtype: torch.dtype, B: int, H: int, device: int, gradients: bool, K: int = -1
) -> list[str]:
    """The regimes that have plans, of both passes where ``gradients`` are wanted, but for the cheapest of all plans."""

    most, forced = multiprocessors(device)[0], os.environ.get("PRNN_CUDA_PLAN")
    count, truncates = 2 if gradients else 1, tf32()

    def plans(regime: str) -> tuple[str, ...]:
        return _plans(cell, dtype, B, H, device, truncates, most, regime, forced, K)[:count]

    cheapest = plans("")
    return [regime for regime in REGIMES if all(plans(regime)) and plans(regime) != cheapest]


def _check_wait(given: str) -> None:
    """The library reads PRNN_CUDA_WAIT_SECONDS itself, at each launch."""
    try:
        valid = 0 <= float(given) < math.inf and given.isascii() and given == given.strip() and "_" not in given
    except ValueError:
        valid = False
    if not valid:
        raise BackendError(f"PRNN_CUDA_WAIT_SECONDS={given}: expected the seconds a kernel may wait, or 0 for no limit")


@lru_cache(maxsize=4096)
def _plans(
    cell: str,
    dtype: torch.dtype,
    B: int,
    H: int,
    device: int,
    tf32: bool,
    most: int,
    regime: str,
    plan: str | None,
    K: int,
) -> tuple[str, str]:
    """Microseconds and words, forward and backward, of one direction alone; empty where there is no plan. The library
    reads PRNN_CUDA_PLAN itself; here it tells what is remembered apart.
    """
    of = lookup(cell)
    arguments = (number(of, device), DTYPES[dtype], B, H, tf32, device, most, regime, K)
    said = with_kernels(of, dtype, device, lambda: torch.ops.prnn_native.cuda_explain(*arguments))
    forward, backward = said.split("\n")[:2]
    return forward, backward


def number(cell: Cell, device: int) -> int:
    """A cell's number, which the CUDA operators take; ValueError where it has none."""
    of_user = cell.cuda_number(device)
    return native.cell_id(cell.name) if of_user is None else of_user


_NOT_LOADED = re.compile(r"prnn: kernel not loaded: (\d) (\d) (\d)")


def with_kernels(cell: Cell, dtype: torch.dtype, device: int, call: Callable[[], Any]) -> Any:
    """Call the library; the kernels of a cell written in Python that it lacks (csrc/cuda/user_kernels.h) are compiled.

    UserError where that fails.
    """
    while True:
        try:
            return call()
        except RuntimeError as error:
            missing = _NOT_LOADED.search(str(error))
            if missing is None:
                raise
        scheme, backward, shape = map(int, missing.groups())
        cell.compile_for_gpu((scheme, bool(backward), shape), dtype, device)
