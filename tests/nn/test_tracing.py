"""What else looks into a model: torch.fx, torch.jit.trace and script, torch.compile, quantisation."""

from __future__ import annotations

import importlib
import io
import subprocess
import sys
import threading
import time

import pytest
import torch
from torch import nn
from torch.ao import quantization
from torch.ao.quantization import quantize_fx

import prnn
from prnn.errors import UserError
from prnn.importing import when_imported

MODULES = ("RNN", "GRU", "LSTM")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated"),
    pytest.mark.filterwarnings("ignore:.*torch.ao.quantization:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*quantize_per_tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:Converting a tensor to a Python:torch.jit.TracerWarning"),
]


class Tagger(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.rnn = getattr(prnn, kind)(5, 6, **options)
        self.head = nn.Linear(12 if options.get("bidirectional") else 6, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


def saved_and_loaded(compiled):
    buffer = io.BytesIO()
    torch.jit.save(compiled, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}])
@pytest.mark.parametrize("kind", MODULES)
def test_jit_trace_of_any_sizes_without_prnns_operators(kind, options):
    model, x = Tagger(kind, **options).eval(), torch.randn(7, 3, 5)
    loaded = saved_and_loaded(torch.jit.trace(model, torch.randn(4, 2, 5)))
    assert "prnn::" not in str(loaded.inlined_graph)
    torch.testing.assert_close(loaded(x), model(x))
    alone = torch.jit.trace(model.rnn, torch.randn(4, 2, 5))
    torch.testing.assert_close(alone(x), model.rnn(x))


def test_jit_trace_of_lengths():
    module, x = prnn.GRU(5, 6), torch.randn(4, 2, 5)

    class WithLengths(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = module

        def forward(self, x, lengths):
            return self.rnn(x, lengths=lengths)

    traced = saved_and_loaded(torch.jit.trace(WithLengths(), (x, torch.tensor([4, 2]))))
    torch.testing.assert_close(traced(x, torch.tensor([3, 1])), module(x, lengths=[3, 1]))


@pytest.mark.parametrize("kind", MODULES)
def test_jit_script_compiles_a_twin(kind):
    model, x = Tagger(kind), torch.randn(7, 3, 5)
    expected, weight = model(x), model.rnn.weight_hh_l0
    with pytest.warns(UserWarning, match=rf"replaces the model's {kind} of prnn by torch.nn's.*prnn.convert"):
        scripted = torch.jit.script(model)
    torch.testing.assert_close(saved_and_loaded(scripted)(x), expected)
    assert type(model.rnn) is getattr(nn, kind) and model.rnn.weight_hh_l0 is weight
    torch.testing.assert_close(model(x), expected)
    assert type(prnn.convert(model, verbose=False).rnn) is getattr(prnn, kind)


def test_jit_script_of_what_torch_has_not():
    with pytest.raises(
        UserError, match=r"torch.jit.script cannot compile StackRNN, because torch.nn has no such layer"
    ):
        torch.jit.script(nn.Sequential(prnn.nn.StackRNN(3, 4)))


@pytest.mark.parametrize("kind", MODULES)
def test_fx_has_the_module_as_a_leaf(kind):
    model, x = Tagger(kind), torch.randn(7, 3, 5)
    graph = torch.fx.symbolic_trace(model)
    assert [(node.op, str(node.target)) for node in graph.graph.nodes if node.op == "call_module"] == [
        ("call_module", "rnn"),
        ("call_module", "head"),
    ]
    assert torch.equal(graph(x), model(x))


def test_fx_passes_state_and_options_on():
    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = prnn.GRU(5, 6)

        def forward(self, x, h, resets):
            return self.rnn(x, h, resets=resets)

    model, x, h, resets = Steps(), torch.randn(4, 2, 5), torch.randn(1, 2, 6), torch.rand(4, 2) < 0.5
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x, h, resets), model(x, h, resets))
    with pytest.raises(torch.fx.proxy.TraceError, match="hold a GRU, not one itself"):
        torch.fx.symbolic_trace(model.rnn)


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
@pytest.mark.parametrize("by", ["type", "name", "default"])
def test_quantize_dynamic_quantises_a_copy(kind, by):
    model, x = Tagger(kind), torch.randn(7, 3, 5)
    named = {"rnn": quantization.default_dynamic_qconfig}
    quantised = quantization.quantize_dynamic(model, {"type": {getattr(nn, kind)}, "name": named, "default": None}[by])
    assert type(quantised.rnn).__module__.startswith("torch.ao.nn.quantized.dynamic")
    assert type(model.rnn) is getattr(prnn, kind)
    torch.testing.assert_close(quantised(x), model(x), rtol=0, atol=0.1)
    with_lengths = quantization.quantize_dynamic(model, {"head": quantization.default_dynamic_qconfig}).rnn
    with_lengths(x, lengths=[7, 3, 1])
    lines = quantization.quantize_dynamic(model, {nn.Linear})
    assert type(lines.rnn) is getattr(prnn, kind) and type(lines.head) is not nn.Linear


def test_quantize_fx_takes_the_layer_and_leaves_the_model():
    model, x = Tagger("LSTM").eval(), torch.randn(7, 3, 5)
    mapping = quantization.QConfigMapping().set_object_type(nn.LSTM, quantization.default_dynamic_qconfig)
    prepared = quantize_fx.prepare_fx(model, mapping, (x,))
    quantised = quantize_fx.convert_fx(prepared)
    assert type(quantised.rnn).__module__.startswith("torch.ao.nn.quantized.dynamic")
    assert type(model.rnn) is prnn.LSTM
    torch.testing.assert_close(quantised(x), model(x), rtol=0, atol=0.1)


def test_compile_has_prnns_layers_in_the_graph_and_leaves_torchs_out():
    code = """
import importlib.util, torch, prnn, sys
prnn.LSTM
for name in ("torch._dynamo.variables.builder", "torch.utils.flop_counter"):
    if sys.argv[1] == "looked up":
        importlib.util.find_spec(name)
x = torch.randn(4, 2, 5)
class Sub(torch.nn.LSTM): pass
if sys.argv[1] == "before":
    import torch._dynamo
model = torch.nn.Sequential(prnn.convert(Sub(5, 6), verbose=False))
assert ("torch._dynamo" in sys.modules) == (sys.argv[1] != "after")
for layer in (prnn.LSTM(5, 6), prnn.GRU(5, 6), prnn.RNN(5, 6), model):
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x))
graphs = []
def backend(graph, inputs):
    graphs.append(graph)
    return graph
torch.compile(torch.nn.Sequential(torch.nn.Tanh(), torch.nn.LSTM(5, 6)), backend=backend)(x)
assert not any("lstm" in graph.code for graph in graphs) and not torch._dynamo.config.allow_rnn
"""
    for when in ("before", "after", "looked up"):
        subprocess.run([sys.executable, "-c", code, when], check=True, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("kind", MODULES)
def test_the_profiler_with_everything(kind):
    module, x = getattr(prnn, kind)(5, 6, num_layers=2), torch.randn(7, 3, 5)
    everything = {"with_stack": True, "record_shapes": True, "profile_memory": True, "with_flops": True}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], **everything) as profile:
        for _ in range(3):
            module(x)[0].sum().backward()
    for grouped in ({}, {"group_by_input_shape": True}, {"group_by_stack_n": 5}):
        names = [event.key for event in profile.key_averages(**grouped)]
        assert "prnn_native::layers_forward" in names and "prnn_native::layers_backward" in names


def test_fx_traces_a_state_alone():
    class Started(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = prnn.LSTM(5, 6)

        def forward(self, h, c):
            return self.rnn(torch.zeros(3, 2, 5), (h, c))[0]

    model, state = Started(), torch.randn(2, 1, 2, 6).unbind()
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(*state), model(*state))


def test_quantize_dynamic_by_prnns_class():
    quantised = quantization.quantize_dynamic(Tagger("LSTM"), {prnn.LSTM})
    assert type(quantised.rnn).__module__.startswith("torch.ao.nn.quantized.dynamic")


def test_layers_without_a_qconfig_are_left():
    model = Tagger("LSTM").eval()
    model.head.qconfig = quantization.get_default_qconfig("x86")
    assert isinstance(quantization.prepare(model).rnn, prnn.LSTM)


@pytest.mark.parametrize("order", [("prnn", "torch.ao.quantization.quantize_fx"), None])
def test_quantize_fx_in_any_order_of_imports(order):
    first, second = order or ("torch.ao.quantization.quantize_fx", "prnn")
    program = f"""
import torch, warnings
warnings.simplefilter("ignore")
import {first}
import {second}
from torch.ao.quantization import QConfigMapping, default_dynamic_qconfig, quantize_fx

model = torch.nn.Sequential(prnn.LSTM(5, 6)).eval()
mapping = QConfigMapping().set_object_type(torch.nn.LSTM, default_dynamic_qconfig)
prepared = quantize_fx.prepare_fx(model, mapping, (torch.randn(3, 2, 5),))
print(type(quantize_fx.convert_fx(prepared).get_submodule("0")).__module__)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "torch.ao.nn.quantized.dynamic.modules.rnn"


def test_a_module_that_another_thread_is_importing_is_waited_for(tmp_path, monkeypatch):
    (tmp_path / "slow_module.py").write_text("import time\ntime.sleep(0.3)\nmade = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    thread = threading.Thread(target=importlib.import_module, args=("slow_module",))
    thread.start()
    while "slow_module" not in sys.modules:
        time.sleep(0.001)
    found = []
    when_imported("slow_module", lambda module: found.append(module.made))
    thread.join()
    assert found == [1]
