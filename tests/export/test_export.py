"""prnn.export: what is written computes what the training code does, and is not written where it does not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import prnn
from prnn import cells
from prnn.errors import UserError
from prnn.export import formats, subject
from prnn.export.golden import cases
from prnn.export.subject import Subject
from prnn.nn import ListRNN, StackRNN
from tests.thinned import thinned

I, H = 5, 7
LAYERS = {
    "rnn_tanh": lambda **options: prnn.RNN(I, H, **options),
    "rnn_relu": lambda **options: prnn.RNN(I, H, nonlinearity="relu", **options),
    "gru": lambda **options: prnn.GRU(I, H, **options),
    "lstm": lambda **options: prnn.LSTM(I, H, **options),
    "projection": lambda **options: prnn.LSTM(I, H, proj_size=3, **options),
    "leaky": lambda **options: prnn.Recurrent(cells.leaky, I, H, **options),
    "alif": lambda **options: prnn.Recurrent(cells.alif, I, H, **options),
}
OTHERS = {
    "torch": lambda: nn.GRU(I, H, 2),
    "rnn cell": lambda: nn.RNNCell(I, H, nonlinearity="relu"),
    "gru cell": lambda: prnn.GRUCell(I, H, bias=False),
    "lstm cell": lambda: prnn.LSTMCell(I, H),
    "stack": lambda: StackRNN(I, H, 2, capacity=9, recurrent=True),
    "list": lambda: ListRNN(I, H, 2, capacity=9),
}
OPTIONS = ({}, {"num_layers": 3, "batch_first": True}, {"bidirectional": True})
onnx = pytest.param(
    "onnx", marks=pytest.mark.skipif(find_spec("onnxruntime") is None, reason="needs pip install 'prnn[export]'")
)


slow_pt2 = pytest.param("pt2", marks=pytest.mark.slow(seconds=10))


class VoiceActivity(nn.Module):
    """A convolution over the features of a frame, a GRU, a probability: frames [B,T,F] to [B,T,1]."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Conv1d(1, 4, kernel_size=5, stride=2)
        self.gru = prnn.GRU(4 * 14, 16, batch_first=True)
        self.head = nn.Linear(16, 1)

    def forward(self, frames, state=None):
        B, T, F = frames.shape
        features = torch.relu(self.front(frames.reshape(B * T, 1, F))).reshape(B, T, -1)
        output, state = self.gru(features, state)
        return torch.sigmoid(self.head(output)), state


class Causal(nn.Module):
    """A convolution over time, whose last inputs are a part of the state; a dictionary of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(I, 6, 3)
        self.lstm = nn.LSTM(6, H)

    def forward(self, x, state=None):
        if state is None:
            state = {"past": x.new_zeros(2, *x.shape[1:]), "lstm": None}
        whole = torch.cat([state["past"], x])
        output, after = self.lstm(self.conv(whole.permute(1, 2, 0)).permute(2, 0, 1), state["lstm"])
        return output, {"past": whole[-2:], "lstm": after}


def folders_in(path: Path) -> list[str]:
    return sorted(each.name for each in path.iterdir())


@pytest.mark.slow(seconds=5)
@pytest.mark.parametrize(
    ("kind", "options", "format"),
    [
        *(
            pytest.param(kind, given, *format.values, marks=format.marks)
            for index, kind in enumerate(LAYERS)
            for given in thinned(OPTIONS, begin=index % 2)
            for format in (onnx, pytest.param("c"))
        ),
        # Of the other graphs: tests/nn/test_exported.py.
        ("alif", OPTIONS[0], "pt2"),
        ("lstm", OPTIONS[1], "pt2"),
        ("lstm", OPTIONS[2], "pt2"),
    ],
    ids=str,
)
def test_layers(kind: str, options: dict, format: str, tmp_path: Path) -> None:
    # A spike that is rounded away changes all that follows; a loop of torch's takes its time.
    frames = 50 if kind == "alif" or format == "pt2" else 1000
    exported = prnn.export(LAYERS[kind](**options), tmp_path / "out", format, frames=frames)
    assert exported.error is not None and exported.error <= 1e-5
    assert exported.carries == ("bidirectional" not in options)
    signature = json.loads((tmp_path / "out" / "model.json").read_text())
    assert signature["input"]["shape"] == (["B", "T", I] if "batch_first" in options else ["T", "B", I])
    names = {"lstm": ["h", "c"], "projection": ["h", "c"], "alif": ["h", "v", "b"]}.get(kind, ["h"])
    assert [(each["input"], each["output"]) for each in signature["states"]] == [(f"{n}0", f"{n}_n") for n in names]


@pytest.mark.parametrize("format", [onnx, slow_pt2, "c"])
@pytest.mark.parametrize("kind", OTHERS)
def test_cells_memories_and_torchs_layers(kind: str, format: str, tmp_path: Path) -> None:
    assert prnn.export(OTHERS[kind](), tmp_path / "out", format).error <= 1e-5


@pytest.mark.parametrize("kind", ["torch", "gru cell"])
def test_the_original_decides_and_not_the_copy(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversion that is wrong is found."""

    def wrong(original: nn.Module) -> nn.Module:
        made = exportable(original)
        with torch.no_grad():
            made.weight_hh_l0.mul_(1.01)
        return made

    exportable = subject._exportable
    monkeypatch.setattr(subject, "_exportable", wrong)
    with pytest.raises(UserError, match="differs from training"):
        prnn.export(OTHERS[kind](), tmp_path / "out", "pt2")


@pytest.mark.parametrize("format", [onnx, slow_pt2, "c", pytest.param("aoti", marks=pytest.mark.slow(seconds=15))])
def test_models(format: str, tmp_path: Path) -> None:
    frames = 1000 if format in ("onnx", "c") else 50
    models = ((VoiceActivity(), torch.randn(2, 4, 32)), (Causal(), torch.randn(4, 2, I)))
    for model, example in models[format == "aoti" :]:  # compiling takes half a minute
        kind = type(model).__name__
        exported = prnn.export(model, tmp_path / kind, format, example=example, frames=frames)
        assert exported.error <= 1e-5 and exported.carries
        assert model.training and next(model.parameters()).requires_grad  # as it was
    states = json.loads((tmp_path / "Causal" / "model.json").read_text())["states"]
    assert [each["input"] for each in states] == ["past0", "lstm_h0", "lstm_c0"]
    assert states[0]["shape"] == [2, "B", I]


def test_the_artefact_runs_in_a_few_lines(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    gru = prnn.GRU(I, H, 2)
    prnn.export(gru, tmp_path / "gru")
    session = onnxruntime.InferenceSession(tmp_path / "gru" / "model.onnx")
    assert [each.shape for each in session.get_inputs()] == [["frames", "streams", I], [2, "streams", H]]
    x, h, outputs = torch.randn(20, 3, I), np.zeros((2, 3, H), np.float32), []
    for piece in x.split(7):
        output, h = session.run(None, {"input": piece.numpy(), "h0": h})
        outputs.append(output)
    with torch.no_grad():
        expected, h_n = gru(x)
    np.testing.assert_allclose(np.concatenate(outputs), expected, atol=1e-6)
    np.testing.assert_allclose(h, h_n, atol=1e-6)


def test_golden_outputs_are_the_training_codes(tmp_path: Path) -> None:
    """Also with the layer's own resets."""
    layer = prnn.LSTM(I, H, 2)
    every = cases(Subject(layer, None), 30)
    assert [case.resets is not None for case in every] == [False, False, True, False]
    assert every[2].resets.any() and every[1].states[0].abs().sum() > 0
    double = prnn.LSTM(I, H, 2).double()
    double.load_state_dict(layer.state_dict())
    for case in every:
        state = tuple(each.double() for each in case.states)
        with torch.no_grad():
            output, (h, c) = double(case.input.double(), state, resets=case.resets)
        torch.testing.assert_close(case.output, output)
        torch.testing.assert_close(case.final, (h, c))


def test_the_replay_runs_again_and_finds_a_wrong_model(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    folder = tmp_path / "lstm"
    prnn.export(prnn.LSTM(I, H), folder, "onnx")

    def replay(bound: str = "1e-5") -> tuple[int, str]:
        # Isolated: neither the checkout nor the current folder can be imported from.
        command = [
            sys.executable,
            "-I",
            "-c",
            "import sys, runpy; sys.modules['prnn'] = None; sys.argv = sys.argv[1:];",
        ]
        command[-1] += "runpy.run_path(sys.argv[0], run_name='__main__')"
        done = subprocess.run([*command, str(folder / "replay.py"), bound], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    status, words = replay()
    assert status == 0 and words.splitlines()[-1].startswith("largest error")
    for way in ("whole", "frame by frame", "in ten pieces", "with resets"):
        assert way in words
    assert replay("1e-9")[0] == 1
    arrays = dict(np.load(folder / "golden.npz"))
    for name, wrong in (("2/output", 1.001), ("3/c_n", 1.001), ("1/h0", 0.0), ("3/output", np.nan)):
        np.savez(folder / "golden.npz", **arrays | {name: arrays[name] * wrong})
        assert replay()[0] == 1, name
    np.savez(folder / "golden.npz", **arrays)
    signature = json.loads((folder / "model.json").read_text())
    signature["states"][0]["initial"][0][0][0] = 0.5  # what a reset sets
    (folder / "model.json").write_text(json.dumps(signature))
    assert replay()[0] == 1


@pytest.mark.parametrize("wrong", ["weight", "nan"])
def test_what_differs_is_not_kept(wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = formats.FORMATS["pt2"]

    def write_wrongly(subject: Subject, given, folder: Path, options: formats.Options) -> None:
        with torch.no_grad():
            weight = subject.single.module.weight_hh_l0
            weight[0, 0] += 1e-3 if wrong == "weight" else torch.nan
        right.write(subject, given, folder, options)

    monkeypatch.setitem(formats.FORMATS, "pt2", right._replace(write=write_wrongly))
    with pytest.raises(UserError, match="differs from training by .* above tolerance=1e-05, and was not kept"):
        prnn.export(prnn.GRU(I, H), tmp_path / "out", "pt2")
    assert folders_in(tmp_path) == []
    prnn.export(prnn.GRU(I, H), tmp_path / "out", "pt2", check=False)
    assert folders_in(tmp_path / "out") == ["golden.npz", "model.json", "model.pt2", "replay.py"]


class Mean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = prnn.GRU(I, H), nn.Linear(H, 3)

    def forward(self, x):
        return self.head(self.gru(x)[0].mean(0))


class Layer(nn.Module):
    """A GRU on what ``before`` makes of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = prnn.GRU(I, H)

    def before(self, x):
        return x

    def after(self, output, state):
        return output, state

    def forward(self, x, state=None):
        return self.after(*self.gru(self.before(x), state))


class Ahead(Layer):
    def before(self, x):
        return x - x.flip(0)


class Noisy(Layer):
    def before(self, x):
        return x + torch.randn_like(x)


class Branching(Layer):
    def before(self, x):
        return 2 * x if x.shape[0] > 100 else x


class Growing(Layer):
    def forward(self, x, state=None):
        output, h = self.gru(x, None if state is None else state[0])
        return output, (h, output, h)


def test_whole_sequences_only(tmp_path: Path) -> None:
    for model, why in ((Mean(), "returns no state"), (Ahead(), "in several calls give another output than in one")):
        exported = prnn.export(model, tmp_path / type(model).__name__, "pt2", example=torch.randn(4, 2, I))
        assert not exported.carries and why in exported.reason and "whole sequences only" in str(exported)


class Mixing(nn.Module):
    def forward(self, x):
        return x - x.mean(0, keepdim=True)


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = prnn.GRU(I, H)

    def forward(self, x):
        return self.gru(x)[0]


class Bessel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = prnn.GRU(I, H)

    def forward(self, x, state=None):
        output, state = self.gru(torch.special.bessel_j0(x), state)
        return torch.special.i1(output), state


class Fixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = prnn.GRU(I, H)

    def forward(self, x, state=None):
        if x.shape[0] == 3:
            x = x + 0
        return self.gru(x, state)


def _stateful(x, state=None):
    return x, "state"


MISTAKES: dict[str, tuple[Callable, dict, str]] = {
    "format": (lambda: prnn.GRU(I, H), {"format": "tflite"}, "format='tflite': expected one of onnx, pt2, aoti, c"),
    "a file": (lambda: prnn.GRU(I, H), {"path": "gru.onnx"}, "gru.onnx: expected a folder to make, such as .*gru"),
    "frames": (lambda: prnn.GRU(I, H), {"frames": 0}, "frames=0: expected a number of frames from 1"),
    "tolerance": (lambda: prnn.GRU(I, H), {"tolerance": 2}, "tolerance=2: expected a fraction"),
    "no module": (lambda: 3, {}, "takes a torch.nn.Module, got int"),
    "no example": (lambda: nn.Sequential(nn.Linear(2, 3)), {}, "Sequential needs example="),
    "example": (lambda: nn.Linear(2, 3), {"example": 3}, "example must be an input, .*, got a int"),
    "name": (lambda: prnn.GRU(I, H), {"name": "my model"}, "name='my model': expected letters, digits"),
    "weights": (lambda: prnn.GRU(I, H), {"weights": "int8"}, "weights=int8 is for format=c, got format=pt2"),
    "whole in C": (
        Mean,
        {"example": torch.randn(3, 2, I), "format": "c"},
        "returns one output for all frames, and C has one",
    ),
    "ahead in C": (Ahead, {"example": torch.randn(3, 2, I), "format": "c"}, "cannot be called frame by frame, as C is"),
    "mixing in C": (Mixing, {"example": torch.randn(3, 2, I), "format": "c"}, "Mixing cannot be called frame by frame"),
    "no state in C": (Tagger, {"example": torch.randn(3, 2, I), "format": "c"}, r"return \(output, state\)"),
    "a file's name": (lambda: prnn.GRU(I, H), {"name": "replay", "format": "c"}, "name=replay: expected another"),
    "random": (Noisy, {"example": torch.randn(3, 2, I)}, "Noisy computes something else when it is called again"),
    "a branch": (Branching, {"example": torch.randn(3, 2, I)}, "Branching has a graph for some T and B alone"),
    "growing state": (Growing, {"example": torch.randn(3, 2, I)}, "the state 'h_1' of Growing is .* of one frame more"),
    "tolerance's type": (lambda: prnn.GRU(I, H), {"tolerance": "x"}, "tolerance=x: expected a fraction"),
    "path": (lambda: prnn.GRU(I, H), {"path": "a\0b"}, "path=.* cannot be written|expected the name of a folder"),
    "long path": (lambda: prnn.GRU(I, H), {"path": "a" * 300}, "cannot be written .File name too long"),
    "parents": (lambda: nn.Linear(2, 3), {"path": "new/folder/out"}, "Linear needs example="),
    "not finite": (
        lambda: nn.Linear(2, 3).apply(lambda m: m.weight.data.fill_(torch.nan)),
        {"example": torch.ones(3, 2, 2)},
        "computes something else|not finite",
    ),
    "another example": (
        lambda: nn.Linear(2, 3),
        {"example": torch.zeros(3, 2, 4)},
        r"Linear fails on an input \[3, 2, 4\] of float32 \(RuntimeError: ",
    ),
    "state": (
        lambda: prnn.GRU(I, H),
        {"example": (torch.zeros(3, 2, I), torch.zeros(1, 2, 3))},
        r"state 'h' .* \[1, 2, 3\]",
    ),
    "per-step inputs": (lambda: prnn.Recurrent(cells.zoneout_lstm, I, H), {}, "inputs lacks"),
    "fixed T": (Fixed, {"example": torch.zeros(3, 2, I)}, r"Fixed has no graph of any T and B \(a size is fixed to 3"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_leaves_nothing(mistake: str, tmp_path: Path) -> None:
    make, options, words = MISTAKES[mistake]
    options = {"format": "pt2"} | options
    path = tmp_path / options.pop("path", "out")
    with pytest.raises(UserError, match=words) as raised:
        prnn.export(make(), path, **options)
    assert "\n" not in str(raised.value)
    assert folders_in(tmp_path) == []


def test_paths(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("")
    for path, words in (
        ("there", "exists: give the name of a new folder"),
        ("file", "exists"),
        ("file/out", "cannot be"),
    ):
        with pytest.raises(UserError, match=words):
            prnn.export(prnn.GRU(I, H), tmp_path / path, "pt2")
    if os.geteuid():
        (tmp_path / "there").chmod(0o500)
        with pytest.raises(UserError, match="Permission denied"):
            prnn.export(prnn.GRU(I, H), tmp_path / "there" / "out", "pt2")
    assert folders_in(tmp_path) == ["file", "there"]
    shutil.rmtree(tmp_path / "there")
    prnn.export(prnn.GRU(I, H), tmp_path / "new" / "there", "pt2", check=False)
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "new" / "there").stat().st_mode & 0o777 == 0o777 & ~mask


def test_all_operators_that_onnx_has_not_are_named(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    with pytest.raises(UserError) as raised:
        prnn.export(Bessel(), tmp_path / "out", example=torch.randn(3, 2, I))
    assert "aten.special_bessel_j0" in str(raised.value) and "aten.special_i1" in str(raised.value)
    assert folders_in(tmp_path) == []


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    with pytest.raises(UserError, match=r"pip install 'prnn\[export\]' \(onnxscript is missing\)"):
        prnn.export(prnn.GRU(I, H), tmp_path / "out", "onnx")
    assert folders_in(tmp_path) == []


def test_a_state_that_is_not_zero_at_first(tmp_path: Path) -> None:
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.h0 = prnn.GRU(I, H), nn.Parameter(torch.randn(1, 1, H))

        def forward(self, x, state=None):
            return self.gru(x, self.h0.expand(-1, x.shape[1], -1).contiguous() if state is None else state)

    model, x = Learned(), torch.randn(3, 2, I)
    with pytest.raises(UserError, match=r"computes something else than with one of zeros: give example=\(input, state"):
        prnn.export(model, tmp_path / "out", "pt2", example=x)
    example = (x, model.h0.detach().expand(-1, 2, -1))
    assert prnn.export(model, tmp_path / "out", "pt2", example=example).error <= 1e-5
    initial = json.loads((tmp_path / "out" / "model.json").read_text())["states"][0]["initial"]
    np.testing.assert_allclose(initial, model.h0.detach().numpy(), rtol=1e-6)


class Tutorial(nn.Module):
    """Makes float32 zeros of its own, and one-hot vectors of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(11, H)

    def forward(self, tokens, state=None):
        if state is None:
            state = torch.zeros(1, tokens.size(1), H)
        return self.gru(torch.nn.functional.one_hot(tokens, 11).float(), state)


class Reordered(Layer):
    """A dictionary whose keys come in another order at later calls, and hold a value that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = prnn.LSTM(I, H)

    def forward(self, x, state=None):
        if state is None:
            output, (h, c) = self.lstm(x)
            return output, {"h": h, "c": c, "step": None}
        output, (h, c) = self.lstm(x, (state["h"], state["c"]))
        return output, {"c": c, "h": h, "step": state["step"]}


class InPlace(Layer):
    def forward(self, output, state=None):
        made, h = self.gru(output, state)
        return made, h if state is None else state.copy_(h)


@pytest.mark.parametrize("format", [onnx, slow_pt2, "c"])
def test_models_as_people_write_them(format: str, tmp_path: Path) -> None:
    for kind in (Tutorial, Reordered, InPlace):
        example = torch.arange(11)[:, None] if kind is Tutorial else torch.randn(3, 2, I)
        exported = prnn.export(kind(), tmp_path / kind.__name__, format, example=example)
        assert exported.error <= 1e-5 and exported.carries, kind
        assert (exported.float32_error is None) == (kind is Tutorial)


def test_programs_settings_do_not_matter(tmp_path: Path) -> None:
    layer = prnn.GRU(I, H)
    with prnn.backend("cpu"), torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        torch.set_default_dtype(torch.float64)
        try:
            assert prnn.export(layer, tmp_path / "out", "pt2").error <= 1e-5
            assert torch.get_default_dtype() == torch.float64
        finally:
            torch.set_default_dtype(torch.float32)


def test_a_convolution_over_time_of_whole_sequences(tmp_path: Path) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.gru = nn.Conv1d(I, 6, 5), prnn.GRU(6, H, bidirectional=True)

        def forward(self, x):
            return self.gru(self.conv(x.permute(1, 2, 0)).permute(2, 0, 1))[0]

    exported = prnn.export(Both(), tmp_path / "out", "pt2", example=torch.randn(9, 2, I))
    assert exported.error <= 1e-5 and not exported.carries
    output = json.loads((tmp_path / "out" / "model.json").read_text())["output"]
    assert output["shape"] == ["frames of the output", "B", 2 * H]
