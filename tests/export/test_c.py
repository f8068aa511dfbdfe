"""``prnn.export.c``: the C of models, compiled and compared with their training code in float64."""

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
from torch.nn import functional as F

import prnn
from prnn import cells
from prnn.errors import UserError
from prnn.export import c
from prnn.export.c import text
from prnn.export.c.constants import quantised
from prnn.export.program import Case
from tests.export.models import Exported

BOUND = 1e-5  # of the largest entry
FAST = ("-O2", "-DPRNN_FAST_MATH")
SANITIZED = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
BUILT_IN = {"rnn_tanh": prnn.RNN, "gru": prnn.GRU, "lstm": prnn.LSTM}


def built_in(name: str, layers: int, directions: int, H: int = 24, **options: Any) -> Exported:
    torch.manual_seed(0)
    I, both = 10, directions == 2
    if name == "rnn_relu":
        options["nonlinearity"] = "relu"
    model = BUILT_IN.get(name, prnn.RNN)(I, H, layers, bidirectional=both, **options)
    P = options.get("proj_size") or H
    shapes = {"h": (layers * directions, 1, P)} | ({"c": (layers * directions, 1, H)} if name == "lstm" else {})
    return Exported(model, torch.zeros(1, 1, I), shapes)


def user_cell(name: str, directions: int, **options: Any) -> Exported:
    torch.manual_seed(0)
    definition = getattr(cells, name)
    model = prnn.Recurrent(definition, 5, 8, 2, bidirectional=directions == 2, **options)
    with torch.no_grad():
        for parameter in model.parameters():  # not all units alike
            parameter.mul_(1 + 0.1 * torch.rand_like(parameter))
    shapes = dict.fromkeys(definition.signature.states, (2 * directions, 1, 8))
    exported = Exported(model, torch.zeros(1, 1, 5), shapes, as_dictionary=True)
    exported.scale = 0.0 if name == "slstm" else 1.0  # whose h is a ratio of states, the second positive
    return exported


def error_of(
    folder: Path, exported: Exported, cases: Sequence[Case], flags: Sequence[str] = ("-O2",), **options: Any
) -> float:
    runner = options.pop("runner", ())
    c.write(folder, "net", exported.step, cases, **options)
    return c.check(folder, "net", BOUND, flags, runner)


class Detector(nn.Module):
    """As of voice activity: convolutions over frequency, a GRU, a probability."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv1d(1, 6, 5, stride=2, padding=2), nn.BatchNorm1d(6)
        self.second = nn.Conv1d(6, 12, 3, padding=2, dilation=2, groups=3)
        self.layer_norm, self.gru, self.out = nn.LayerNorm(12), prnn.GRU(12 * 20, 64), nn.Linear(64, 1)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        T, B, bands = x.shape
        y = torch.relu(self.norm(self.first(x.reshape(T * B, 1, bands))))
        y = F.gelu(self.layer_norm(self.second(y).transpose(1, 2)))
        output, h = self.gru(y.reshape(T, B, -1), h)
        return torch.sigmoid(self.out(output)).squeeze(-1), h


class Mixed(nn.Module):
    """Operators of most kinds; its state is a buffer of past frames and a running mean, no layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.weight = nn.Conv2d(2, 3, (2, 3), stride=(1, 2), padding=(1, 0)), nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        past, mean = state  # [1,B,8], [1,B,8]
        T, B, _ = x.shape
        outputs = []
        for t in range(T):
            frame = x[t]
            mean = 0.9 * mean + 0.1 * frame
            planes = torch.stack([frame.view(B, 2, 4), past[0].view(B, 2, 4)], 1)
            y = self.conv(F.pad(planes, (1, 2))).flatten(1)
            attention = torch.softmax(frame.view(B, 2, 4) @ self.weight @ past[0].view(B, 2, 4).transpose(1, 2), -1)
            top = torch.amax(y, 1, keepdim=True) - y.mean(1, keepdim=True)
            parts = [y - top, torch.log_softmax(y, -1), attention.flatten(1), frame[:, [3, 0]]]
            parts += [torch.where(frame > 0, frame.clamp(max=0.5), F.elu(frame)), frame.view(B, 2, 4).sum(1)]
            parts += [F.glu(frame, -1), (frame.abs() + 1).log() * torch.floor(frame * 3), mean[0].sin()]
            outputs.append(torch.cat(parts, 1))
            past = frame.unsqueeze(0)
        return torch.stack(outputs), (past, mean)


class Pooled(nn.Module):
    """Convolutions, transposed ones, pooling and normalisation, of each frame."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(2, 4, 3, stride=(2, 1), padding=1)
        self.up = nn.ConvTranspose2d(4, 6, (3, 2), stride=2, padding=(1, 0), output_padding=(1, 0), groups=2)
        self.line = nn.ConvTranspose1d(6, 3, 3, stride=2, dilation=2, padding=1)
        self.norm, self.c = nn.GroupNorm(3, 6), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        T, B, _ = x.shape
        y = self.up(self.down(x.reshape(T * B, 2, 6, 5)))
        y = self.norm(y)
        z = F.max_pool2d(y, (2, 3), stride=2, padding=(1, 1)) + F.avg_pool2d(
            y, (2, 3), 2, (1, 1), count_include_pad=False
        )
        z = F.avg_pool2d(z, 2) * y.var((2, 3), keepdim=True)
        line = self.line(z.flatten(2)).flip(1, 2) * self.c[:, None]
        pooled = F.max_pool1d(line, 2) + line.var(1, correction=0).repeat(1, 2)[:, None, : line.shape[2] // 2]
        return torch.cat([z.flatten(1), pooled.flatten(1), F.avg_pool1d(line, 3, padding=1).flatten(1)], 1).view(
            T, B, -1
        )


class Characters(nn.Module):
    """An embedding, layers, a linear decoder."""

    def __init__(self, V: int, H: int = 32) -> None:
        super().__init__()
        self.embedding, self.recurrent, self.decoder = nn.Embedding(V, 16), prnn.LSTM(16, H, 2), nn.Linear(H, V)

    def forward(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        output, state = self.recurrent(self.embedding(tokens), state)
        return self.decoder(output), state


def detector() -> Exported:
    torch.manual_seed(0)
    model = Detector()
    with torch.no_grad():
        assert model.norm.running_mean is not None and model.norm.running_var is not None
        model.norm.running_mean.normal_(), model.norm.running_var.uniform_(0.5, 2)
    return Exported(model, torch.zeros(1, 1, 40), {"h": (1, 1, 64)})


def characters(V: int = 20) -> Exported:
    torch.manual_seed(0)
    exported = Exported(Characters(V), torch.zeros(1, 1, dtype=torch.int64), {"h": (2, 1, 32), "c": (2, 1, 32)})
    exported.vocabulary = V
    return exported


# Layers.


@pytest.mark.slow(seconds=60)
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("name", ["rnn_tanh", "rnn_relu", "gru", "lstm"])
@pytest.mark.parametrize("flags", [("-O2",), FAST])
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


@pytest.mark.slow(seconds=30)
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


# Models.


def test_a_detector(tmp_path: Path) -> None:
    exported = detector()
    cases = [exported.case(T, B, seed=T) for T in (1, 7, 30) for B in (1, 5)] + [exported.case(20, 2, resets=True)]
    assert error_of(tmp_path, exported, cases) <= BOUND
    assert c.check(tmp_path, "net", BOUND, FAST) <= BOUND


def test_operators_of_most_kinds_and_a_state_of_no_layer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    exported = Exported(Mixed(), torch.zeros(1, 1, 8), {"past": (1, 1, 8), "mean": (1, 1, 8)})
    assert error_of(tmp_path, exported, [exported.case(7, 3)]) <= BOUND
    assert c.check(tmp_path, "net", BOUND, FAST) <= BOUND


def test_convolutions_pooling_and_normalisation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    exported = Exported(Pooled(), torch.zeros(1, 1, 60))
    assert error_of(tmp_path, exported, [exported.case(3, 2)], FAST) <= BOUND


def test_temporaries_that_are_large_stand_in_the_state(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 9000), nn.Tanh(), nn.Linear(9000, 3))
    exported = Exported(model, torch.zeros(1, 1, 8))
    assert error_of(tmp_path, exported, [exported.case(3, 2)]) <= BOUND
    assert "scratch[" in (tmp_path / "net.h").read_text()


def test_swapped_and_kept_states(tmp_path: Path) -> None:
    class Swapping(nn.Module):
        def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
            a, b, kept = state
            outputs = []
            for t in range(len(x)):
                outputs.append(x[t] + a[0] * kept[0])
                a, b = b, a
            return torch.stack(outputs), (a, b, kept)

    exported = Exported(Swapping(), torch.zeros(1, 1, 4), dict.fromkeys(("a", "b", "double"), (1, 1, 4)))
    assert error_of(tmp_path, exported, [exported.case(5, 2)]) <= BOUND
    assert "double_2[4]" in (tmp_path / "net.h").read_text()


def test_two_layers_that_begin_with_the_same_state(tmp_path: Path) -> None:
    class Sharing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = prnn.GRU(4, 4), prnn.GRU(4, 4)

        def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            outputs = []
            for t in range(len(x)):
                y, new = self.first(x[t : t + 1], h)
                z, h = self.second(y, h)
                outputs.append(y + z + new)
            return torch.cat(outputs), h

    torch.manual_seed(0)
    exported = Exported(Sharing(), torch.zeros(1, 1, 4), {"h": (1, 1, 4)})
    assert error_of(tmp_path, exported, [exported.case(5, 2)]) <= BOUND


def test_text_is_generated(tmp_path: Path) -> None:
    exported = characters()
    with torch.no_grad():  # a text that depends on each token
        for parameter in exported.flat.parameters():
            parameter.mul_(4)
    exported = Exported(exported.flat.model, exported.x, exported.shapes)
    exported.vocabulary = 20
    pieces = (*(bytes([97 + i]) for i in range(17)), b"\n", b"ab", b"\xc3\xa9")
    vocabulary = c.Vocabulary(pieces, 17, "char")
    assert error_of(tmp_path, exported, [exported.case(12, 2)], vocabulary=vocabulary) <= BOUND
    subprocess.run(["make", "-C", tmp_path, "generate", f"CC={c.compiler()[0]}"], check=True, capture_output=True)

    def run(*arguments: str) -> bytes:
        return subprocess.run([tmp_path / "generate", *arguments], check=True, capture_output=True).stdout

    # The most probable token each time, after the longest pieces of the prompt: "ab" is one.
    tokens, expected = [18, 2], b"abc"
    model = exported.flat.model
    with torch.no_grad():
        logits, state = model(torch.tensor(tokens)[:, None])
        for _ in range(20):
            token = int(logits[-1, 0].argmax())
            expected += pieces[token]
            logits, state = model(torch.tensor([[token]]), state)
    assert run("abc", "20", "0") == expected + b"\n"
    assert run("abc", "30", "1.5", "5", "3") == run("abc", "30", "1.5", "5", "3") != run("abc", "30", "1.5", "5", "4")


# Weights of 8 bits.


def test_rows_are_rounded_to_the_nearest_of_255_numbers() -> None:
    matrix = torch.cat([torch.randn(5, 9) * torch.tensor([[1e-6], [1], [1], [30], [2]]), torch.zeros(1, 9)])
    scales, whole = quantised(matrix)
    assert torch.equal(whole, whole.round()) and int(whole.abs().max()) == 127
    largest = matrix.abs().amax(1, keepdim=True)
    assert ((whole * scales.unsqueeze(1) - matrix).abs() <= largest / 254 * 1.0001).all()


def test_weights_of_8_bits_are_those_of_the_rounded_model(tmp_path: Path) -> None:
    exported = characters()
    rounded = characters()
    with torch.no_grad():
        for name, parameter in rounded.flat.named_parameters():
            if parameter.dim() > 1 and "bias" not in name:
                scales, whole = quantised(parameter)
                parameter.copy_(whole * scales.unsqueeze(1))
    assert error_of(tmp_path, exported, [rounded.case(40, 2)], weights="int8") <= BOUND
    c.write(tmp_path, "net", exported.step, [exported.case(40, 2)], weights="int8")
    assert 1e-4 < c.check(tmp_path, "net", BOUND) < 0.05  # of rounding
    assert "static const int8_t decoder_weight" in (tmp_path / "net.c").read_text()


@pytest.mark.parametrize("make", [detector, lambda: user_cell("slstm", 2, heads=2)])
def test_weights_of_8_bits_of_convolutions_and_heads(tmp_path: Path, make: Any) -> None:
    exported = make()
    assert 1e-5 < error_of(tmp_path, exported, [exported.case(10, 2)], weights="int8") < 0.05


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

    with pytest.raises(UserError, match=r"prnn.layer, whose layer begins each frame with the same state .*from module"):
        c.write(tmp_path, "net", Exported(Forgetful(), torch.zeros(1, 1, 4)).step, [])


def test_arguments_that_do_not_fit(tmp_path: Path) -> None:
    exported = built_in("gru", 1, 2)
    with pytest.raises(UserError, match="weights='int4': expected one of float32, int8"):
        c.write(tmp_path, "net", exported.step, [], weights="int4")
    with pytest.raises(UserError, match="name='my model'"):
        c.write(tmp_path, "my model", exported.step, [])
    with pytest.raises(UserError, match="resets"):
        c.write(tmp_path, "net", exported.step, [_with_resets(exported.case(4, 2))])
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


@pytest.mark.slow(seconds=20)
@pytest.mark.parametrize("make", [detector, characters, lambda: built_in("lstm", 3, 2), lambda: user_cell("slstm", 2)])
def test_sanitizers(tmp_path: Path, make: Any) -> None:
    exported = make()
    for flags in (SANITIZED, (*SANITIZED, "-DPRNN_FAST_MATH")):
        assert error_of(tmp_path, exported, [exported.case(T, 2) for T in (1, 3)], flags) <= BOUND


@pytest.mark.slow(seconds=20)
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
