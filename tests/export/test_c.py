"""``prnn.export.c``: layers, what is refused, and the files; compared with training code in float64."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prnn
from prnn import cells
from prnn.errors import UserError
from prnn.export import c
from prnn.export.c import text
from prnn.export.program import Case
from tests.export.models import Exported
from tests.export.nets import (
    BOUND,
    FAST,
    SANITIZED,
    built_in,
    characters,
    detector,
    error_of,
    user_cell,
)
from tests.thinned import thinned

# Layers.


PLAIN = ("-O2",)
# Layers, directions and flags; of every other case, each value with each of another.
STACKS = [
    (1, 1, FAST), (1, 1, PLAIN), (1, 2, PLAIN), (1, 2, FAST), (3, 1, PLAIN), (3, 1, FAST), (3, 2, FAST), (3, 2, PLAIN),
]  # fmt: skip


@pytest.mark.slow(seconds=2)
@pytest.mark.parametrize(("layers", "directions", "flags"), thinned(STACKS))
@pytest.mark.parametrize("name", ["rnn_tanh", "rnn_relu", "gru", "lstm"])
def test_built_in_cells(tmp_path: Path, name: str, layers: int, directions: int, flags: Sequence[str]) -> None:
    exported = built_in(name, layers, directions)
    cases = [exported.case(T, B, seed=T) for T in (1, 7, 1000) for B in (1, 5)]
    cases += [exported.case(30, 2, resets=True)] if directions == 1 else []
    assert error_of(tmp_path, exported, cases, flags) <= BOUND


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("name", ["lif", "slstm", "indrnn"])
def test_cells_in_python(tmp_path: Path, name: str, directions: int) -> None:
    exported = user_cell(name, directions, heads=2 if name == "slstm" else 1)
    assert error_of(tmp_path, exported, [exported.case(T, B, seed=T) for T in (1, 7, 40) for B in (1, 3)]) <= BOUND


@pytest.mark.slow(seconds=2)
@pytest.mark.parametrize(
    "name", ["leaky", "cornn", "antisymmetric", "alif", "mgu", "ligru", "peephole_lstm", "cifg_lstm"]
)
def test_ready_cells(tmp_path: Path, name: str) -> None:
    exported = user_cell(name, 1, bias="input")
    cases = [exported.case(T, 3, seed=T) for T in (1, 7, 50)] + [exported.case(30, 2, resets=True)]
    assert error_of(tmp_path, exported, cases, FAST) <= BOUND


@prnn.cell(gates=2, recurrent="none", states=("h", "m"), output="y", params={"decay": lambda x: x.uniform_(0, 1)})
def minimal(gx: Any, gh: Any, state: Any, p: Any, inputs: Any) -> dict[str, Tensor]:
    z = torch.sigmoid(gx[0])
    h = (1 - z) * state.h + z * gx[1]
    m = torch.maximum(p.decay * state.m, h)
    return {"h": h, "m": m, "y": torch.where(m > h, h - m, torch.pow(h.abs(), 1.5))}


def test_a_cell_without_recurrent_weights_whose_output_is_no_state(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = prnn.Recurrent(minimal, 5, 8, 2)
    exported = Exported(model, torch.zeros(1, 1, 5), {"h": (2, 1, 8), "m": (2, 1, 8)}, as_dictionary=True)
    assert error_of(tmp_path, exported, [exported.case(9, 2, resets=True)], FAST) <= BOUND
    assert "minimal(8, gates_x, decay_l0, state->h, state->m, y);" in (tmp_path / "net.c").read_text()


@pytest.mark.parametrize("directions", [1, 2])
def test_projections_and_absent_biases(tmp_path: Path, directions: int) -> None:
    exported = built_in("lstm", 2, directions, proj_size=7, bias=False)
    assert error_of(tmp_path, exported, [exported.case(7, 2)]) <= BOUND


def test_a_layer_reads_well(tmp_path: Path) -> None:
    exported = built_in("gru", 1, 1)
    c.write(tmp_path, "net", exported.step, [exported.case(1, 1)])
    source = (tmp_path / "net.c").read_text()
    assert "product(72, 10, weight_ih_l0, bias_ih_l0, input, gates_x);" in source
    assert "gru(24, gates_x, gates_h, state->h);" in source
    assert "const float z = sigmoid_of(gates_x[units + j] + gates_h[units + j]);" in source
    assert "  float h[24]; /* [24] */" in (tmp_path / "net.h").read_text()


# What is refused.


def test_what_is_not_supported_is_named_at_once(tmp_path: Path) -> None:
    class Part(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cumsum(x, -1)

    class Refused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = Part()

        def forward(self, x: Tensor) -> Tensor:
            return self.part(x) + torch.sort(x)[0]

    exported = Exported(Refused(), torch.zeros(1, 1, 4))
    with pytest.raises(UserError, match=r"parts that C cannot: aten.cumsum \(from module .*part\), aten.sort"):
        c.write(tmp_path, "net", exported.step, [])


def test_per_step_inputs_are_refused(tmp_path: Path) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = prnn.Recurrent(cells.zoneout_gru, 4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x, inputs={"zoneout": torch.full((1, 1, 4), 0.1)})[0]

    with pytest.raises(UserError, match="per-step inputs"):
        c.write(tmp_path, "net", Exported(Noisy(), torch.zeros(1, 1, 4)).step, [])


def test_a_layer_without_a_state_of_the_step_is_refused(tmp_path: Path) -> None:
    class Forgetful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = prnn.GRU(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)[0]

    with pytest.raises(UserError, match=r"a recurrent layer \(from module .*\) whose state is not one of the model's"):
        c.write(tmp_path, "net", Exported(Forgetful(), torch.zeros(1, 1, 4)).step, [])


def test_arguments_that_do_not_fit(tmp_path: Path) -> None:
    exported = built_in("gru", 1, 2)
    with pytest.raises(UserError, match="weights='int4': expected one of float32, int8"):
        c.write(tmp_path, "net", exported.step, [], weights="int4")
    with pytest.raises(UserError, match="name='my model'"):
        c.write(tmp_path, "my model", exported.step, [])
    with pytest.raises(UserError, match="resets"):
        c.write(tmp_path, "net", exported.step, [_with_resets(exported.case(4, 2))])
    case = exported.case(4, 2)
    with pytest.raises(UserError, match="a case of 4 frames and 2 streams has an output"):
        c.write(tmp_path, "net", exported.step, [Case(case.input, None, case.states, case.output[1:], case.final)])
    with pytest.raises(UserError, match="the model takes no single tokens"):
        c.write(tmp_path, "net", exported.step, [], vocabulary=c.Vocabulary((b"a",), 0, "char"))


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda command: None)
    with pytest.raises(UserError, match="there is no C compiler"):
        c.compiler()


def _with_resets(case: Case) -> Case:
    return Case(case.input, torch.zeros(case.input.shape[:2], dtype=torch.bool), case.states, case.output, case.final)


# The replay and the build.


@pytest.mark.parametrize("wrong", [1e-3, float("nan")])
def test_the_replay_fails(tmp_path: Path, wrong: float) -> None:
    exported = built_in("gru", 1, 1)
    case = exported.case(7, 2)
    output = case.output.clone()
    output[3, 1, 2] += wrong
    for broken in (Case(case.input, None, case.states, output, case.final), case):
        c.write(tmp_path, "net", exported.step, [case, broken, case])
        found = c.check(tmp_path, "net", BOUND)
        assert (found <= BOUND) == (broken is case)


@pytest.mark.slow(seconds=3)
@pytest.mark.parametrize("make", [detector, characters, lambda: built_in("lstm", 3, 2), lambda: user_cell("slstm", 2)])
def test_sanitizers(tmp_path: Path, make: Any) -> None:
    exported = make()
    for flags in (SANITIZED, (*SANITIZED, "-DPRNN_FAST_MATH")):
        assert error_of(tmp_path, exported, [exported.case(T, 2) for T in (1, 3)], flags) <= BOUND


@pytest.mark.slow(seconds=3)
@pytest.mark.skipif(
    not (shutil.which("aarch64-linux-gnu-gcc") and shutil.which("qemu-aarch64")), reason="no emulated ARM"
)
@pytest.mark.parametrize("make", [detector, characters, lambda: built_in("lstm", 3, 2)])
def test_arm(tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    exported = make()
    monkeypatch.setenv("PRNN_CC", "aarch64-linux-gnu-gcc")
    for flags in (("-static", "-O2"), ("-static", *FAST)):
        cases = [exported.case(T, 2) for T in (1, 7)]
        assert error_of(tmp_path, exported, cases, flags, runner=("qemu-aarch64",)) <= BOUND


def test_the_makefile_builds_and_checks_and_files_are_the_same_again(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        exported = built_in("gru", 1, 1)
        c.write(tmp_path / folder, "net", exported.step, [exported.case(7, 2)])
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["Makefile", "golden.bin", "net.c", "net.h", "replay.c"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)
    environment = {**os.environ, "CC": c.compiler()[0]}
    done = subprocess.run(["make", "-C", tmp_path / "a", "check"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "within the bound" in done.stdout


FUNCTIONS = [
    "exp",
    "expm1",
    "log",
    "log1p",
    "sqrt",
    "sin",
    "cos",
    "tanh",
    "sigmoid",
    "atan",
    "erf",
    "erfc",
    "floor",
    "round",
    "trunc",
    "abs",
]


def test_own_functions(tmp_path: Path) -> None:
    """Those of -DPRNN_FAST_MATH: errors relative to max(1, |y|) where they are said to hold."""
    x = torch.cat(
        [torch.linspace(-30, 30, 6001), torch.linspace(-0.01, 0.01, 401), torch.tensor([-80.0, 80.0, -1e-20])]
    )
    lines = [f'  for (int i = 0; i < n; i++) printf("%.9g\\n", (double){name}_of(x[i]));' for name in FUNCTIONS]
    numbers = ", ".join(f"{float(each)!r}f" for each in x)
    program = "\n".join(
        [
            "#include <stdint.h>",
            "#include <stdio.h>",
            "#define INFINITE (1.0f / 0.0f)",
            "#define NOT_A_NUMBER (0.0f / 0.0f)",
            text.part("functions_fast.c"),
            f"static const float x[] = {{{numbers}}};",
            f"int main(void) {{\n  const int n = {len(x)};",
            *lines,
            "  return 0;\n}",
        ]
    )
    (tmp_path / "f.c").write_text(program)
    subprocess.run([*c.compiler(), *c.STRICT, "-Wno-unused", "-o", tmp_path / "f", tmp_path / "f.c"], check=True)
    printed = subprocess.run([tmp_path / "f"], check=True, capture_output=True, text=True).stdout
    found = torch.tensor([float(line) for line in printed.split()], dtype=torch.float64).reshape(len(FUNCTIONS), -1)
    for name, values in zip(FUNCTIONS, found, strict=True):
        exact = getattr(torch, name)(x.double())
        known = exact.isfinite()
        assert torch.equal(values.isnan(), exact.isnan()), name
        error = ((values - exact).abs() / exact.abs().clamp(min=1))[known].max()
        assert error < 1e-6, (name, float(error))
