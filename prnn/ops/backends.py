"""Which backend runs a recurrence: one table, one decision, and a way to ask for it and to force it.

Shapes: T time steps, B batch, H hidden size.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from prnn.ops import cells, native

BACKENDS = ("reference", "torch", "cpu", "cuda")
CUDA_REGIMES = ("block", "cluster", "grid")

# Facts of the machine, asked once: torch.compile cannot trace the questions.
_CUDNN = torch.backends.cudnn.is_available()
_ONEDNN = torch.backends.mkldnn.is_available()
_ONEDNN_BFLOAT16 = _ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class Request(NamedTuple):
    """What the decision looks at: one layer in one direction. (A tuple, because it is made for every call.)"""

    cell: str
    T: int
    B: int
    I: int  # of x, whatever that is: a layer's input or its gates
    H: int
    dtype: torch.dtype
    device_type: str
    lengths: bool
    resets: bool
    projection: bool
    device: int  # the GPU's number; 0 elsewhere
    gradients: bool  # may a backward pass follow? (the state's own gradient is left out: a wrong guess costs time only)

    @classmethod
    def of(
        cls,
        x: Tensor,
        weight_hh: Tensor,
        cell: str,
        lengths: Tensor | None,
        resets: Tensor | None,
        weight_hr: Tensor | None,
    ) -> Request:
        """The request for x [T,B,*] (a layer's input or its gates) and weight_hh [G*H,*]."""
        T, B, I = x.shape
        H = weight_hh.shape[0] // cells.lookup(cell).gates
        optional = lengths is not None, resets is not None, weight_hr is not None
        gradients = torch.is_grad_enabled() and (weight_hh.requires_grad or x.requires_grad)
        device_type = "cpu" if x.is_cpu else x.device.type  # (the latter alone: 0.3 us)
        return cls(cell, T, B, I, H, x.dtype, device_type, *optional, x.device.index if x.is_cuda else 0, gradients)


@dataclass(frozen=True)
class Choice:
    """A backend and the reason for it, as ``explain`` shows it.

    ``library`` names what the `torch` backend uses for the whole layer: a vendor's kernel ("onednn", "cudnn") or, where
    there is one step, the loop torch.nn itself calls ("aten"); None where it steps through time by itself.
    """

    backend: str
    reason: str
    library: str | None = None

    def __str__(self) -> str:
        how = {
            "onednn": ", the whole layer in oneDNN",
            "cudnn": ", the whole layer in cuDNN",
            "aten": ", by torch.nn's own loop",
        }
        steps = ", step by step" if self.backend == "torch" else ""
        return f"{self.backend}{how.get(self.library or '', steps)} ({self.reason})"


class BackendError(ValueError):
    """The backend that was forced does not exist, or cannot run what it is given."""


# csrc/layer_args.h's numbers of the dtypes the kernels take, by the kind of device. The CUDA kernels begin with sm_80.
_NATIVE_DTYPES = {
    "cpu": {torch.float32: 0, torch.bfloat16: 1},
    "cuda": {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2},
}
CUDA_CAPABILITY = (8, 0)


def _refused_by_native(request: Request, device_type: str, status: tuple[bool, str]) -> str | None:
    """Why the native kernels of a kind of device cannot run this; None if they can."""
    if request.device_type != device_type:
        return f"the tensors are on {request.device_type}"
    loaded, reason = status
    if loaded and request.cell not in (native.cells() if device_type == "cpu" else native.cuda_cells()):
        return f"there is no native kernel for {request.cell}"
    if request.projection:
        return "the native kernels have no projection"
    if request.H == 0 or request.I == 0:
        return "there is nothing in it to compute"
    if request.dtype not in _NATIVE_DTYPES[device_type]:
        *names, last = (str(dtype).removeprefix("torch.") for dtype in _NATIVE_DTYPES[device_type])
        own = str(request.dtype).removeprefix("torch.")
        return f"the native kernels take {', '.join(names)} and {last}, not {own}"
    return None if loaded else f"native library: {reason}"


def _refused_by_cpu(request: Request) -> str | None:
    return _refused_by_native(request, "cpu", native.status())


def _refused_by_cuda(request: Request) -> str | None:
    refusal = _refused_by_native(request, "cuda", native.cuda_status())
    if refusal is not None:
        return refusal
    microseconds, reason = _cuda_plan(request)
    return reason if microseconds is None else None


def _cuda_plan(request: Request) -> tuple[float | None, str]:
    """Microseconds expected of a step forward, and the plan in words; or None, and why there is no plan."""
    # A batch that is the symbol of a graph is not asked for its value: the graph would be for that batch alone.
    B = 16 if torch.compiler.is_compiling() else request.B
    gradients = request.gradients or torch.compiler.is_exporting()
    return _ask_for_cuda_plan(request.cell, request.dtype, B, request.H, request.device, gradients)


def tf32() -> bool:
    """Whether torch lets float32 products be rounded to tf32; prnn's kernels then do it too, where that is quicker."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


@torch.compiler.assume_constant_result
def _ask_for_cuda_plan(
    cell: str, dtype: torch.dtype, B: int, H: int, device: int, gradients: bool
) -> tuple[float | None, str]:
    regime = os.environ.get("PRNN_CUDA_REGIME") or None  # the library reads it itself
    if regime not in (None, *CUDA_REGIMES):
        raise BackendError(f"PRNN_CUDA_REGIME={regime}: expected one of {', '.join(CUDA_REGIMES)}")
    _check_wait(os.environ.get("PRNN_CUDA_WAIT_SECONDS") or "0")
    if torch.cuda.get_device_capability(device) < CUDA_CAPABILITY:
        return None, "the CUDA kernels need sm_80 or later"
    try:
        forward, backward = _cuda_plans(cell, dtype, B, H, device, tf32(), regime, os.environ.get("PRNN_CUDA_PLAN"))
    except RuntimeError as error:  # built for other GPUs, for example; not remembered, since it may pass
        if native.cuda_fault() is not None:  # the `torch` backend could do no more on this GPU
            raise
        said = str(error).splitlines()[0]
        if "PRNN_CUDA_PLAN=" in said:
            raise BackendError(said[said.index("PRNN_CUDA_PLAN=") :]) from error
        return None, said
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


def _check_wait(given: str) -> None:
    """The library reads PRNN_CUDA_WAIT_SECONDS itself, at each launch."""
    try:
        valid = 0 <= float(given) < math.inf and given.isascii() and given == given.strip() and "_" not in given
    except ValueError:
        valid = False
    if not valid:
        raise BackendError(f"PRNN_CUDA_WAIT_SECONDS={given}: expected the seconds a kernel may wait, or 0 for no limit")


@lru_cache(maxsize=4096)
def _cuda_plans(
    cell: str, dtype: torch.dtype, B: int, H: int, device: int, tf32: bool, regime: str | None, plan: str | None
) -> tuple[str, str]:
    """Microseconds and words, forward and backward, of one direction alone; empty where there is no plan. The library
    reads regime and plan from the environment; here they tell what is remembered apart.
    """
    arguments = (native.cell_id(cell), _NATIVE_DTYPES["cuda"][dtype], B, H, tf32, device)
    forward, backward = torch.ops.prnn_native.cuda_explain(*arguments).split("\n")[:2]
    return forward, backward


# Why a backend cannot run a request; None if it can. `reference` and `torch` run everything.
_REFUSALS: dict[str, Callable[[Request], str | None]] = {
    "reference": lambda request: None,
    "torch": lambda request: None,
    "cpu": _refused_by_cpu,
    "cuda": _refused_by_cuda,
}

_forced: str | None = os.environ.get("PRNN_BACKEND") or None


@contextmanager
def backend(name: str | None) -> Iterator[None]:
    """Force a backend by name within a ``with`` block, in every thread; None leaves the choice to the table.

    The environment variable PRNN_BACKEND does the same for a whole process. A backend that cannot run what it is
    given raises BackendError, a ValueError, when it is given it.
    """
    global _forced
    if name is not None and name not in BACKENDS:
        raise BackendError(f"unknown backend {name!r}: expected one of {', '.join(BACKENDS)}")
    previous, _forced = _forced, name
    try:
        yield
    finally:
        _forced = previous


def forced() -> str | None:
    """The backend ``backend`` or PRNN_BACKEND forces, if any; BackendError for a name that is none."""
    if _forced is not None and _forced not in BACKENDS:
        raise BackendError(f"PRNN_BACKEND={_forced}: expected one of {', '.join(BACKENDS)}")
    return _forced


def choose(request: Request) -> Choice:
    """The backend that runs ``request``, and why."""
    if _forced is not None:
        if _forced not in BACKENDS:
            raise BackendError(f"PRNN_BACKEND={_forced}: expected one of {', '.join(BACKENDS)}")
        refusal = _REFUSALS[_forced](request)
        if refusal is not None:
            raise BackendError(f"the backend {_forced!r} was forced, but {refusal}")
        library = _library(request) if _forced == "torch" else None
        return Choice(_forced, "forced by prnn.ops.backend or PRNN_BACKEND", library)
    # Known requests are looked up: a call of one step takes 60 us, and making up the reasons again 5. Sizes that are
    # symbols, of a graph that is being traced, have no hash.
    plain = type(request.T) is int and type(request.B) is int and not torch.compiler.is_compiling()
    # On a GPU the choice depends on switches besides, and has a memory of its own.
    plain = plain and request.device_type != "cuda"
    choice = _known(request) if plain else _by_table(request)
    if choice.backend == "torch" and choice.library is None:
        return Choice("torch", choice.reason, _library(request))
    return choice


def _by_table(request: Request) -> Choice:
    """The choice as far as it depends on the request alone, not on switches of torch."""
    if request.device_type == "cuda":
        return _on_gpu(request)
    refusal = _refused_by_cpu(request)
    if refusal is not None:
        return Choice("torch", refusal)
    if _one_step_is_cheaper(request):
        return Choice("torch", f"a step of {request.H} units does not pay for packing the weights", "aten")
    return Choice("cpu", f"native kernels ({native.status()[1]})")


_known = lru_cache(maxsize=4096)(_by_table)

# Beyond this a step's weights are better read once for many samples than kept for a few: cuDNN's standard path launches
# a product and a cell for each step, 12 to 18 us on an H200 whatever the shape (docs/kernels.md).
_MOST_MICROSECONDS = 12.0


def _on_gpu(request: Request) -> Choice:
    refusal = _refused_by_native(request, "cuda", native.cuda_status())
    if refusal is not None:
        return Choice("torch", refusal)
    microseconds, description = _cuda_plan(request)
    if microseconds is None:
        return Choice("torch", description)
    if microseconds > _MOST_MICROSECONDS and _library(request) is not None:
        return Choice("torch", f"{request.B} samples of {request.H} units: {microseconds:.2g} us a step are expected")
    return Choice("cuda", description)


def _one_step_is_cheaper(request: Request) -> bool:
    """Whether torch.nn's own loop is quicker than the native kernels, which pack the weights once a call.

    Times of torch.nn over those of the native kernels and over those of its loop called from here (which takes 3 us
    more than from there), float32, I = H / 2, medians on 2 cores of a Zen 4; packing reads and writes the weights:

                          forward alone                           forward and backward
        cell     H      T1 B1       T1 B16      T1 B128       T1 B1       T1 B16      T1 B128
        RNN     17    1.08 1.03   1.19 1.04   1.14 1.02     0.87 0.89   0.98 0.95   0.97 0.97
        RNN     64    1.07 1.02   1.18 1.01   1.21 1.01     0.95 0.94   0.98 0.93   0.91 0.96
        RNN    256    0.89 0.94   1.08 0.97   1.21 1.00     0.77 0.92   0.89 0.93   0.95 0.95
        RNN   1024    1.19 1.00   0.98 0.96   1.10 0.94     0.59 0.88   0.81 0.90   0.87 0.98
        GRU     64    1.14 0.95   1.23 0.95   1.41 0.96     1.20 0.94   1.26 0.95   1.28 0.96
        GRU    256    1.09 0.96   1.11 0.98   1.16 0.99     1.11 0.94   1.07 0.91   1.03 0.91
        GRU    512    1.57 1.00   1.10 0.97   1.15 0.95     0.82 0.84   0.91 0.87   0.94 0.97
        GRU   1024    0.82 0.95   1.02 0.93   1.43 1.00     0.56 0.93   0.79 0.96   1.01 0.98

    The native kernels at T2 (B1, B4): RNN 1.02 and more, but 0.91 at H1024 B1 with a backward pass; GRU 1.27 and more.
    The LSTM at T1: 1.10 and more, forward; 1.13 and more with a backward pass.
    """
    if request.cell == "lstm" or request.dtype != torch.float32 or request.lengths or request.resets:
        return False
    if request.T != 1:
        return False
    # B may be the symbol of a graph that is being traced: asked about it, the graph would be for such batches only.
    H, few = request.H, torch.compiler.is_compiling() or request.B * 4 < request.H
    if not request.gradients:
        return few and request.cell == "gru" and H >= 1024
    return few and H >= 512 if request.cell == "gru" else few or H >= 128


def _library(request: Request) -> str | None:
    """The vendor's whole-layer kernel torch has for this request; None where it has none, or a slower one.

    oneDNN has the LSTM alone among its layers bound to torch. cuDNN has all four cells.
    """
    if request.lengths or request.resets or request.projection:
        return None
    if 0 in (request.T, request.B, request.I, request.H):  # of which cuDNN makes an error, and oneDNN SIGFPE
        return None
    if request.device_type == "cuda" and request.dtype != torch.float64 and torch.backends.cudnn.enabled:
        return "cudnn" if _CUDNN else None
    if request.device_type == "cpu" and request.cell == "lstm" and torch.backends.mkldnn.enabled:
        if request.dtype == torch.float32:
            return "onednn" if _ONEDNN else None
        if request.dtype == torch.bfloat16:
            return "onednn" if _ONEDNN_BFLOAT16 else None
    return None
