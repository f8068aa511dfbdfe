"""torch.export of layers: any T and B, ATen operators alone after run_decompositions, ONNX's own operators."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.export import Dim
from torch.utils import _pytree as pytree

import prnn
from prnn import cells
from prnn.nn import ListRNN, StackRNN
from tests.thinned import thinned

I, H = 5, 6
LAYERS = {
    "rnn_tanh": lambda **options: prnn.RNN(I, H, **options),
    "rnn_relu": lambda **options: prnn.RNN(I, H, nonlinearity="relu", **options),
    "gru": lambda **options: prnn.GRU(I, H, **options),
    "lstm": lambda **options: prnn.LSTM(I, H, **options),
    "projection": lambda **options: prnn.LSTM(I, H, proj_size=3, **options),
    "leaky": lambda **options: prnn.Recurrent(cells.leaky, I, H, **options),
    "alif": lambda **options: prnn.Recurrent(cells.alif, I, H, **options),
    "ligru": lambda **options: prnn.Recurrent(cells.ligru, I, H, **options),
}
OPTIONS = {
    "one": {},
    "both directions": {"num_layers": 2, "bidirectional": True},
    "no bias": {"bias": False},
}


class Called(nn.Module):
    """A model that holds a layer, whose state is a tuple of tensors."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x, state, lengths=None, resets=None):
        given = {name: value for name, value in (("lengths", lengths), ("resets", resets)) if value is not None}
        output, final = self.layer(x, state[0] if len(state) == 1 else state, **given)
        return output, *pytree.tree_leaves(final)


def arguments(layer: nn.Module, T: int, B: int, lengths: bool = False, resets: bool = False):
    """An input and a state that is not zero, with the dynamic sizes of each."""
    x = torch.randn(T, B, layer.input_size)
    if isinstance(layer, (StackRNN, ListRNN)):
        state = layer(x)[1]
    else:
        with torch.no_grad():
            state = tuple(torch.randn_like(each) for each in pytree.tree_leaves(layer(x)[1]))
    of = torch.randint(0, T + 1, (B,)) if lengths else None
    at = torch.rand(T, B) < 0.4 if resets else None
    both = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    sizes = (
        both,
        tuple({1: Dim.DYNAMIC} for _ in state),
        {0: Dim.DYNAMIC} if lengths else None,
        both if resets else None,
    )
    return (x, tuple(state), of, at), sizes


def program_of(model: nn.Module, layer: nn.Module, strict: bool, **options: bool):
    given, sizes = arguments(layer, 3, 2, **options)
    return torch.export.export(model, given, dynamic_shapes=sizes, strict=strict)


def operators(program) -> set[str]:
    """Those of all graphs of a program."""
    graphs = [module.graph for module in program.graph_module.modules() if hasattr(module, "graph")]
    return {str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_function"}


def check(program, model: nn.Module, layer: nn.Module, **options: bool) -> None:
    """Other sizes than those of the example."""
    for T, B in ((1, 1), (7, 5)):
        given, _ = arguments(layer, T, B, **options)
        with torch.no_grad():
            for found, expected in zip(program.module()(*given), model(*given), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow(seconds=6)
@pytest.mark.parametrize(
    ("kind", "options", "strict"),
    [
        (kind, *given)
        for index, kind in enumerate(LAYERS)
        for given in thinned([("one", False), ("both directions", True), ("no bias", False)], begin=index % 2)
    ],
)
def test_any_sizes_and_aten_operators(kind: str, options: str, strict: bool) -> None:
    layer = LAYERS[kind](**OPTIONS[options]).eval()
    model = Called(layer)
    program = program_of(model, layer, strict)
    layers = [node for node in program.graph.nodes if node.target == torch.ops.prnn.exported_layer.default]
    assert len(layers) == layer.num_layers
    check(program, model, layer)
    decomposed = program.run_decompositions()
    assert not any("prnn" in name for name in operators(decomposed))
    assert "scan" in operators(decomposed)
    check(decomposed, model, layer)


@pytest.mark.slow(seconds=6)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *(("gru", given) for given in ({"lengths": True}, {"resets": True})),
        *((kind, {"lengths": True, "resets": True}) for kind in ("gru", "projection", "alif")),
    ],
    ids=str,
)
def test_lengths_and_resets(kind: str, options: dict[str, bool]) -> None:
    layer = LAYERS[kind](num_layers=2, bidirectional=True).eval()
    model = Called(layer)
    program = program_of(model, layer, False, **options)
    check(program, model, layer, **options)
    check(program.run_decompositions(), model, layer, **options)


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("kind", [StackRNN, ListRNN])
def test_networks_with_memories(kind: type, recurrent: bool) -> None:
    layer = kind(I, H, 2, capacity=9, recurrent=recurrent).eval()
    model = Called(layer)
    program = program_of(model, layer, False)
    check(program, model, layer)
    decomposed = program.run_decompositions()
    assert not any("prnn" in name for name in operators(decomposed))
    check(decomposed, model, layer)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    layer = prnn.LSTM(I, H).to(dtype).eval()
    x = torch.randn(3, 2, I, dtype=dtype)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},))
    x = torch.randn(6, 4, I, dtype=dtype)
    tolerance = {torch.float64: 1e-12, torch.bfloat16: 1e-2}[dtype]
    with torch.no_grad():
        for each in (program, program.run_decompositions()):
            torch.testing.assert_close(each.module()(x), layer(x), rtol=tolerance, atol=tolerance)


def test_a_recorded_graph_runs_the_kernels_and_trains() -> None:
    layer, x = prnn.GRU(I, H), torch.randn(3, 2, I)
    with torch.no_grad():
        graph = torch.export.export(layer, (x,)).module()
    with torch.profiler.profile() as profile:
        graph(x)[0].square().sum().backward()
    assert any("prnn_native" in event.key or "prnn::" in event.key for event in profile.key_averages())
    layer(x)[0].square().sum().backward()
    for (name, found), (_, expected) in zip(graph.named_parameters(), layer.named_parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, msg=name)


def test_a_recorded_graph_compiles_with_the_kernels() -> None:
    for layer in (prnn.GRU(I, H), StackRNN(I, H, 2, capacity=9)):
        layer.eval()
        x, calls = torch.randn(3, 2, I), []

        def backend(graph, inputs, calls=calls):
            calls.extend(str(node.target) for node in graph.graph.nodes)
            return graph

        graph = torch.export.export(layer, (x,)).module()
        compiled = torch.compile(graph, backend=aot_autograd(fw_compiler=backend, inference_compiler=backend))
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), layer(x), rtol=1e-5, atol=1e-6)
        assert not any("scan" in name for name in calls)
        assert isinstance(layer, StackRNN) or "prnn.layer.default" in calls


def test_other_threads_run_their_layers_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.export's flag holds for the process."""
    for layer in (prnn.GRU(I, H), StackRNN(I, H, 2, capacity=9)):
        x = torch.randn(3, 2, I)
        expected = layer(x)[0]
        monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
        torch.testing.assert_close(layer(x)[0], expected)
        monkeypatch.undo()


def test_a_saved_program_loads_without_prnn(tmp_path: Path) -> None:
    layer, x = prnn.LSTM(I, H, 2), torch.randn(4, 3, I)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},))
    torch.export.save(program.run_decompositions(), tmp_path / "lstm.pt2")
    x = torch.randn(9, 2, I)
    with torch.no_grad():
        torch.save((x, layer(x)), tmp_path / "expected.pt")
    code = f"""
import sys, torch
sys.modules["prnn"] = None  # cannot be imported
x, expected = torch.load({str(tmp_path / "expected.pt")!r})
found = torch.export.load({str(tmp_path / "lstm.pt2")!r}).module()(x)
torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def onnx_of(model: nn.Module, given, sizes, path: Path):
    """(the operators of the model, a function that runs it)."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'prnn[export]'")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install 'prnn[export]'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(model, given, dynamo=True, dynamic_shapes=sizes, verbose=False)
    program.save(path)
    session = onnxruntime.InferenceSession(path)
    names = [each.name for each in session.get_inputs()]

    def run(given):
        tensors = [each.numpy() for each in pytree.tree_leaves(given) if each is not None]
        return [torch.from_numpy(each) for each in session.run(None, dict(zip(names, tensors, strict=True)))]

    return {node.op_type for node in program.model.graph}, run


@pytest.mark.slow(seconds=8)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, given) for kind in ("rnn_relu", "gru", "lstm") for given in ({}, {"lengths": True}, {"resets": True})),
        ("alif", {"lengths": True}),
    ],
    ids=str,
)
def test_a_users_model_as_onnx(kind: str, options: dict[str, bool], tmp_path: Path) -> None:
    """With a plain torch.onnx.export."""
    layer = LAYERS[kind](num_layers=2, bidirectional=True).eval()
    model = Called(layer)
    given, sizes = arguments(layer, 3, 2, **options)
    found, run = onnx_of(model, given, sizes, tmp_path / "model.onnx")
    own = {"rnn_tanh": "RNN", "rnn_relu": "RNN", "gru": "GRU", "lstm": "LSTM"}.get(kind)
    assert (own if own and not options.get("resets") else "Scan") in found
    assert own is None or options.get("resets") or "Scan" not in found
    for T, B in ((1, 1), (7, 5)):
        given, _ = arguments(layer, T, B, **options)
        with torch.no_grad():
            for a, b in zip(run(given), model(*given), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)


def test_a_sample_without_steps_keeps_its_state_in_onnx(tmp_path: Path) -> None:
    layer = prnn.LSTM(I, H, bidirectional=True).eval()
    model = Called(layer)
    (x, state, _, _), sizes = arguments(layer, 4, 3, lengths=True)
    given = (x, state, torch.tensor([4, 0, 2]), None)
    _, run = onnx_of(model, given, sizes, tmp_path / "model.onnx")
    with torch.no_grad():
        for a, b in zip(run(given), model(*given), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.slow(seconds=10)
@pytest.mark.parametrize("kind", ["gru", "alif"])
def test_aotinductor(kind: str, tmp_path: Path) -> None:
    layer = LAYERS[kind](num_layers=2).eval()
    model = Called(layer)
    with torch.no_grad():
        program = program_of(model, layer, False)
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
        run = torch._inductor.aoti_load_package(path)
        for T, B in ((1, 1), (7, 5)):
            given, _ = arguments(layer, T, B)
            for a, b in zip(run(*given), model(*given), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
