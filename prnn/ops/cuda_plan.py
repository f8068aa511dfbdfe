"""The CUDA kernels' plan for a layer: whether its weights fit, and the expected time of a step.

Shapes: B batch, H hidden size.
"""

from __future__ import annotations

import math
import os
from functools import lru_cache

import torch

from prnn import native

REGIMES = ("block", "cluster", "grid")
CAPABILITY = (8, 0)  # sm_80
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # csrc/layer_args.h


class BackendError(ValueError):
    """The forced backend does not exist or cannot run the call."""


def tf32() -> bool:
    """Whether torch allows tf32 in float32 matmuls; prnn's kernels then use it too, where it is faster."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


@torch.compiler.assume_constant_result
def expected(cell: str, dtype: torch.dtype, B: int, H: int, device: int, gradients: bool) -> tuple[float | None, str]:
    """The expected microseconds of a forward step and the plan as text; or None and why there is no plan."""
    regime = os.environ.get("PRNN_CUDA_REGIME") or None  # the library reads it itself
    if regime not in (None, *REGIMES):
        raise BackendError(f"PRNN_CUDA_REGIME={regime}: expected one of {', '.join(REGIMES)}")
    _check_wait(os.environ.get("PRNN_CUDA_WAIT_SECONDS") or "0")
    if torch.cuda.get_device_capability(device) < CAPABILITY:
        return None, "the CUDA kernels need sm_80 or later"
    try:
        forward, backward = _plans(cell, dtype, B, H, device, tf32(), regime, os.environ.get("PRNN_CUDA_PLAN"))
    except RuntimeError as error:  # built for other GPUs, for example; not cached, since it may be transient
        if native.cuda_fault() is not None:  # the `torch` backend would fail on this GPU as well
            raise
        message = str(error).splitlines()[0]
        if "PRNN_CUDA_PLAN=" in message:
            raise BackendError(message[message.index("PRNN_CUDA_PLAN=") :]) from error
        return None, message
    variables = (
        f"{name}={os.environ[name]}" for name in ("PRNN_CUDA_REGIME", "PRNN_CUDA_PLAN") if os.environ.get(name)
    )
    constraint = " with ".join(["", *variables])
    for plan, direction in ((forward, ""), (backward, " backward")):
        if not plan and (not direction or gradients):
            return None, f"the weights of {H} units fit into no regime of this GPU{direction}{constraint}"
    microseconds, text = forward.split(" ", 1)
    text += f", {float(microseconds):.2g} us a step expected"
    if backward:
        backward_microseconds, backward_plan = backward.split(" ", 1)
        text += f"; backward: {backward_plan}, {float(backward_microseconds):.2g} us"
    return float(microseconds), text


def _check_wait(value: str) -> None:
    """Validate PRNN_CUDA_WAIT_SECONDS, which the library itself reads at each launch."""
    try:
        valid = 0 <= float(value) < math.inf and value.isascii() and value == value.strip() and "_" not in value
    except ValueError:
        valid = False
    if not valid:
        raise BackendError(f"PRNN_CUDA_WAIT_SECONDS={value}: expected the seconds a kernel may wait, or 0 for no limit")


@lru_cache(maxsize=4096)
def _plans(
    cell: str, dtype: torch.dtype, B: int, H: int, device: int, tf32: bool, regime: str | None, plan: str | None
) -> tuple[str, str]:
    """Microseconds and description of the forward and the backward plan of one direction; empty where there is no plan.
    The library reads regime and plan from the environment; here they are part of the cache key.
    """
    arguments = (native.cell_id(cell), DTYPES[dtype], B, H, tf32, device)
    forward, backward = torch.ops.prnn_native.cuda_explain(*arguments).split("\n")[:2]
    return forward, backward
