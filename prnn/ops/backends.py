"""Which backend runs a recurrence: one table, one decision, and a way to ask for it and to force it.

Shapes: T time steps, B batch, H hidden size.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from prnn import cuda_plan, native
from prnn.cell_table import CELLS, lookup
from prnn.cuda_plan import BackendError
from prnn.ops import autotune, operator
from prnn.ops.operands import Weights

BACKENDS = ("reference", "torch", "cpu", "cuda")

# Properties of the machine, queried once: torch.compile cannot trace the queries.
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
    whole: bool = True  # with the input's weights
    directions: int = 1  # that are computed in one call
    plain: bool = False  # on a GPU, and no tracer or transform sees the call
    K: int = -1  # columns of weight_hh, of a cell written in Python, whose weights may be of diagonal blocks

    @classmethod
    def of(
        cls, x: Tensor, weights: Weights, cell: str, lengths: Tensor | None = None, resets: Tensor | None = None,
        directions: int = 1,
    ) -> Request:  # fmt: skip
        T, B, I = x.shape
        weight_hh = weights.weight_hh
        H = weight_hh.shape[0] // lookup(cell).gates
        gradients = torch.is_grad_enabled() and (weight_hh.requires_grad or x.requires_grad)
        device_type, device = ("cpu", 0) if x.is_cpu else (x.device.type, x.device.index if x.is_cuda else 0)
        return cls(
            cell, T, B, I, H, x.dtype, device_type, lengths is not None, resets is not None,
            weights.weight_hr is not None, device, gradients, weights.weight_ih is not None, directions,
            device_type == "cuda" and not operator.traced(x, weight_hh), -1 if cell in CELLS else weight_hh.shape[1],
        )  # fmt: skip


_HOW = {
    "onednn": ", the whole layer in oneDNN",
    "cudnn": ", the whole layer in cuDNN",
    "aten": ", by torch.nn's own functions",
    "stepwise": ", step by step",
    "reference": ", its equations under autograd",
    **{f"cuda:{regime}": "" for regime in cuda_plan.REGIMES},  # its plan says it
}


@dataclass(frozen=True)
class Choice:
    """A backend and the reason for it, as ``explain`` shows it.

    ``implementation`` is what runs: the backend itself, or, of the `torch` backend, a vendor's kernel for the whole
    layer ("onednn", "cudnn"), for a few steps the functions torch.nn itself calls ("aten"), or "stepwise"; of `cuda`
    by the best plan of a regime that was timed, "cuda:grid" and so on.
    """

    backend: str
    reason: str
    implementation: str

    def __str__(self) -> str:
        how = "" if self.implementation == self.backend else _HOW[self.implementation]
        return f"{self.backend}{how} ({self.reason})"


# What the kernels take, by the kind of device.
_NATIVE_DTYPES = {"cpu": (torch.float32, torch.bfloat16), "cuda": tuple(cuda_plan.DTYPES)}


def _refused_by_native(request: Request, device_type: str) -> str | None:
    """Why the native kernels of a kind of device cannot run this; None if they can."""
    if request.device_type != device_type:
        return f"the tensors are on {request.device_type}"
    on_cpu = device_type == "cpu"
    own = request.cell in CELLS
    loaded, reason = native.status() if on_cpu or not own else native.cuda_status()
    if loaded and own and request.cell not in (native.cells() if on_cpu else native.cuda_cells()):
        return f"there is no native kernel for {request.cell}"
    if not own and torch.jit.is_tracing():
        return "of a cell written in Python torch.jit.trace records the equations"
    if request.projection:
        return "the native kernels have no projection"
    if request.H == 0 or request.I == 0:
        return "there is nothing in it to compute"
    if request.dtype not in _NATIVE_DTYPES[device_type]:
        *names, last = (_name(dtype) for dtype in _NATIVE_DTYPES[device_type])
        return f"the native kernels take {', '.join(names)} and {last}, not {_name(request.dtype)}"
    if not loaded:
        return f"native library: {reason}"
    return None if own else _refused_cell(request.cell, request.dtype, None if on_cpu else request.device)


@native.constant_when_traced
def _refused_cell(name: str, dtype: torch.dtype, device: int | None) -> str | None:
    """Compiles the cell at the first call, for the CPU; for a GPU, whose number is ``device``, when a plan is made."""
    return lookup(name).refused(dtype) if device is None else lookup(name).refused_on_gpu(dtype, device)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _cuda_plan(request: Request) -> tuple[float | None, str]:
    """Microseconds expected of a step, and the plan in words; or None, and why the CUDA kernels cannot run this."""
    refusal = _refused_by_native(request, "cuda")
    if refusal is not None:
        return None, refusal
    # A batch that is the symbol of a graph is not evaluated: the graph would be for that batch alone.
    B = 16 if torch.compiler.is_compiling() else request.B
    gradients = request.gradients or torch.compiler.is_exporting()
    return cuda_plan.expected(request.cell, request.dtype, B, request.H, request.device, gradients, K=request.K)


def _refused(backend: str, request: Request) -> str | None:
    """Why a backend cannot run a request; None if it can. `reference` and `torch` run everything."""
    if backend == "cuda":
        microseconds, reason = _cuda_plan(request)
        return reason if microseconds is None else None
    return _refused_by_native(request, "cpu") if backend == "cpu" else None


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
        raise BackendError(f"PRNN_BACKEND={_forced}: set it to one of {', '.join(BACKENDS)}, or unset it")
    return _forced


def choose(request: Request) -> Choice:
    """The backend that runs ``request``, and why."""
    if _forced is not None:
        name = str(forced())
        refusal = _refused(name, request)
        if refusal is not None:
            raise BackendError(f"the backend {name!r} was forced, but {refusal}")
        return Choice(name, "forced by prnn.ops.backend or PRNN_BACKEND", _implementation(name, request))
    # Known requests are looked up: a call of one step takes 60 us, and making up the reasons again 5. Sizes that are
    # symbols, of a graph that is being traced, have no hash.
    plain = type(request.T) is int and type(request.B) is int and not torch.compiler.is_compiling()
    plain = plain and type(request.I) is int and type(request.H) is int
    # On a GPU the choice depends on switches besides, and has a memory of its own.
    plain = plain and request.device_type != "cuda"
    choice = _known(request) if plain else _by_table(request)
    return choice if isinstance(choice, Choice) else Choice("torch", choice, _implementation("torch", request))


def _implementation(backend: str, request: Request) -> str:
    if backend != "torch":
        return backend
    return _vendor(request) or ("stepwise" if lookup(request.cell).backward else "reference")


def _by_table(request: Request) -> Choice | str:
    """The choice, or why it is `torch`, of whose implementations switches decide."""
    if request.device_type == "cuda":
        return _on_gpu(request)
    refusal = _refused_by_native(request, "cpu")
    if refusal is not None:
        native.warn_if_missing(refusal)
        return refusal
    if _torch_is_cheaper(request):
        return Choice("torch", "a few steps do not pay for packing the weights", "aten")
    return Choice("cpu", f"native kernels, {native.cpu_kernels(request.dtype)}", "cpu")


_known = lru_cache(maxsize=4096)(_by_table)

# Beyond this a step's weights are better read once for many samples than kept for a few: cuDNN's standard path launches
# a product and a cell for each step, 12 to 18 us on an H200 whatever the shape (docs/kernels.md).
_MOST_MICROSECONDS = 12.0


def _on_gpu(request: Request) -> Choice | str:
    if request.plain and request.T and request.B and autotune.enabled():
        most, _ = cuda_plan.multiprocessors(request.device)
        with suppress(autotune.Unknown):
            return _quickest(request, cuda_plan.tf32(), most, torch.backends.cudnn.enabled)
    microseconds, description = _cuda_plan(request)
    if microseconds is None:
        return description
    if microseconds > _MOST_MICROSECONDS and _vendor(request) is not None:
        return f"{request.B} samples of {request.H} units: {microseconds:.2g} us a step are expected"
    return Choice("cuda", description, "cuda")


@lru_cache(maxsize=4096)
def _quickest(request: Request, tf32: bool, multiprocessors: int, cudnn: bool) -> Choice:
    """The choice by time, which depends on these switches besides; raises autotune.Unknown where there is none."""
    cell, dtype, B, H, device, gradients, K = (
        request.cell, request.dtype, request.B, request.H, request.device, request.gradients, request.K
    )  # fmt: skip
    if _cuda_plan(request)[0] is None:
        raise autotune.Unknown
    own = ("cuda", *(f"cuda:{regime}" for regime in cuda_plan.other_regimes(cell, dtype, B, H, device, gradients, K)))
    candidates = (*own, _implementation("torch", request)) if cell in CELLS else own  # a Python loop is none
    if len(candidates) == 1:
        raise autotune.Unknown
    layer = autotune.Layer.of(
        lookup(cell).name_in_graph(dtype), dtype, request.T, B, H, request.directions, gradients, tf32,
        multiprocessors, device, candidates, K,
    )  # fmt: skip
    timed = autotune.timed(layer, device)
    name, reason = timed.quickest, f"timed, us for {layer.T} steps{' and back' if gradients else ''}: {timed}"
    if name not in own:
        return Choice("torch", reason, name)
    regime = name.removeprefix("cuda").removeprefix(":")
    _, plan = cuda_plan.expected(cell, dtype, B, H, device, gradients, regime, K)
    return Choice("cuda", f"{reason}; {plan}", name)


FEW_STEPS = 8  # beyond them torch's own functions were not found to be faster in float32


def _torch_is_cheaper(request: Request) -> bool:
    """Whether torch's own functions are faster for a few steps than the native kernels, which pack the weights once a
    call and differentiate them all: by the table "Few steps" in benchmarks/NOTES.md.
    """
    cell, T, B, H = request.cell, request.T, request.B, request.H
    if not request.whole or request.dtype != torch.float32 or request.lengths or request.resets:
        return False
    if lookup(cell).vendor is None:
        return False
    # T and B may be symbols of a graph that is being traced: compared, the graph would be for such sizes only.
    compiling = torch.compiler.is_compiling()
    if T == 1 and request.gradients:
        return cell != "lstm" or not compiling
    if compiling or T > FEW_STEPS:
        return False
    if request.gradients:
        if T != 2 or cell == "lstm":
            return False
        return (B == 1 and H >= 512) or (cell != "gru" and (B == 1 or H < 256))
    if cell == "gru" and (T == 1 or B == 1) and (H >= 640 or (H >= 512 and T <= 4 and B <= 16)):
        return True
    if cell == "lstm" and T == 1 and B >= 64 and H >= 512:
        return True
    return T * B < 4 and H >= 192 * T * B and (cell != "lstm" or T == 1)


def _vendor(request: Request) -> str | None:
    """The vendor's whole-layer kernel torch has for this request; None where it has none, or a slower one."""
    vendor = lookup(request.cell).vendor
    if vendor is None or not request.whole or request.lengths or request.resets or request.projection:
        return None
    if 0 in (request.T, request.B, request.I, request.H):  # of which cuDNN makes an error, and oneDNN SIGFPE
        return None
    if request.device_type == "cuda" and request.dtype != torch.float64 and torch.backends.cudnn.enabled:
        return "cudnn" if _CUDNN and "cudnn" in vendor.libraries else None
    if request.device_type == "cpu" and "onednn" in vendor.libraries and torch.backends.mkldnn.enabled:
        supported = {torch.float32: _ONEDNN, torch.bfloat16: _ONEDNN_BFLOAT16}
        return "onednn" if supported.get(request.dtype, False) else None
    return None
