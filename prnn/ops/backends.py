"""Backend selection for a recurrence: the decision, its explanation, and a way to force a backend.

Shapes: T time steps, B batch, H hidden size.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from prnn import native
from prnn.cell_table import CELLS, lookup
from prnn.ops import cuda_plan
from prnn.ops.cuda_plan import BackendError
from prnn.ops.operands import Weights

BACKENDS = ("reference", "torch", "cpu", "cuda")

# Properties of the machine, queried once: torch.compile cannot trace the queries.
_CUDNN = torch.backends.cudnn.is_available()
_ONEDNN = torch.backends.mkldnn.is_available()
_ONEDNN_BFLOAT16 = _ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class Request(NamedTuple):
    """The input of the decision: one layer in one direction. (A tuple, because one is built for every call.)"""

    cell: str
    T: int
    B: int
    I: int  # last dimension of x: a layer's input or its gates
    H: int
    dtype: torch.dtype
    device_type: str
    lengths: bool
    resets: bool
    projection: bool
    device: int  # the GPU's index; 0 elsewhere
    gradients: bool  # whether a backward pass may follow (ignores h0 and c0: a wrong guess costs time only)
    whole: bool = True  # the layer includes the input projection

    @classmethod
    def of(cls, x: Tensor, weights: Weights, cell: str, lengths: Tensor | None, resets: Tensor | None) -> Request:
        """The request for x [T,B,*] (a layer's input or its gates)."""
        T, B, I = x.shape
        weight_hh = weights.weight_hh
        H = weight_hh.shape[0] // lookup(cell).gates
        optional = lengths is not None, resets is not None, weights.weight_hr is not None
        gradients = torch.is_grad_enabled() and (weight_hh.requires_grad or x.requires_grad)
        device_type = "cpu" if x.is_cpu else x.device.type  # (the latter alone: 0.3 us)
        whole = weights.weight_ih is not None
        device = x.device.index if x.is_cuda else 0
        return cls(cell, T, B, I, H, x.dtype, device_type, *optional, device, gradients, whole)


_DESCRIPTIONS = {
    "onednn": ", the whole layer in oneDNN",
    "cudnn": ", the whole layer in cuDNN",
    "aten": ", by torch.nn's own loop",
    "stepwise": ", step by step",
}


@dataclass(frozen=True)
class Choice:
    """A backend and the reason for it, as ``explain`` shows it.

    ``implementation`` is what runs: the backend itself, or, for the `torch` backend, a vendor's kernel for the whole
    layer ("onednn", "cudnn"), for a single step the loop that torch.nn itself calls ("aten"), or "stepwise".
    """

    backend: str
    reason: str
    implementation: str

    def __str__(self) -> str:
        return f"{self.backend}{_DESCRIPTIONS.get(self.implementation, '')} ({self.reason})"


# Supported dtypes of the kernels, by device type.
_NATIVE_DTYPES = {"cpu": (torch.float32, torch.bfloat16), "cuda": tuple(cuda_plan.DTYPES)}


def _refused_by_native(request: Request, device_type: str, status: tuple[bool, str]) -> str | None:
    """Why the native kernels of a device type cannot run this; None if they can."""
    if request.device_type != device_type:
        return f"the tensors are on {request.device_type}"
    loaded, reason = status
    if loaded and request.cell not in (native.cells() if device_type == "cpu" else native.cuda_cells()):
        return f"there is no native kernel for {request.cell}"
    if request.projection:
        return "the native kernels have no projection"
    if request.H == 0 or request.I == 0:
        return "the layer is empty"
    if request.dtype not in _NATIVE_DTYPES[device_type]:
        *names, last = (str(dtype).removeprefix("torch.") for dtype in _NATIVE_DTYPES[device_type])
        dtype_name = str(request.dtype).removeprefix("torch.")
        return f"the native kernels take {', '.join(names)} and {last}, not {dtype_name}"
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
    # Reading the value of a symbolic batch size would specialise the graph to it.
    B = 16 if torch.compiler.is_compiling() else request.B
    gradients = request.gradients or torch.compiler.is_exporting()
    return cuda_plan.expected(request.cell, request.dtype, B, request.H, request.device, gradients)


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
    """Force a backend by name within a ``with`` block, in every thread; None selects automatically.

    The environment variable PRNN_BACKEND does the same for a whole process. A call that the forced backend cannot run
    raises BackendError, a ValueError.
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
    """The backend forced by ``backend`` or PRNN_BACKEND, if any; BackendError for an unknown name."""
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
        return Choice(_forced, "forced by prnn.ops.backend or PRNN_BACKEND", _implementation(_forced, request))
    # Choices are cached: a call of one step takes 60 us, and composing the reason again 5. Symbolic sizes, while a
    # graph is traced, are not hashable.
    cacheable = type(request.T) is int and type(request.B) is int and not torch.compiler.is_compiling()
    # On a GPU the choice also depends on global flags; its plans have a separate cache.
    cacheable = cacheable and request.device_type != "cuda"
    choice = _cached_selection(request) if cacheable else _select(request)
    if choice.implementation == "torch":
        return Choice("torch", choice.reason, _implementation("torch", request))
    return choice


def _implementation(backend: str, request: Request) -> str:
    return backend if backend != "torch" else _vendor(request) or "stepwise"


def _select(request: Request) -> Choice:
    """The choice as far as it depends on the request alone; global flags select the implementation of `torch`."""
    if request.device_type == "cuda":
        return _on_gpu(request)
    refusal = _refused_by_cpu(request)
    if refusal is not None:
        return Choice("torch", refusal, "torch")
    if _one_step_is_cheaper(request):
        return Choice("torch", f"a step of {request.H} units does not pay for packing the weights", "aten")
    return Choice("cpu", f"native kernels ({native.status()[1]})", "cpu")


_cached_selection = lru_cache(maxsize=4096)(_select)

# Beyond this, reading the weights at every step for the whole batch beats keeping them on chip for a few samples:
# cuDNN's standard path launches a matmul and a cell kernel for each step, 12 to 18 us on an H200 whatever the shape
# (docs/kernels.md).
_MOST_MICROSECONDS = 12.0


def _on_gpu(request: Request) -> Choice:
    refusal = _refused_by_native(request, "cuda", native.cuda_status())
    if refusal is not None:
        return Choice("torch", refusal, "torch")
    microseconds, description = _cuda_plan(request)
    if microseconds is None:
        return Choice("torch", description, "torch")
    if microseconds > _MOST_MICROSECONDS and _vendor(request) is not None:
        reason = f"{request.B} samples of {request.H} units: {microseconds:.2g} us a step are expected"
        return Choice("torch", reason, "torch")
    return Choice("cuda", description, "cuda")


def _one_step_is_cheaper(request: Request) -> bool:
    """Whether torch.nn's own loop is faster than the native kernels, which pack the weights once a call.

    Speedup over torch.nn of the native kernels and of torch.nn's loop called from here (which takes 3 us more than
    from there), float32, I = H / 2, medians on 2 cores of a Zen 4; packing reads and writes the weights:

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
    vendor = CELLS[request.cell].vendor
    if request.T != 1 or not request.whole or request.dtype != torch.float32 or request.lengths or request.resets:
        return False
    if vendor is None or vendor.step is None:
        return False
    # B may be symbolic while a graph is traced: a branch on it would add a guard.
    H, few = request.H, torch.compiler.is_compiling() or request.B * 4 < request.H
    if not request.gradients:
        return few and request.cell == "gru" and H >= 1024
    return few and H >= 512 if request.cell == "gru" else few or H >= 128


def _vendor(request: Request) -> str | None:
    """The vendor's whole-layer kernel that torch has for this request; None where there is none or it is slower."""
    vendor = CELLS[request.cell].vendor
    if vendor is None or not request.whole or request.lengths or request.resets or request.projection:
        return None
    if 0 in (request.T, request.B, request.I, request.H):  # an error in cuDNN, SIGFPE in oneDNN
        return None
    if request.device_type == "cuda" and request.dtype != torch.float64 and torch.backends.cudnn.enabled:
        return "cudnn" if _CUDNN and "cudnn" in vendor.libraries else None
    if request.device_type == "cpu" and "onednn" in vendor.libraries and torch.backends.mkldnn.enabled:
        supported = {torch.float32: _ONEDNN, torch.bfloat16: _ONEDNN_BFLOAT16}
        return "onednn" if supported.get(request.dtype, False) else None
    return None
