"""Which backend runs a recurrence: one table, one decision, and a way to ask for it and to force it.

Shapes: T time steps, B batch, H hidden size.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from prnn.ops import cells, native

BACKENDS = ("reference", "torch", "cpu")
NATIVE_CELLS = ("rnn_tanh", "rnn_relu", "gru", "lstm")  # csrc/cells.h

# Facts of the machine, asked once: torch.compile cannot trace the questions.
_CUDNN = torch.backends.cudnn.is_available()
_ONEDNN = torch.backends.mkldnn.is_available()
_ONEDNN_BFLOAT16 = _ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()


@dataclass(frozen=True)
class Request:
    """What the decision looks at: one layer in one direction."""

    cell: str
    T: int
    B: int
    H: int
    dtype: torch.dtype
    device_type: str
    lengths: bool
    resets: bool
    projection: bool

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
        return cls(
            cell=cell,
            T=x.shape[0],
            B=x.shape[1],
            H=weight_hh.shape[0] // cells.lookup(cell).gates,
            dtype=x.dtype,
            device_type=x.device.type,
            lengths=lengths is not None,
            resets=resets is not None,
            projection=weight_hr is not None,
        )


@dataclass(frozen=True)
class Choice:
    """A backend and the reason for it, as ``explain`` shows it.

    ``library`` names the vendor's whole-layer kernel the `torch` backend uses ("onednn", "cudnn"); None where it
    steps through time.
    """

    backend: str
    reason: str
    library: str | None = None

    def __str__(self) -> str:
        how = {"onednn": ", the whole layer in oneDNN", "cudnn": ", the whole layer in cuDNN"}
        steps = ", step by step" if self.backend == "torch" else ""
        return f"{self.backend}{how.get(self.library or '', steps)} ({self.reason})"


class BackendError(ValueError):
    """The backend that was forced does not exist, or cannot run what it is given."""


def _refused_by_cpu(request: Request) -> str | None:
    """Why the native CPU kernels cannot run this; None if they can."""
    if request.device_type != "cpu":
        return f"the tensors are on {request.device_type}"
    if request.cell not in NATIVE_CELLS:
        return f"there is no native kernel for {request.cell}"
    if request.projection:
        return "the native kernels have no projection"
    if request.dtype not in (torch.float32, torch.bfloat16):
        return f"the native kernels take float32 and bfloat16, not {str(request.dtype).removeprefix('torch.')}"
    loaded, reason = native.status()
    return None if loaded else f"native library: {reason}"


# Why a backend cannot run a request; None if it can. `reference` and `torch` run everything.
_REFUSALS: dict[str, Callable[[Request], str | None]] = {
    "reference": lambda request: None,
    "torch": lambda request: None,
    "cpu": _refused_by_cpu,
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
    refusal = _refused_by_cpu(request)
    if refusal is None and request.T < 4 and request.H >= 512:
        # Packing weight_hh for the kernel, once a call, is not earned back. Zen 4, 2 threads, forward+backward, B 1:
        # H 512 T 2: 1.06 ms native, 0.91 ms torch; T 8: 1.59 and 1.67. H 1024 T 2: 8.1 and 3.9; T 8: 6.6 and 5.0.
        refusal = f"{request.T} steps of {request.H} units do not pay for packing the weights"
    if refusal is None:
        return Choice("cpu", f"native kernels ({native.status()[1]})")
    return Choice("torch", refusal, _library(request))


def _library(request: Request) -> str | None:
    """The vendor's whole-layer kernel torch has for this request; None where it has none, or a slower one.

    oneDNN has the LSTM alone among its layers bound to torch. cuDNN has all four cells.
    """
    if request.lengths or request.resets or request.projection or 0 in (request.T, request.B):
        return None
    if request.device_type == "cuda" and request.dtype != torch.float64 and torch.backends.cudnn.enabled:
        return "cudnn" if _CUDNN else None
    if request.device_type == "cpu" and request.cell == "lstm" and torch.backends.mkldnn.enabled:
        if request.dtype == torch.float32:
            return "onednn" if _ONEDNN else None
        if request.dtype == torch.bfloat16:
            return "onednn" if _ONEDNN_BFLOAT16 else None
    return None
