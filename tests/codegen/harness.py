"""Emitted structs, compiled for doubles and vectors of doubles, and compared with torch.autograd in float64; and, for
vectors of floats with the functions of the CPU kernels, in float32.
"""

from __future__ import annotations

import ctypes
import itertools
import re
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prnn.codegen import CellFunction, Emitted, Prologue, Signature, build, call, generate

POINTS = 16  # a multiple of a vector's lanes
COPIES = 4  # of the points, as samples: torch computes the last few numbers of a tensor otherwise, also at NaN
# What the contract promises a struct, for a double and for a vector of four. A literal is the double it looks like, so
# that 0.05 is what the user wrote.
INCLUDES = """
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
"""
OF_DOUBLES = """
#define PRNN_BOTH
using Vector = double __attribute__((vector_size(32)));

template <class V> V constant_of(double x) { return x - V{}; }
template <class F> double each(F f, double x) { return f(x); }
template <class F> double each(F f, double x, double y) { return f(x, y); }
template <class F> Vector each(F f, Vector x) {
  Vector y;
  for (int i = 0; i < 4; ++i) y[i] = f(x[i]);
  return y;
}
template <class F> Vector each(F f, Vector x, Vector y) {
  Vector z;
  for (int i = 0; i < 4; ++i) z[i] = f(x[i], y[i]);
  return z;
}
#define UNARY(name, expression) \\
  template <class V> V name##_of(V v) { return each([](double x) { return double(expression); }, v); }
#define BINARY(name, expression) \\
  template <class V> V name##_of(V v, V w) { return each([](double x, double y) { return double(expression); }, v, w); }
UNARY(tanh, std::tanh(x)) UNARY(sigmoid, 1 / (1 + std::exp(-x))) UNARY(exp, std::exp(x)) UNARY(expm1, std::expm1(x))
UNARY(log, std::log(x)) UNARY(log1p, std::log1p(x)) UNARY(sqrt, std::sqrt(x)) UNARY(sin, std::sin(x))
UNARY(cos, std::cos(x)) UNARY(atan, std::atan(x)) UNARY(erf, std::erf(x)) UNARY(erfc, std::erfc(x))
UNARY(abs, std::fabs(x)) UNARY(floor, std::floor(x)) UNARY(round, std::nearbyint(x)) UNARY(trunc, std::trunc(x))
BINARY(min, x != x ? x : y != y ? y : x < y ? x : y) BINARY(max, x != x ? x : y != y ? y : x > y ? x : y)
BINARY(pow, std::pow(x, y)) BINARY(fmod, std::fmod(x, y))
struct Vec {};
"""
OF_FLOATS = """
#include "cpu/isa_{isa}.h"
#include "cpu/user_cell.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif
PRNN_ISA_BEGIN
namespace prnn::cpu::PRNN_ISA {{
#include "cpu/simd.h"
#include "cpu/simd_math.h"
using Vector = Vec;
"""
ENGINE = """
#define PRNN_CELL_FUNCTION template <class V> static inline

// Rows of n doubles, read or written one after the other at column i.
struct Rows {
  double* row;
  int n, i;
  template <class V> using Element = std::conditional_t<std::is_same_v<V, Vec>, float, double>;
  template <class V> V read() {
    Element<V> x[sizeof(V) / sizeof(Element<V>)];
    for (Element<V>& each : x) each = Element<V>(row[i + (&each - x)]);
    V v;
    std::memcpy(&v, x, sizeof v), row += n;
    return v;
  }
  template <class V> void read(V* to, int count) { while (count--) *to++ = read<V>(); }
  template <class V> void write(V v) {
    Element<V> x[sizeof(V) / sizeof(Element<V>)];
    std::memcpy(x, &v, sizeof v);
    for (Element<V>& each : x) row[i + (&each - x)] = each;
    row += n;
  }
  template <class V> void write(const V* from, int count) { while (count--) write(*from++); }
};
template <class V> struct Array {  // of what nobody wrote: NaN
  V at[16];
  Array() { for (V& v : at) v = constant_of<V>(__builtin_nan("")); }
  operator V*() { return at; }
};

template <class C, class V> void forward_at(Rows in, Rows out) {
  Array<V> gates_x, gates_h, states, params, inputs, saved;
  in.read<V>(gates_x, C::kGates), in.read<V>(gates_h, C::kGates);
  V h = in.read<V>();
  in.read<V>(states, C::kStates), in.read<V>(params, C::kParams), in.read<V>(inputs, C::kInputs);
  out.write(C::forward(gates_x.at, gates_h.at, h, states.at, params.at, inputs.at, saved.at));
  out.write<V>(states, C::kStates), out.write<V>(saved, C::kSaved);
}
template <class C, class V> void backward_at(Rows in, Rows out) {
  Array<V> states, params, inputs, saved, grad_x, grad_gates_h, grad_states, grad_params, grad_inputs;
  V grad_h = in.read<V>();
  in.read<V>(grad_states, C::kStates);
  V h = in.read<V>(), h_prev = in.read<V>(), nan = constant_of<V>(__builtin_nan(""));
  in.read<V>(states, C::kStates), in.read<V>(params, C::kParams), in.read<V>(inputs, C::kInputs);
  in.read<V>(saved, C::kSaved);
  for (int k = 0; k < C::kStates; ++k) if (C::state_at(k) < 0) states[k] = nan;
  out.write(C::backward(grad_h, grad_states.at, h, C::kNeedsHPrev ? h_prev : nan, states.at,
                        params.at, inputs.at, saved.at, grad_x.at, grad_gates_h.at, grad_params.at, grad_inputs.at));
  out.write<V>(grad_states, C::kStates), out.write<V>(grad_x, C::kGates), out.write<V>(grad_gates_h, C::kGates);
  out.write<V>(grad_params, C::kParams), out.write<V>(grad_inputs, C::kInputs);
}
template <class C, class V> void run(int n, double* in, double* out, bool backward) {
  for (int i = 0; i < n; i += sizeof(V) / sizeof(Rows::Element<V>))
    backward ? backward_at<C, V>({in, n, i}, {out, n, i}) : forward_at<C, V>({in, n, i}, {out, n, i});
}
"""
EXPORT = """
extern "C" void {name}(int n, double* in, double* out, int backward, int vector) {{
  {calls}
}}
"""


@dataclass(frozen=True)
class Cell:
    """A cell function to compare. ``low`` and ``high`` bound the gates, states, parameters and inputs; ``saved`` is the
    largest number of saved values; ``exact`` is false where a constant of the struct is only a float's.
    """

    function: CellFunction
    signature: Signature
    low: float = -2.0
    high: float = 2.0
    saved: int | None = None
    exact: bool = True

    @cached_property
    def generated(self) -> tuple[Emitted, Prologue]:
        return generate(self.function, self.signature, "Cell")

    @property
    def emitted(self) -> Emitted:
        return self.generated[0]


class Library:
    """Cells, by name, in one shared object, for numbers of ``dtype``."""

    def __init__(self, cells: dict[str, Cell], folder: Path, dtype: torch.dtype = torch.float64) -> None:
        self.cells, self.dtype = cells, dtype
        self._numbers = {name: number for number, name in enumerate(cells)}
        double = dtype == torch.float64
        source = [INCLUDES, OF_DOUBLES if double else OF_FLOATS.format(isa=build.instruction_set(dtype)), ENGINE]
        for name, number in self._numbers.items():
            try:
                emitted = cells[name].emitted
            except Exception:  # again in compare()
                continue
            struct = f"Cell{number}"
            text = emitted.text.replace("struct Cell {", f"struct {struct} {{")
            calls = f"run<{struct}, Vector>(n, in, out, backward);"
            if double:
                text = re.sub(r"(?<![\w.])(\d+\.\d+(?:e[+-]?\d+)?|\d+e[+-]?\d+)f\b", r"\1", text)
                calls = f"vector ? {calls[:-1]} : run<{struct}, double>(n, in, out, backward);"
            source += [text, EXPORT.format(name=f"run_{number}", calls=calls)]
        if not double:
            source.append("}\nPRNN_ISA_END\n")
        (folder / "cells.cpp").write_text("\n".join(source))
        flags = [
            "-O0" if double else "-O1",
            "-ffp-contract=off",
            "-std=c++17",
            "-shared",
            "-fPIC",
            "-Wall",
            "-fno-exceptions",
            "-fno-asynchronous-unwind-tables",
            "-Wno-psabi",
            "-Wno-unused-value",
            "-Wno-unused-function",
            f"-I{build.CSRC}",
        ]
        command = ["g++", *flags, "cells.cpp", "-o", "cells.so"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-5000:]
        assert "warning" not in done.stderr, done.stderr[:5000]
        self._loaded = ctypes.CDLL(str(folder / "cells.so"))

    def run(self, name: str, which: str, rows: Iterable[np.ndarray], results: int) -> np.ndarray:
        """[results, N] of forward() or backward(); the same for doubles and for vectors."""
        given = np.ascontiguousarray(np.stack(list(rows)))
        found = [np.full((results, POINTS), np.nan) for _ in range(2)]
        function = getattr(self._loaded, f"run_{self._numbers[name]}")
        for vector, out in enumerate(found):
            pointers = (ctypes.c_void_p(each.ctypes.data) for each in (given, out))
            function(POINTS, *pointers, which == "backward", vector)
        np.testing.assert_array_equal(*found, err_msg="doubles and vectors")
        return found[0]

    def compare(self, name: str, seed: int = 0, points: Sequence[float] = ()) -> None:
        """Results and all gradients, with torch's: at random points, or at given ones, of which ``seed`` says what
        stands beside what.
        """
        cell = self.cells[name]
        emitted, prologue = cell.generated
        signature, others = cell.signature, len(cell.signature.results) - 1
        draw = np.random.default_rng(seed)

        shifts = itertools.count(0, seed)

        def tensors(count: int) -> list[Tensor]:
            values = draw.uniform(cell.low, cell.high, (count, 1, POINTS))
            for row in values if points else ():
                row[0] = np.roll(points, next(shifts))
            return [value.repeat(COPIES, 1).requires_grad_() for value in torch.from_numpy(values).to(self.dtype)]

        gates_x, gates_h, states = tensors(signature.gates), tensors(signature.gates), tensors(len(signature.states))
        params = {
            key: value[0].detach().requires_grad_()
            for key, value in zip(signature.params, tensors(len(signature.params)), strict=True)
        }
        inputs = tensors(len(signature.inputs))
        wanted = call(
            cell.function, signature, gates_x, gates_h, states, params, dict(zip(signature.inputs, inputs, strict=True))
        )
        derived = [value.expand(POINTS) for value in prologue.evaluate(params)]
        assert len(derived) == emitted.params
        unread = [np.full(POINTS, np.nan)] * (others - len(states) + 1)

        def rows(*groups: Iterable[Tensor]) -> list[np.ndarray]:
            values = (value.detach().double().numpy() for group in groups for value in group)
            return [value[0] if value.ndim == 2 else value for value in values]

        forward_in = [*rows(gates_x, gates_h, states), *unread, *rows(derived, inputs)]
        results = self.run(name, "forward", forward_in, 1 + others + emitted.saved)
        self._assert_close(cell, "results", results[: 1 + others], rows(wanted))

        grads = draw.uniform(-1, 1, (1 + others, POINTS))
        states_prev = [*rows(states[1:]), *unread]
        backward_in = [
            *grads,
            results[0],
            *rows(states[:1]),
            *states_prev,
            *rows(derived, inputs),
            *results[1 + others :],
        ]
        given = self.run(
            name, "backward", backward_in, 1 + others + 2 * signature.gates + emitted.params + emitted.inputs
        )
        bounds = np.cumsum([1 + others, signature.gates, signature.gates, emitted.params])
        grad_states, grad_x, grad_h, grad_derived, grad_inputs = np.split(given, bounds)
        if unread:
            assert (grad_states[-1] == 0).all()
        grad_params = _grads(derived, list(params.values()), grad_derived)

        leaves = [*states, *gates_x, *gates_h, *inputs, *params.values()]
        expected = _grads(wanted, leaves, grads)
        expected = rows(
            expected[: len(leaves) - len(params)], [grad / COPIES for grad in expected[len(leaves) - len(params) :]]
        )
        found = [*grad_states[: len(states)], *grad_x, *grad_h, *grad_inputs, *rows(grad_params)]
        self._assert_close(cell, "gradients", found, expected)
        if not emitted.splits_gates:
            np.testing.assert_array_equal(grad_x, grad_h)

    def _assert_close(self, cell: Cell, what: str, found: Iterable[np.ndarray], expected: Iterable[np.ndarray]) -> None:
        tolerance = 1e-5 if self.dtype == torch.float32 else 1e-12 if cell.exact else 1e-6
        np.testing.assert_allclose(
            np.stack(list(found)),
            np.stack(list(expected)),
            tolerance,
            tolerance,
            err_msg=f"{what}\n{cell.emitted.text}",
        )


def _grads(outputs: Iterable[Tensor], leaves: list[Tensor], grads: np.ndarray) -> list[Tensor]:
    """The gradient of each leaf, zero where none flows."""
    pairs = [
        (output, torch.from_numpy(grad).to(output.dtype).expand(output.shape).contiguous())
        for output, grad in zip(outputs, grads, strict=True)
        if output.requires_grad
    ]
    if not pairs or not leaves:
        return [torch.zeros_like(leaf) for leaf in leaves]
    outputs, grad_outputs = zip(*pairs, strict=True)
    return list(torch.autograd.grad(outputs, leaves, grad_outputs, allow_unused=True, materialize_grads=True))


def one_gate(function: Callable[..., Tensor], **options: Any) -> Cell:
    """The cell h = function(gx[0], gh[0]), or function(gx[0])."""
    count = function.__code__.co_argcount - len(function.__defaults__ or ())
    return Cell(
        lambda gx, gh, state, p, inputs: {"h": function(*(gx[0], gh[0])[:count])},
        Signature(1),
        **options,
    )
