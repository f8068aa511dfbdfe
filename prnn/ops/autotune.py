"""What runs a layer the quickest on a GPU, timed at its first call and remembered: ``cuda_benchmark``.

Candidates are names of implementations (``operator.IMPLEMENTATIONS``). What is timed is made up: neither the caller's
tensors nor torch's random numbers nor autograd have a part in it.

Shapes: T time steps, B batch, H hidden size, G gates, D directions.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prnn import cuda_plan, native
from prnn.cell_table import lookup
from prnn.codegen import build
from prnn.ops import operator
from prnn.ops.autocast import without_autocast
from prnn.ops.operands import Incoming, Needs, Operands, Weights

# Longer calls are like these: what a call costs besides its steps, some 10 us, is a tenth of 64 steps or less.
MOST_STEPS = 64
_WARM, _TIMED = 2, 5  # calls

_enabled: bool | None = None  # what ``cuda_benchmark`` was given


def cuda_benchmark(enabled: bool = True) -> None:
    """Time the kernels that can run a layer on a GPU at its first call, and use the quickest from then on.

    The candidates are torch's kernels, for a built-in cell, and prnn's by the planner's choice and by the best plan of
    each other regime. A layer is timed once for each model of GPU, cell, dtype, batch size, hidden size, number of
    directions, number of steps (rounded down to a power of two, at most 64), and with gradients or without. The times
    are kept, for this build of prnn and of torch, in ``cuda_benchmark/`` in $PRNN_CACHE, or in ~/.cache/prnn: a later
    process makes the same choices without timing, and so gives the same bits. ``prnn.explain`` shows them.

    PRNN_CUDA_BENCHMARK=1 turns it on in a process that does not call this. The planner decides, as if it were off,
    where torch.use_deterministic_algorithms is on; where ``prnn.backend``, PRNN_BACKEND, PRNN_CUDA_REGIME or
    PRNN_CUDA_PLAN forces something; under torch.compile and other tracers and transforms; and where a CUDA graph is
    captured and no times are known.

    Raises:
        TypeError: not a bool.

    Example::

        prnn.cuda_benchmark()
        print(prnn.explain(lstm, x))
    """
    global _enabled
    if not isinstance(enabled, bool):
        raise TypeError(f"cuda_benchmark takes True or False, got {type(enabled).__name__}")
    _enabled = enabled


def enabled() -> bool:
    """Whether times decide, and nothing else does; BackendError for a PRNN_CUDA_BENCHMARK that says neither."""
    wanted = _enabled
    if wanted is None:
        given = os.environ.get("PRNN_CUDA_BENCHMARK") or "0"
        if given not in ("0", "1"):
            raise cuda_plan.BackendError(f"PRNN_CUDA_BENCHMARK={given}: expected 1 or 0")
        wanted = given == "1"
    forced = os.environ.get("PRNN_CUDA_REGIME") or os.environ.get("PRNN_CUDA_PLAN")
    return wanted and not forced and not torch.are_deterministic_algorithms_enabled()


class Layer(NamedTuple):
    """What is timed."""

    gpu: str  # its name
    cell: str
    dtype: torch.dtype
    T: int
    B: int
    H: int
    directions: int
    gradients: bool
    tf32: bool
    multiprocessors: int  # that plans may use; 0: all
    candidates: tuple[str, ...]
    K: int = -1  # columns of weight_hh, if not H

    @classmethod
    def of(
        cls, cell: str, dtype: torch.dtype, T: int, B: int, H: int, directions: int, gradients: bool, tf32: bool,
        multiprocessors: int, device: int, candidates: tuple[str, ...], K: int = -1,
    ) -> Layer:  # fmt: skip
        steps = 1 << min(T, MOST_STEPS).bit_length() - 1
        return cls(
            _name(device), cell, dtype, steps, B, H, directions, gradients, tf32, multiprocessors, candidates, K
        )  # fmt: skip

    def __str__(self) -> str:
        """The key in the file."""
        fields = self._asdict() | {"candidates": ",".join(self.candidates)}
        return " ".join(f"{name}={value}" for name, value in fields.items() if name != "gpu")


class Timed(NamedTuple):
    """Microseconds of a call by each candidate, and why there are none of others."""

    microseconds: dict[str, float]
    failed: dict[str, str]

    @property
    def quickest(self) -> str:
        return self._in_order()[0]

    def __str__(self) -> str:
        times = ", ".join(f"{name} {self.microseconds[name]:.0f}" for name in self._in_order())
        return times + "".join(f"; {name} failed: {why}" for name, why in self.failed.items())

    def _in_order(self) -> list[str]:
        return sorted(self.microseconds, key=lambda name: self.microseconds[name])


_known: dict[Layer, Timed] = {}


class Unknown(Exception):
    """There are no times of a layer."""


def timed(layer: Layer, device: int) -> Timed:
    """The times of a layer: known, from the file, or taken now. Raises Unknown where they are to be taken while a graph
    is captured, and where every candidate has failed.
    """
    known = _known.get(layer)
    if known is None:
        known = _known[layer] = _from_file_or_clock(layer, device)
    if not known.microseconds:
        raise Unknown
    return known


def _from_file_or_clock(layer: Layer, device: int) -> Timed:
    file = _file(layer.gpu)
    times = _of(layer, _read(file, layer.gpu))
    if times is None:
        if torch.cuda.is_current_stream_capturing():
            raise Unknown
        taken = measure(_calls(layer, torch.device("cuda", device)), partial(_on_device, device))
        if taken.failed:  # which may be another in another process
            return taken
        times = _keep(file, layer, taken.microseconds)
    return Timed(times, {})


def measure(calls: Mapping[str, Callable[[], object]], timer: Callable[[Callable[[], object]], float]) -> Timed:
    """What ``timer`` says of each call. RuntimeError if one of them loses the GPU."""
    result = Timed({}, {})
    for name, call in calls.items():
        try:
            result.microseconds[name] = timer(call)
        except RuntimeError as error:  # of memory, for example
            if native.cuda_fault() is not None:
                raise
            result.failed[name] = (str(error).splitlines() or [type(error).__name__])[0]
    return result


def _on_device(device: int, call: Callable[[], object]) -> float:
    """Microseconds of a call, the median of several, on the current stream of a GPU."""
    with torch.cuda.device(device):
        times = []
        for _ in range(_WARM + _TIMED):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            end.synchronize()
            times.append(1e3 * start.elapsed_time(end))
    return statistics.median(times[_WARM:])


def _calls(layer: Layer, device: torch.device) -> dict[str, Callable[[], object]]:
    """A call of each candidate, with operands that all share and the first to run makes."""
    operands = cache(partial(_operands, layer, device))
    return {name: partial(_call, name, layer, operands) for name in layer.candidates}


def _operands(layer: Layer, device: torch.device) -> Operands:
    cell = lookup(layer.cell)
    T, B, H, D, rows = layer.T, layer.B, layer.H, layer.directions, cell.gates * layer.H
    columns = H if layer.K < 0 else layer.K
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=layer.dtype, device=device).uniform_(-(H**-0.5), H**-0.5, generator=generator)

    params = [cell.derived(draw(len(cell.params), H)) if cell.params else None for _ in range(D)]
    weights = [Weights(draw(rows, H), draw(rows, columns), draw(rows), draw(rows), None, params[d]) for d in range(D)]
    others = len(cell.states) - 1
    state = [draw(D, B, H), *([draw(others, D, B, H)] if others > 1 else [draw(D, B, H)] * others)]
    inputs = draw(T, B, len(cell.inputs) * H) if cell.inputs else None
    return Operands.of(draw(T, B, H), weights, state, inputs=inputs)


@torch.no_grad()
def _call(name: str, layer: Layer, operands: Callable[[], Operands]) -> None:
    implementation, cell, both = operator.IMPLEMENTATIONS[name], lookup(layer.cell), operands()
    with without_autocast(both.x):
        for d, one in enumerate([both] if implementation.bidirectional else both.each_direction()):
            results = implementation.forward(one, cell, d == 1, layer.gradients)
            if layer.gradients:
                incoming, needs = Incoming(results.output, None, None), Needs(True, True, False, bool(cell.params))
                implementation.backward(incoming, one, results, cell, d == 1, needs)


@cache
def _name(device: int) -> str:
    return torch.cuda.get_device_name(device)


def _identity(gpu: str) -> dict[str, str]:
    """What the times in a file are of."""
    return {"gpu": gpu, "library": native.digest(), "torch": torch.__version__}


def _file(gpu: str) -> Path:
    name = hashlib.sha256(json.dumps(_identity(gpu)).encode()).hexdigest()[:16]
    return build.cache("cuda_benchmark") / f"{name}.json"


def _read(file: Path, gpu: str) -> dict[str, Any]:
    """The times of each layer; none of a file that is not there, nor of one that is damaged or another's: a warning."""
    try:
        content = json.loads(file.read_text())
        if {name: content[name] for name in ("gpu", "library", "torch")} != _identity(gpu):
            raise ValueError("it is of another GPU, prnn or torch")
        layers = content["layers"]
        for times in layers.values():
            if not all(time > 0 for time in times.values()):
                raise ValueError("a time is not a positive number")
        return dict(layers)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        _warn(f"{file}, the times of layers on this GPU, is left out of account: {error or type(error).__name__}")
        return {}


def _of(layer: Layer, layers: dict[str, Any]) -> dict[str, float] | None:
    """The times of a layer, if they are those of its candidates."""
    times = layers.get(str(layer))
    return times if times is not None and set(times) == set(layer.candidates) else None


def _keep(file: Path, layer: Layer, times: dict[str, float]) -> dict[str, float]:
    """Write the times of a layer, unless another process has been quicker; the times that are in the file then."""
    part = file.with_suffix(f".{os.getpid()}.part")
    try:
        with build.locked(file):
            layers = _read(file, layer.gpu)
            if (found := _of(layer, layers)) is not None:
                return found
            layers[str(layer)] = times
            part.write_text(json.dumps(_identity(layer.gpu) | {"layers": layers}, indent=1))
            part.replace(file)
    except OSError as error:  # read-only, full, no locks
        _warn(f"{file.parent}, for the times of layers on this GPU, cannot be used ({error.strerror or error})")
    return times


@cache
def _warn(message: str) -> None:
    build.warn(message)
