"""torch.compile(fullgraph=True): forward and backward equal eager mode."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing

import prnn.nn


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Model(torch.nn.Module):
    """Compiled as people do it: the recurrent module is a part of something."""

    def __init__(self, recurrent):
        super().__init__()
        self.recurrent = recurrent
        self.head = torch.nn.Linear(10, 2)

    def forward(self, x, hx, lengths, resets):
        output, state = self.recurrent(x, hx, lengths=lengths, resets=resets)
        return self.head(output), state


@pytest.mark.parametrize("kind", ["rnn_tanh", "gru", "lstm"])
def test_whole_graph_with_everything(compare, kind):
    _, ours = compare.pair(kind, 3, 5, num_layers=2, bidirectional=True)
    model = Model(ours)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x, hx = torch.randn(6, 2, 3), compare.state(ours, 2)
    arguments = {"lengths": torch.tensor([4, 6]), "resets": torch.rand(6, 2) < 0.3}
    compare_runs(compare, model, compiled, x, hx, **arguments)


def test_whole_graph_with_inductor_and_no_options(compare):
    _, ours = compare.pair("lstm", 3, 5)
    compiled = torch.compile(ours, fullgraph=True)
    x, hx = torch.randn(6, 2, 3), compare.state(ours, 2)
    compare_runs(compare, ours, compiled, x, hx)


def compare_runs(compare, eager, compiled, x, hx, **arguments):
    expected = compare.everything(eager, x, hx, **arguments)
    found = compare.everything(compiled, x, hx, **arguments)
    compare.equal({name.replace("_orig_mod.", ""): value for name, value in found.items()}, expected, 1e-6)


def test_autocast_is_part_of_the_graph():
    module = prnn.nn.GRU(3, 5)
    x = torch.randn(4, 2, 3)

    def run(x):
        with torch.autocast("cpu", torch.bfloat16):
            return module(x)[0]

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), run(x))


def test_one_step_of_any_batch_is_one_graph():
    # The choice of the backend looks at B where T is 1: not while B is a symbol.
    module, counter = prnn.nn.RNN(3, 512), torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for B in (40, 200):  # on either side of what the choice asks in eager mode
        x = torch.randn(1, B, 3)
        torch._dynamo.mark_dynamic(x, 1)
        torch.testing.assert_close(compiled(x)[0], module(x)[0])
    assert counter.frame_count == 1
