"""The checks themselves, with a CPU's kernels in place of the CUDA ones: right kernels pass, planted errors do not.

All of them, by hand: python -m tests.gpu.checks cpu, torch and stand-in.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from prnn import native
from prnn.cell_table import CELLS
from tests import warm
from tests.gpu import checks, memory_checks, planted, recurrence_checks
from tests.gpu.compare import Wrong
from tests.gpu.problems import Case
from tests.gpu.targets import CPU, CUDA, STAND_IN, TORCH, DoesNotFit, Target

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    checks.prepare()
    yield
    torch.set_num_threads(before)


def right_kernels(target: Target) -> list[str]:
    """Every so many. The largest take long, and so do the smallest, of which there are hundreds of draws: of those one.
    ``compile`` is what tests/ops tries.
    """
    long = ("H1100", "B300", "B3000", "T1 B1 H1", "T5 B1 H3", "compile")
    names = list(checks.checks(target))
    quick = [name for name in names if not any(words in name for words in long)]
    smallest = [name for name in names if name.startswith("lstm") and "T1 B1 H1" in name]
    return [*(quick[::3] if target is CPU else quick[1::8]), smallest[-1]]


@pytest.mark.parametrize(
    ("target", "name"),
    [pytest.param(t, name, id=f"{t.name} {name}") for t in (CPU, TORCH, STAND_IN) for name in right_kernels(t)],
)
def test_right_kernels_pass(target: Target, name: str) -> None:
    if target is CPU and not native.status()[0]:
        pytest.skip(f"native library: {native.status()[1]}")
    figures = checks.checks(target)[name]()
    assert 0 <= figures["share"] <= 1


def case(cell: str, kind: str, size: tuple[int, int, int] = (6, 9, 40)) -> Case:
    return Case(cell, kind, size, "everything")


def results(cell: str) -> list[str]:
    has_c = CELLS[cell].has_c
    return [*planted.RESULTS[: 2 + has_c], *(f"grad_{name}" for name in planted.OPERANDS[: 6 + has_c])]


@pytest.mark.parametrize(("cell", "kind"), list(product(CELLS, STAND_IN.kinds)))
def test_errors_of_one_percent_and_of_one_ulp_of_bfloat16_are_found(cell: str, kind: str) -> None:
    for what, spoil in product(results(cell), (planted.one_percent, planted.one_ulp)):
        with pytest.raises(Wrong, match=f"^{what}: ") as found:
            recurrence_checks.layer_is_right(planted.spoiled(STAND_IN, what, spoil), case(cell, kind), None)
        assert found.value.figures["of"] == what
        assert found.value.figures["share"] > 1


def test_they_are_found_in_the_smallest_layers() -> None:
    for cell, what, spoil in (("rnn_relu", "output", planted.one_ulp), ("gru", "grad_weight_hh", planted.one_percent)):
        with pytest.raises(Wrong, match=f"^{what}: "):
            smallest = case(cell, "bfloat16", (1, 1, 1))
            recurrence_checks.layer_is_right(planted.spoiled(STAND_IN, what, spoil), smallest, None)


@pytest.mark.parametrize("cell", CELLS)
def test_one_wrong_unit_of_many_is_found(cell: str) -> None:
    for what in ("output", "grad_weight_hh"):
        target = planted.spoiled(STAND_IN, what, planted.one_unit)
        with pytest.raises(Wrong, match=f"^{what}: slice "):
            recurrence_checks.layer_is_right(target, Case(cell, "bfloat16", (2, 3, 700), "plain"), None)


def test_what_is_no_number_is_found() -> None:
    for what in results("lstm"):
        with pytest.raises(Wrong, match=f"{what} holds NaN"):
            target = planted.spoiled(STAND_IN, what, planted.not_a_number)
            recurrence_checks.layer_is_right(target, case("lstm", "float32"), None)


@pytest.mark.parametrize("cell", CELLS)
def test_zeros_are_not_right(cell: str) -> None:
    """Not even of rnn_relu, whose right gradients depend on the output that was found, and here are zeros."""

    def zeros(*operands: Any, **options: Any) -> tuple[Any, ...]:
        return tuple(None if end is None else end * 0 for end in STAND_IN.layer(*operands, **options))

    with pytest.raises(Wrong):
        recurrence_checks.layer_is_right(
            replace(STAND_IN, layer=zeros), Case(cell, "float32", (6, 9, 40), "plain"), None
        )


def test_a_run_that_gives_other_bits_is_found() -> None:
    def last_bit(value: torch.Tensor) -> torch.Tensor:
        return torch.nextafter(value, torch.full_like(value, 9.0))

    target = planted.spoiled(STAND_IN, "h_n", planted.every_other_time(last_bit))
    with pytest.raises(Wrong, match="h_n: another run gave other bits"):
        recurrence_checks.layer_is_right(target, case("gru", "float32"), None)


def test_a_wrong_memory_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = memory_checks.memory_recurrence
    monkeypatch.setattr(
        memory_checks, "memory_recurrence", lambda *given, **options: [y * 1.0001 for y in right(*given, **options)]
    )
    with pytest.raises(Wrong):
        memory_checks.memories_are_right(TORCH, next(memory_checks.cases()))


def test_what_fits_into_no_regime_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Target, "refusal", lambda *_: "no such regime")
    with pytest.raises(DoesNotFit, match="no such regime"):
        next(check for name, check in checks.CHECKS.items() if name.startswith("gru float16") and "grid" in name)()


def test_all_are_listed_without_a_gpu_and_without_pytest() -> None:
    """By torch and numpy alone, and nothing of a GPU is touched."""
    program = """
import sys
for name in ("pytest", "hydra", "omegaconf", "matplotlib", "tqdm", "safetensors"):
    sys.modules[name] = None
import torch
def touched(*_): raise RuntimeError("a GPU was asked for")
torch.cuda._lazy_init = torch.cuda.is_available = torch.cuda.device_count = touched
from tests.gpu import checks
print(len(checks.CHECKS), *sorted({checks.group(name).replace(" ", "_") for name in checks.CHECKS}))
"""
    done = warm.run_code(program, ROOT, {})
    assert done.returncode == 0, done.stderr
    count, *groups = done.stdout.split()
    assert int(count) == len(checks.CHECKS) > 450
    assert {f"{cell}_{regime}" for cell, regime in product(CELLS, CUDA.regimes)} < set(groups)
    assert {"memories", "modules", "compile", "limits", "graph_block", "streams_grid"} < set(groups)


def test_each_cell_and_kind_meets_each_option() -> None:
    for cell, kind in product(CELLS, ("float32", "bfloat16", "float16")):
        met = {c.options for c in recurrence_checks.cases() if (c.cell, c.kind, c.both) == (cell, kind, False)}
        assert len(met) == 5


def test_only_what_is_asked_for_is_forced() -> None:
    assert replace(CUDA, backend=None).refusal("gru", "float32", 1, 1, "grid") is None
    with CPU.forced("grid", "tf32"):
        assert os.environ["PRNN_CUDA_REGIME"] == "grid"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    assert "PRNN_CUDA_REGIME" not in os.environ
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"
