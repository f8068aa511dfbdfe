"""What the CUDA kernels' planner says of a layer: whether its weights fit, and how long a step is expected to take.

Shapes: B batch, H hidden size.
"""

from __future__ import annotations

import math
import os
from functools import lru_cache

import torch

from prnn import native
from prnn.native import constant_when_traced

REGIMES = ("block", "cluster", "grid")
CAPABILITY = (8, 0)  # sm_80
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # csrc/layer_args.h


class BackendError(ValueError):
    """The backend that was forced does not exist, or cannot run what it is given."""


def tf32() -> bool:
    """Whether torch lets float32 products be rounded to tf32; prnn's kernels then do it too, where that is quicker."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def expected(cell: str, dtype: torch.dtype, B: int, H: int, device: int, gradients: bool) -> tuple[float | None, str]:
    """Microseconds expected of a step forward, and the plan in words; or None, and why there is no plan."""
    regime = os.environ.get("PRNN_CUDA_REGIME") or None  # the library reads it itself
    if regime not in (None, *REGIMES):
        raise BackendError(f"PRNN_CUDA_REGIME={regime}: expected one of {', '.join(REGIMES)}")
    _check_wait(os.environ.get("PRNN_CUDA_WAIT_SECONDS") or "0")
    if torch.cuda.get_device_capability(device) < CAPABILITY:
        return None, "the CUDA kernels need sm_80 or later"
    try:
        forward, backward = _plans(cell, dtype, B, H, device, tf32(), regime, os.environ.get("PRNN_CUDA_PLAN"))
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
            return None, f"the weights of {H} units fit into no regime of this GPU{which}{admitted}"
    microseconds, text = forward.split(" ", 1)
    text += f", {float(microseconds):.2g} us a step expected"
    if backward:
        more, words = backward.split(" ", 1)
        text += f"; backward: {words}, {float(more):.2g} us"
    return float(microseconds), text


constant_when_traced(expected)


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
    cell: str, dtype: torch.dtype, B: int, H: int, device: int, tf32: bool, regime: str | None, plan: str | None
) -> tuple[str, str]:
    """Microseconds and words, forward and backward, of one direction alone; empty where there is no plan. The library
    reads regime and plan from the environment; here they tell what is remembered apart.
    """
    arguments = (native.cell_id(cell), DTYPES[dtype], B, H, tf32, device)
    forward, backward = torch.ops.prnn_native.cuda_explain(*arguments).split("\n")[:2]
    return forward, backward
