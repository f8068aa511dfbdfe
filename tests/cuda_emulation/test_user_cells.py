"""Cells written in Python on the emulated GPU, from the function to the launch, against their equations in float64."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import prnn
from prnn import native
from prnn.codegen import gpu
from tests.cuda_emulation.cells import EmulatedGpu, emulated
from tests.nn.cells import CELLS, gridded, inputs_of, make, off, results, state_of

pytestmark = [
    pytest.mark.skipif(not native.status()[0], reason=f"native library: {native.status()[1]}"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, whose driver is loaded"),
]

REGIMES = ("block", "cluster", "grid")
SHAPES = [(1, 1, 1, 1), (5, 1, 2, 3), (6, 4, 3, 17), (3, 7, 5, 100), (40, 2, 1, 20), (2, 33, 3, 9), (3, 0, 2, 5)]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"lengths": True},
    {"resets": True},
    {"lengths": True, "resets": True, "bidirectional": True, "num_layers": 2},
    {"bias": False, "batch_first": True, "resets": True},
    {"bias": "input", "bidirectional": True},
]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 6e-3}


@pytest.fixture(scope="module")
def device(shared_folder: Path) -> Iterator[EmulatedGpu]:
    with emulated(shared_folder / "user_cells") as device:
        yield device


def check(layer: prnn.Recurrent, x: Tensor, state: Any = None, **given: Any) -> dict[str, Tensor]:
    """Results on the emulated GPU, which agree with those of the equations in float64."""

    def double(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: double(each) for name, each in value.items()}
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    computed = results(layer, x, state, **given)
    right = results(copy.deepcopy(layer).double(), double(x), double(state), **double(given))
    error = off({name: value.double() for name, value in computed.items()}, right)
    assert error < TOLERANCE[x.dtype], error
    return computed


def draw(cell: str, T: int, B: int, I: int, H: int, options: dict[str, Any]) -> tuple[Any, ...]:
    """A layer, its input and state, and what else it is given."""
    module = {name: value for name, value in options.items() if name not in ("lengths", "resets")}
    layer = make(cell, I, H, **module)
    given: dict[str, Any] = {"inputs": inputs_of(layer, T, B)}
    x = gridded(torch.randn(T, B, I))
    if "lengths" in options:
        given["lengths"] = torch.randint(0, T + 1, (B,))
        x[torch.arange(T).unsqueeze(1) >= given["lengths"]] = torch.nan
    if "resets" in options:
        given["resets"] = torch.rand(T, B) < 0.3
    if options.get("batch_first"):
        x = x.transpose(0, 1)
        given["resets"] = given["resets"].t()
        given["inputs"] = {name: value.transpose(0, 1) for name, value in given["inputs"].items()}
    return layer, x, state_of(layer, B), given


@pytest.mark.slow(seconds=30)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("cell", CELLS)
def test_kernels_against_the_equations(
    cell: str, regime: str, device: EmulatedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    if CELLS[cell].signature.recurrent != "dense" and regime != "block":
        pytest.skip("nothing is exchanged")
    monkeypatch.setenv("PRNN_CUDA_REGIME", regime)
    ran = 0
    for number, (T, B, I, H) in enumerate(SHAPES):
        if regime != "block" and H < 17:  # one group of 16 units is no team
            continue
        for options in (OPTIONS[number % len(OPTIONS)], OPTIONS[(number + 3) % len(OPTIONS)]):
            layer, x, state, given = draw(cell, T, B, I, H, options)
            before = device.launches()
            device.seed(number)
            first = check(layer, x, state, **given)
            if B and T:
                assert device.launches() > before
            device.seed(1000 + number)
            again = results(layer, x, state, **given)
            assert all(torch.equal(first[name], again[name]) for name in first), "another schedule"
            ran += 1
    assert ran >= 4


@pytest.mark.slow(seconds=20)
@pytest.mark.parametrize(("H", "heads"), [(12, 3), (96, 4), (40, 2), (6, 6), (100, 4), (400, 20)], ids=str)
@pytest.mark.parametrize("regime", REGIMES)
def test_heads(H: int, heads: int, regime: str, device: EmulatedGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    if regime != "block" and H // heads < 17:
        pytest.skip("one group of units is no team")
    monkeypatch.setenv("PRNN_CUDA_REGIME", regime)
    for cell in ("slstm", "rate"):
        layer = make(cell, 4, H, heads=heads, bidirectional=True)
        given = {"lengths": torch.tensor([9, 3, 0, 8, 5]), "resets": torch.rand(9, 5) < 0.2}
        before = device.launches()
        check(layer, torch.randn(9, 5, 4), inputs=inputs_of(layer, 9, 5), **given)
        launches = device.launches() - before
        assert launches >= 2 * -(-heads // 12)  # the GPU has twelve multiprocessors


def of_gates(count: int, states: int) -> Any:
    """A cell of so many gates and states that uses all of them, two parameters and an input."""
    names = tuple("habcde"[:states])

    @prnn.cell(gates=count, states=names, params={"w": torch.nn.init.normal_, "s": prnn.scalar(0.3)}, inputs=("u",))
    def many(gx, gh, state, p, inputs):  # type: ignore[no-untyped-def]
        total = sum(torch.tanh(gx[g] + (0.5 + 0.1 * g) * gh[g]) * (1 - 0.2 * g) for g in range(count))
        new = {"h": torch.tanh(total * p.s + p.w * inputs.u) * 0.5 + 0.3 * state.h}
        for number, name in enumerate(names[1:], start=1):
            other = getattr(state, names[number - 1])
            new[name] = torch.sigmoid(gx[number % count] + p.w) * getattr(state, name) + torch.tanh(other) * inputs.u
        return new | {"h": new["h"] + 0.1 * new[names[-1]]} if states > 1 else new

    return many


@pytest.mark.slow(seconds=15)
@pytest.mark.parametrize(("gates", "states"), [(1, 4), (2, 1), (3, 3), (5, 2), (6, 1), (7, 4), (8, 6)])
def test_any_number_of_gates_and_states(
    gates: int, states: int, device: EmulatedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = of_gates(gates, states)
    for regime, H in zip(REGIMES, (9, 70, 40), strict=True):
        monkeypatch.setenv("PRNN_CUDA_REGIME", regime)
        torch.manual_seed(gates)
        layer = prnn.Recurrent(cell, 3, H)
        check(layer, torch.randn(4, 5, 3), inputs={"u": torch.randn(4, 5, H)}, resets=torch.rand(4, 5) < 0.2)


@pytest.mark.slow(seconds=15)
@pytest.mark.parametrize("shape", range(3))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype)[6:])
def test_element_types_and_shapes(
    dtype: torch.dtype, shape: int, device: EmulatedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of kernels, whose warps have more or fewer units and columns; and of the warps of a block."""
    for number, (cell, regime) in enumerate(
        [("gru", "cluster"), ("slstm", "grid"), ("rate", "cluster"), ("gru", "grid")]
    ):
        monkeypatch.setenv("PRNN_CUDA_REGIME", regime)
        for row_warps in (1, 2, 4, 8):
            monkeypatch.setenv("PRNN_CUDA_PLAN", f"shape={shape},row_warps={row_warps}")
            layer = make(cell, 3, 250 if row_warps == 8 and regime == "cluster" else 80).to(dtype)
            x, inputs = torch.randn(5, 3 + number, 3).to(dtype), inputs_of(layer, 5, 3 + number)
            try:
                check(layer, x, inputs=inputs)
            except RuntimeError as error:
                assert "fit into no regime" in str(error)


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

    def run(text: str, architecture: int) -> gpu.Compiled:
        if text != gpu.PROBE:
            asked.append(int(re.search(r"UserModel<.*, (\d+)>", text)[1]))
        return device.run(text, architecture)._replace(spilled_bytes=4 * (bool(asked) and asked[-1] > 20))

    monkeypatch.setenv("PRNN_CACHE", str(tmp_path))
    monkeypatch.setattr(gpu, "compiler", lambda: gpu.Compiler("one that spills", run))
    layer = prnn.Recurrent(of_gates(1, 2), 3, 100)
    x, inputs = torch.randn(3, 2, 3), {"u": torch.randn(3, 2, 100)}
    check(layer.to(torch.bfloat16), x.to(torch.bfloat16), inputs=inputs)
    assert asked[0] > 20 and min(asked) <= 20
    count = len(asked)
    other = prnn.Recurrent(of_gates(1, 2), 3, 100).to(torch.bfloat16)
    check(other, x.to(torch.bfloat16), inputs=inputs)
    assert len(asked) == count, "the outcome is remembered"
