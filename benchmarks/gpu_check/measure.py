"""GPU timings of our two operators alone with CUDA events: every regime, and other plans than the chosen one.

Timed are ``cuda_recurrence_forward`` and ``cuda_recurrence_backward``: all T steps in one launch, without the GEMMs
before and after. A wrong result keeps its time, and its error is recorded too.

Shapes: T time steps, B batch, H hidden size, G gates, D directions.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu_check.workers import Result
from benchmarks.kernels.cases import GPU, Case
from prnn import cuda_plan, native
from prnn.cell_table import CELLS
from prnn.ops import cuda, reference
from prnn.ops.operands import Operands, Weights

PASSES = ("forward", "backward")
REGIMES = ("block", "cluster", "grid")
DTYPES = {"float32": 0, "bfloat16": 1, "float16": 2}  # csrc/layer_args.h
SHORT_T = 64  # measured besides the case's T, to separate the constant cost of a call
SAMPLE_SECONDS = 0.02
# Relative error in the L2 norm allowed for sequences this long; tests/gpu has the strict bounds.
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 4e-3}
# ReLU's mask flips where a sum is nearly zero: its gradients may have larger errors and still be correct.
RELU_GRADIENTS = {"float32": 1e-2, "bfloat16": 2e-1, "float16": 5e-2}


class Layer(NamedTuple):
    """One recurrence."""

    cell: str
    dtype: str
    T: int
    B: int
    H: int
    D: int = 1

    @property
    def name(self) -> str:
        return f"{self.cell} {self.dtype} T{self.T} B{self.B} H{self.H}" + (" bidirectional" if self.D == 2 else "")

    @classmethod
    def of(cls, case: Case) -> Layer:
        return cls(case.cell, case.dtype, case.T, case.B, case.H, case.D)


# The layers of the cases, and some that the cost model needs besides: float32 in every regime, a single sample, a small
# 16-bit layer.
LAYERS = (
    *map(Layer.of, GPU),
    Layer("gru", "float32", 512, 16, 256),
    Layer("lstm", "float32", 512, 8, 512),
    Layer("rnn_tanh", "bfloat16", 512, 1, 256),
    Layer("lstm", "bfloat16", 512, 64, 256),
    Layer("gru", "float16", 512, 8, 128),
)


def items() -> Iterator[str]:
    """Names of all measurements: "LAYER | PASS | WHAT", grouped by layer, since a worker caches a layer's reference.
    WHAT is a forced regime, or "chosen", or "short" (chosen, with few steps).
    """
    for layer, which, what in product(LAYERS, PASSES, ("chosen", "short", *REGIMES)):
        if what != "short" or layer.T > 4 * SHORT_T:
            yield f"{layer.name} | {which} | {what}"


def plan_items() -> Iterator[str]:
    """The same with forced plans: every warp tile shape, with 1, 2 and 8 rows of warps."""
    for layer, which, regime, shape, rows in product(LAYERS, PASSES, REGIMES, range(3), (1, 2, 8)):
        yield f"{layer.name} | {which} | {regime} shape={shape},row_warps={rows}"


def run(name: str, rounds: int) -> Result:
    """Measure one item; "does not fit" if there is no such plan."""
    layer_name, which, what = name.split(" | ")
    layer = next(layer for layer in LAYERS if layer.name == layer_name)
    if what == "short":
        layer = layer._replace(T=SHORT_T)
    regime, _, plan = what.partition(" ")
    with forced(regime if regime in REGIMES else None, plan or None):
        chosen = plan_of(layer, which == "backward")
        if chosen["plan"] is None:
            return {"status": "does not fit"}
        problem = problem_of(layer)
        call = problem.forward if which == "forward" else problem.backward
        results = call()
        error = worst(results, problem.right(which), layer, which)
        began = time.monotonic()
        microseconds = [value / layer.T for value in timed(call, rounds)]
        window = [began, time.monotonic()]
    return {
        "status": "measured" if error["correct"] else "wrong",
        **layer._asdict(),
        "directions": layer.D,
        "pass": which,
        "forced": None if what in ("chosen", "short") else what,
        "plan": chosen["plan"],
        "device": chosen["device"],
        "microseconds_per_step": round(statistics.median(microseconds), 5),
        "fastest": round(min(microseconds), 5),
        "slowest": round(max(microseconds), 5),
        **error,
        "window": window,
    }


@contextmanager
def forced(regime: str | None, plan: str | None) -> Iterator[None]:
    settings = {"PRNN_CUDA_REGIME": regime, "PRNN_CUDA_PLAN": plan}
    before = {key: os.environ.pop(key, None) for key in settings}
    os.environ.update({key: value for key, value in settings.items() if value})
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value


def plan_of(layer: Layer, backward: bool) -> dict[str, dict[str, object] | None]:
    description = torch.ops.prnn_native.cuda_plan(
        native.cell_id(layer.cell),
        DTYPES[layer.dtype],
        layer.B,
        layer.H,
        backward,
        False,
        layer.D,
        torch.cuda.current_device(),
        cuda_plan.multiprocessors(torch.cuda.current_device())[0],
    )
    return json.loads(description)


class Problem:
    """A layer's operands, the timed calls, and the float64 reference on the same device."""

    def __init__(self, layer: Layer, device: str = "cuda") -> None:
        self.layer, self.spec = layer, CELLS[layer.cell]
        (T, B, H, D), G = layer[2:], self.spec.gates
        dtype = getattr(torch, layer.dtype)
        generator = torch.Generator(device).manual_seed(T + B + H)

        def draw(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(shape, generator=generator, device=device) * scale).to(dtype)

        self.gates_x = draw(T, B, D * G * H)
        self.weights = [draw(G * H, H, scale=0.6 * H**-0.5) for _ in range(D)]
        self.biases = [draw(G * H, scale=0.1) for _ in range(D)]
        self.h0 = draw(D, B, H)
        self.c0 = draw(D, B, H).float() if self.spec.has_c else None
        self.grad_output = draw(T, B, D * H)
        self._saved: tuple[Tensor, Tensor] | None = None
        self._right: dict[str, dict[str, Tensor]] | None = None

    def _second(self, tensors: list[Tensor]) -> Tensor | None:
        return tensors[1] if self.layer.D == 2 else None

    def forward(self) -> dict[str, Tensor]:
        output, h_n, c_n, *_ = self._forward()
        return {"output": output, "h_n": h_n} | ({"c_n": c_n} if self.spec.has_c else {})

    def _forward(self) -> tuple[Tensor, ...]:
        return cuda.serial_forward(
            self.gates_x, self.weights[0], self.biases[0], self.h0, self.c0, None, None, self._second(self.weights),
            self._second(self.biases), native.cell_id(self.layer.cell), False, True, False,
        )  # fmt: skip

    def backward(self) -> dict[str, Tensor]:
        if self._saved is None:
            with forced(None, None):  # one forward pass for all plans, so that their errors do not mix
                output, _, _, saved, _ = self._forward()
            self._saved = output, saved
        output, saved = self._saved
        grad_x, _, grad_h0, grad_c0, *_ = cuda.serial_backward(
            self.grad_output, None, None, self.weights[0], self.h0, self.c0, None, None, self._second(self.weights),
            output, saved, native.cell_id(self.layer.cell), False, False,
        )  # fmt: skip
        return {"grad_gates_x": grad_x, "grad_h0": grad_h0} | ({"grad_c0": grad_c0} if self.spec.has_c else {})

    def right(self, which: str) -> dict[str, Tensor]:
        if self._right is None:
            self._right = self._by_equations()
        return self._right[which]

    def _by_equations(self) -> dict[str, dict[str, Tensor]]:
        exact = [x.double().requires_grad_() for x in (self.gates_x, self.h0, *([self.c0] if self.spec.has_c else []))]
        gates_x, *state = exact
        width, results = self.spec.gates * self.layer.H, []
        for d in range(self.layer.D):
            weights = Weights(None, self.weights[d].double(), None, self.biases[d].double())
            gates = gates_x[..., d * width : (d + 1) * width]
            operands = Operands.of(gates, [weights], [part[d : d + 1] for part in state])
            results.append(reference.layer(operands, self.spec, reverse=d == 1))
        output = torch.cat([each.output for each in results], -1)
        states = {"h_n": torch.cat([each.h_n for each in results])}
        names = ["grad_gates_x", "grad_h0"]
        if self.spec.has_c:
            states["c_n"] = torch.cat([each.c_n for each in results])
            names.append("grad_c0")
        gradients = torch.autograd.grad(output, exact, self.grad_output.double())
        forward = {"output": output.detach()} | {name: state.detach() for name, state in states.items()}
        return {"forward": forward, "backward": dict(zip(names, gradients, strict=True))}


@lru_cache(maxsize=2)
def problem_of(layer: Layer) -> Problem:
    return Problem(layer)


def worst(actual: dict[str, Tensor], right: dict[str, Tensor], layer: Layer, which: str) -> dict[str, object]:
    """The result with the largest relative error, and whether it is within the tolerance."""
    errors = {name: ((actual[name].double() - right[name]).norm() / right[name].norm()).item() for name in right}
    of = max(errors, key=lambda name: errors[name] if errors[name] == errors[name] else float("inf"))
    relu = layer.cell == "rnn_relu" and which == "backward"
    tolerance = (RELU_GRADIENTS if relu else TOLERANCE)[layer.dtype]
    return {"correct": errors[of] <= tolerance, "error": float(f"{errors[of]:.3g}"), "error_of": of}


def timed(call: Callable[[], object], rounds: int) -> list[float]:
    """Microseconds per call, by CUDA events around samples of several calls."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def sample(repeats: int) -> float:
        begin.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return 1e3 * begin.elapsed_time(end) / repeats

    sample(1)
    repeats = max(1, round(SAMPLE_SECONDS * 1e6 / max(sample(2), 1.0)))
    return [sample(min(repeats, 1000)) for _ in range(rounds)]
