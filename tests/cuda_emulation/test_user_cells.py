"""Cells written in Python on the emulated GPU, from the function to the launch, against their equations in float64."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import prnn
from prnn import cuda_plan, native, ops
from prnn.codegen import gpu
from prnn.errors import UserError
from prnn.ops import autotune
from tests.cuda_emulation.build import CSRC
from tests.cuda_emulation.cells import EmulatedGpu, check, emulated
from tests.nn.cells import CELLS, OPTIONS, draw, inputs_of, make, off, results
from tests.thinned import thinned

pytestmark = [
    pytest.mark.skipif(not native.status()[0], reason=f"native library: {native.status()[1]}"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, whose driver is loaded"),
]

REGIMES = ("block", "cluster", "grid")
SHAPES = [(1, 1, 1, 1), (5, 1, 2, 3), (6, 4, 3, 17), (3, 7, 5, 100), (40, 2, 1, 20), (2, 33, 3, 9), (3, 0, 2, 5)]


@pytest.fixture(scope="module")
def device(shared_folder: Path) -> Iterator[EmulatedGpu]:
    with emulated(shared_folder / "user_cells", shared_folder / "emulated_driver") as device:
        yield device


EXCHANGED = [{"lengths": True, "resets": True, "bidirectional": True}]
EXCHANGING = ("lif", "slstm", "rate", "gru", "traces")  # which stand for the others where blocks exchange something


@pytest.mark.slow(seconds=6)
@pytest.mark.parametrize(
    ("cell", "regime"),
    [*((cell, "block") for cell in CELLS), *((cell, regime) for cell in EXCHANGING for regime in REGIMES[1:])],
)
def test_kernels_against_the_equations(
    cell: str, regime: str, device: EmulatedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRNN_CUDA_REGIME", regime)
    for number, (T, B, I, H) in enumerate(SHAPES):
        if regime != "block" and H < 17:  # one group of 16 units is no team
            continue
        for options in thinned(OPTIONS[number % 2 :: 2]) if regime == "block" else EXCHANGED:
            layer, x, state, given = draw(cell, T, B, I, H, options)
            before = device.launches()
            device.seed(number)
            first = check(layer, x, state, **given)
            assert (device.launches() > before) == (B > 0)
            if T == 6:
                device.seed(1000 + number)
                again = results(layer, x, state, **given)
                assert all(torch.equal(first[name], again[name]) for name in first), "another schedule"


@pytest.mark.slow(seconds=5)
@pytest.mark.parametrize(
    ("H", "heads", "regime"),
    [
        (12, 3, "block"),
        (6, 6, "block"),
        (96, 4, "block"),
        (100, 4, "cluster"),
        (400, 20, "cluster"),
        (40, 2, "grid"),
        (100, 4, "grid"),
    ],
)
def test_heads(H: int, heads: int, regime: str, device: EmulatedGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRNN_CUDA_REGIME", regime)
    for cell in ("slstm", "rate"):
        layer = make(cell, 4, H, heads=heads, bidirectional=True)
        given = {"lengths": torch.tensor([9, 3, 0, 8, 5]), "resets": torch.rand(9, 5) < 0.2}
        before = device.launches()
        check(layer, torch.randn(9, 5, 4), inputs=inputs_of(layer, 9, 5), **given)
        assert device.launches() - before >= 2 * -(-heads // 12)  # the GPU has twelve multiprocessors


def of_gates(count: int, states: int, recurrent: str = "dense") -> Any:
    """A cell of so many gates and states that uses all of them, two parameters and an input."""
    names = tuple("habcde"[:states])

    @prnn.cell(
        gates=count,
        states=names,
        params={"w": torch.nn.init.normal_, "s": prnn.scalar(0.3)},
        inputs=("u",),
        recurrent=recurrent,
    )
    def many(gx, gh, state, p, inputs):  # type: ignore[no-untyped-def]
        total = sum(torch.tanh(gx[g] + (0.5 + 0.1 * g) * gh[g]) * (1 - 0.2 * g) for g in range(count))
        new = {"h": torch.tanh(total * p.s + p.w * inputs.u) * 0.5 + 0.3 * state.h}
        for number, name in enumerate(names[1:], start=1):
            other = getattr(state, names[number - 1])
            new[name] = torch.sigmoid(gx[number % count] + p.w) * getattr(state, name) + torch.tanh(other) * inputs.u
        return new | {"h": new["h"] + 0.1 * new[names[-1]]} if states > 1 else new

    return many


@pytest.mark.slow(seconds=5)
@pytest.mark.parametrize(("gates", "states"), [(1, 4), (3, 3), (5, 2), (8, 6)])
def test_any_number_of_gates_and_states(
    gates: int, states: int, device: EmulatedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = of_gates(gates, states)
    for regime, H in zip(REGIMES, (9, 70, 40), strict=True):
        monkeypatch.setenv("PRNN_CUDA_REGIME", regime)
        torch.manual_seed(gates)
        layer = prnn.Recurrent(cell, 3, H)
        check(layer, torch.randn(4, 5, 3), inputs={"u": torch.randn(4, 5, H)}, resets=torch.rand(4, 5) < 0.2)


@pytest.mark.slow(seconds=6)
@pytest.mark.parametrize(("gates", "states", "saved"), [(1, 1, 2), (1, 2, 5), (8, 6, 24)])
def test_steps_loaded_together(gates: int, states: int, saved: int, device: EmulatedGpu) -> None:
    """Without a product: of four steps, two or one, by the values of a step (``steps_ahead``, plan.h); of the backward
    pass those that are saved, and two or three more. The last of several may be missing.
    """
    cell = of_gates(gates, states, "diagonal")
    assert cell.cell.generated[0].saved == saved
    for T in (1, 4, 11):
        layer = prnn.Recurrent(cell, 3, 20, bidirectional=True)
        given = {"lengths": torch.tensor([T, T // 2, T, max(0, T - 3)]), "resets": torch.rand(T, 4) < 0.3}
        check(layer, torch.randn(T, 4, 3), inputs={"u": torch.randn(T, 4, 20)}, **given)


@pytest.mark.slow(seconds=6)
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [*((dtype, shape) for dtype in (torch.float32, torch.bfloat16) for shape in range(3)), (torch.float16, 0)],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_element_types_and_shapes(
    dtype: torch.dtype, shape: int, device: EmulatedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of kernels, whose warps have more or fewer units and columns; and of the warps of a block."""
    ran = 0
    for number, (cell, regime) in enumerate((("gru", "cluster"), ("slstm", "grid"))):
        monkeypatch.setenv("PRNN_CUDA_REGIME", regime)
        for row_warps in (1, 2, 4, 8):
            monkeypatch.setenv("PRNN_CUDA_PLAN", f"shape={shape},row_warps={row_warps}")
            layer = make(cell, 3, 250 if row_warps == 8 and regime == "cluster" else 80).to(dtype)
            try:
                check(layer, torch.randn(4, 3 + number, 3).to(dtype))
                ran += 1
            except RuntimeError as error:
                assert "fit into no regime" in str(error)
    assert ran >= 2


def test_infinity_stays_in_its_step_without_a_recurrent_weight(device: EmulatedGpu) -> None:
    @prnn.cell(gates=1, inputs=("k",), recurrent="none")
    def sums(gx, gh, state, p, inputs):  # type: ignore[no-untyped-def]
        return {"h": gx[0] + gh[0] + inputs.k}

    layer, k = prnn.Recurrent(sums, 1, 20), torch.zeros(4, 1, 20)
    k[1] = torch.inf
    k.requires_grad_()
    output, _ = layer(torch.ones(4, 1, 1), inputs={"k": k})
    assert [bool(step.isfinite().all()) for step in output] == [True, False, True, True]
    grad = torch.ones(4, 1, 20)
    grad[2] = torch.inf
    output.backward(grad)
    assert torch.equal(k.grad, grad)


def test_without_gradients_nothing_is_saved(device: EmulatedGpu) -> None:
    layer = make("state_out", 3, 20)
    x = torch.randn(5, 2, 3)
    with torch.no_grad():
        output, final = layer(x)
    right, last = copy.deepcopy(layer).double()(x.double())
    assert off({"output": output.double()}, {"output": right}) < 2e-5
    assert off({"c": final["c"].double()}, {"c": last["c"]}) < 2e-5


def test_fragments_in_registers_are_fewer_until_nothing_spills(
    device: EmulatedGpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[int] = []

    def run(text: str, architecture: int, flags: Sequence[str]) -> gpu.Compiled:
        if text != gpu.PROBE:
            asked.append(int(re.search(r"UserModel<.*, (\d+)>", text)[1]))
        return device.run(text, architecture, flags)._replace(spilled_bytes=4 * (bool(asked) and asked[-1] > 20))

    monkeypatch.setenv("PRNN_CACHE", str(tmp_path))
    monkeypatch.setattr(gpu, "compiler", lambda _: gpu.Compiler("one that spills", run))
    layer = prnn.Recurrent(of_gates(1, 2), 3, 100)
    x, inputs = torch.randn(3, 2, 3), {"u": torch.randn(3, 2, 100)}
    check(layer.to(torch.bfloat16), x.to(torch.bfloat16), inputs=inputs)
    assert asked[0] > 20 and min(asked) <= 20
    count = len(asked)
    other = prnn.Recurrent(of_gates(1, 2), 3, 100).to(torch.bfloat16)
    check(other, x.to(torch.bfloat16), inputs=inputs)
    assert len(asked) == count, "the outcome is remembered"


def test_a_plan_depends_on_no_other_layer(device: EmulatedGpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where kernels have fewer fragments in registers than the planner begins with."""

    def run(text: str, architecture: int, flags: Sequence[str]) -> gpu.Compiled:
        found = re.search(r"UserModel<.*, (\d+)>", text)
        return device.run(text, architecture, flags)._replace(
            spilled_bytes=8 * (found is not None and int(found[1]) > 6)
        )

    monkeypatch.setenv("PRNN_CACHE", str(tmp_path))
    monkeypatch.setattr(gpu, "compiler", lambda _: gpu.Compiler("one that spills", run))

    def plan(cell: Any, B: int, H: int) -> tuple[str, str]:
        return cuda_plan._plans(cell.cell.name, torch.bfloat16, B, H, 0, False, 0, "", None, -1)

    sizes = [(1, 40), (3, 130), (20, 70), (2, 200)]
    one, other = of_gates(2, 2), of_gates(2, 2)
    forwards = [plan(one, *size) for size in sizes]
    backwards = [plan(other, *size) for size in reversed(sizes)]
    assert forwards == backwards[::-1] and all(all(each) for each in forwards)


def test_a_cell_that_does_not_compile_is_refused_once(
    device: EmulatedGpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tried = []

    def run(text: str, architecture: int, flags: Sequence[str]) -> gpu.Compiled:
        tried.append(text)
        raise gpu.CannotCompile("no room")

    monkeypatch.setenv("PRNN_CACHE", str(tmp_path))
    monkeypatch.setattr(gpu, "compiler", lambda _: gpu.Compiler("one that fails", run))
    cell = of_gates(1, 1)
    arguments = (cell.cell.name, torch.float32, 2, 40, 0, False, 0, "", None, -1)
    refused = partial(pytest.raises, UserError, match="^it was not compiled: no room$")
    with refused(), pytest.warns(UserWarning, match="many runs as a Python loop: it was not compiled: no room"):
        cuda_plan._plans(*arguments)
    with refused():
        cuda_plan._plans(*arguments)
    assert len(tried) == 1


def test_the_choice_of_a_backend(device: EmulatedGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    cell = make("slstm", 3, 80, heads=4).cell
    name, heads = cell.cell.name, 20
    request = ops.Request(name, 9, 4, 3, 80, torch.bfloat16, "cuda", False, False, False, 0, True, K=heads)
    choice = ops.choose(request)
    assert choice.backend == "cuda" and "4 x " in choice.reason and "255 registers a thread" in choice.reason
    few = cuda_plan._plans(name, torch.bfloat16, 4, 80, 0, False, 3, "", None, heads)  # of three multiprocessors
    assert all("3 x 1 x 1 blocks" in words for words in few)
    never = ops.choose(request._replace(cell=cell.with_native("never").cell.name))
    assert str(never) == 'torch, its equations under autograd (native="never" was given)'
    large = ops.choose(request._replace(H=40_000, K=40_000))
    assert large.backend == "torch" and "fit into no regime of this GPU" in large.reason
    wide = ops.choose(request._replace(dtype=torch.float64))
    assert wide.backend == "torch" and "not float64" in wide.reason
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "for CUDA alone" in ops.choose(request).reason


@pytest.mark.parametrize(("cell", "K"), [("slstm", 10), ("rate", 40), ("indrnn", 1)])
def test_what_is_timed_runs(cell: str, K: int, device: EmulatedGpu) -> None:
    name = CELLS[cell].cell.name_in_graph(torch.float32)
    layer = autotune.Layer("a GPU", name, torch.float32, 4, 2, 40, 2, True, False, 0, ("cuda",), K)
    before = device.launches()
    for call in autotune._calls(layer, torch.device("cpu")).values():
        call()
    assert device.launches() > before


@pytest.mark.parametrize("left", [0, 40, -1])
def test_a_damaged_file_of_the_cache_is_made_anew(
    left: int, device: EmulatedGpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PRNN_CACHE", str(tmp_path))
    source, key = of_gates(1, 1).cell._cuda_source, gpu.KernelKey(0, False, 0)
    right = source.kernel(torch.float32, key, 90)
    (file,) = (tmp_path / "cells").glob("CellMany-*.cubin")
    file.write_bytes(file.read_bytes()[:left])
    assert source.kernel(torch.float32, key, 90) == right
    same_length = file.read_bytes()[:-1] + b"x"
    file.write_bytes(same_length)
    assert source.kernel(torch.float32, key, 90) == right and file.read_bytes() != same_length


@dataclass(frozen=True)
class Mistake:
    """A line of the kernels' headers, what becomes of it, and the layer that shows it."""

    file: str
    right: str
    wrong: str
    cell: str
    regime: str = "block"
    heads: int = 1


MISTAKES = {
    "a parameter's gradient summed in part": Mistake(
        "backward.cuh", "grad_params[n] += grad_params[n];", "grad_params[n] = grad_params[n];", "rate"
    ),
    "another unit's parameter": Mistake("team.cuh", "(number - kFirstParam) * H + unit]", "unit]", "rate"),
    "an input's gradient at another step": Mistake(
        "backward.cuh", "if (inputs) state.grad_inputs += grad_inputs_step;", "", "rate"
    ),
    "the inputs of another step": Mistake("forward.cuh", "if (C::kInputs) state.inputs += inputs_step;", "", "rate"),
    "a state not published": Mistake(
        "team.cuh", "if constexpr (!kUnits) exchange.put(published_at, x);", "", "gru", "grid"
    ),
    "a state that no reset reaches": Mistake("forward.cuh", "state.h = 0, clear(state.states);", "state.h = 0;", "lif"),
    "the last state in the place of another": Mistake(
        "forward.cuh", "pass.c_n[k * pass.state_step + at] =", "pass.c_n[at] =", "slstm"
    ),
    "another state before the first step": Mistake(
        "backward.cuh", "= pass.c0[k * pass.state_step + at];", "= pass.c0[at];", "traces"
    ),
    "another state before a step": Mistake(
        "backward.cuh", "C::state_at(k) < 0 ? 0 : C::state_at(k)", "C::state_at(k) < 0 ? 0 : C::state_at(0)", "traces"
    ),
    "the gradient of an output that is a state": Mistake(
        "backward.cuh", "grad_of_output = C::kOutput < 0 ? grad :", "grad_of_output = true ? grad :", "state_out"
    ),
    "another head's rows": Mistake("team.cuh", "+ int64_t(first_unit) * K);", "+ 0 * K);", "gru", "cluster", 2),
    "heads in one workspace": Mistake("team.cuh", "team + grid_row() * plan.teams", "team", "gru", "grid", 2),
    "another gate's weight, without a product": Mistake(
        "team.cuh", "? own_weight(j, q)", "? own_weight(j, 0)", "indrnn"
    ),
    "another step's inputs, of those loaded together": Mistake(
        "forward.cuh", "step(states[j], states[j].now[i], j, s);", "step(states[j], states[j].now[0], j, s);", "indrnn"
    ),
    "another step's values, of those loaded together": Mistake(
        "backward.cuh", "to.saved[k] = state.saved[k * H];", "state.ahead[0].saved[k] = state.saved[k * H];", "indrnn"
    ),
    "another step's reset, of those loaded together": Mistake(
        "forward.cuh", "Steps(pass).reset(s + i,", "Steps(pass).reset(s,", "filters"
    ),
    "another step's input, of those loaded together": Mistake(
        "forward.cuh",
        "to.inputs[k] = state.inputs[k * H];",
        "state.ahead[0].inputs[k] = state.inputs[k * H];",
        "filters",
    ),
    "no step before the last of those loaded together": Mistake(
        "backward.cuh", "states[j].now[i + 1] : states[j].ahead[0]", "states[j].now[i + 1] : states[j].now[0]", "indrnn"
    ),
    "another gate's bias": Mistake("team.cuh", "to_float(bias[number * H + unit])", "to_float(bias[unit])", "gru"),
}
SAID = "is off by|waited more than|wait for words that nobody writes|AssertionError: (output|grad|final)"


@pytest.mark.slow(seconds=8)
@pytest.mark.parametrize("name", [*thinned(MISTAKES, 3), "none"])
def test_planted_mistake_is_found(name: str, tmp_path: Path, shared_folder: Path) -> None:
    """In a process of its own, whose GPU may be lost."""
    mistake = MISTAKES.get(name, Mistake("team.cuh", "#pragma once", "#pragma once", "gru", "grid", 2))
    source = tmp_path / "csrc"
    shutil.copytree(CSRC, source, ignore=shutil.ignore_patterns("cpu"))
    file = source / "cuda" / mistake.file
    text = file.read_text()
    assert text.count(mistake.right) == 1, f"{mistake.file} no longer has the line this test breaks"
    file.write_text(text.replace(mistake.right, mistake.wrong))
    layer = (mistake.cell, str(mistake.heads), mistake.regime)
    folders = map(str, (tmp_path, shared_folder / "emulated_driver", source))
    done = subprocess.run(
        [sys.executable, "-m", "tests.cuda_emulation.cells", *layer, *folders], capture_output=True, text=True
    )
    if name == "none":
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode != 0
        assert re.search(SAID, done.stderr), done.stderr
