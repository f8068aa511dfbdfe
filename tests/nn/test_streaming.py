"""Stream: pieces of any length give what one call gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import prnn
from prnn import cells
from prnn.nn import ListRNN, StackRNN

MODELS = {
    "rnn": lambda: prnn.RNN(5, 7, 2),
    "gru": lambda: prnn.GRU(5, 7, 3, dropout=0.5),
    "lstm": lambda: prnn.LSTM(5, 7, proj_size=3, num_layers=2),
    "alif": lambda: prnn.Recurrent(cells.alif, 5, 7, 2),
    "stack": lambda: StackRNN(5, 7, 2, capacity=9),
    "list": lambda: ListRNN(5, 7, 2, capacity=9),
    "torch": lambda: nn.GRU(5, 7),
}
PIECES = (1, 3, 1, 9, 2)


def pushed(stream, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([stream.push(piece) for piece in x.split(PIECES)])


@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("kind", MODELS)
def test_pieces_are_one_call(kind: str, B: int) -> None:
    model, x = MODELS[kind](), torch.randn(sum(PIECES), B, 5)
    stream = prnn.Stream(model, B)
    assert model.training and stream.state is None
    output = pushed(stream, x)
    assert model.training and not output.requires_grad
    with torch.no_grad():
        expected, final = model.eval()(x)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(stream.state, final)


@pytest.mark.parametrize("H", [3, 64, 256])
@pytest.mark.parametrize("kind", [prnn.RNN, prnn.GRU, prnn.LSTM])
def test_the_cpu_kernels_give_the_same_bits(kind: type, H: int) -> None:
    if not prnn.native.status()[0]:
        pytest.skip("the native library is not loaded")
    model, x = kind(17, H, 2).eval(), torch.randn(sum(PIECES), 1, 17)
    with prnn.backend("cpu"), torch.no_grad():
        assert torch.equal(pushed(prnn.Stream(model), x), model(x)[0])


@pytest.mark.parametrize("rows", [[1], [0, 2], torch.tensor([False, True, True]), [], None], ids=str)
@pytest.mark.parametrize("kind", MODELS)
def test_reset_of_some_streams(kind: str, rows) -> None:
    model, x = MODELS[kind]().eval(), torch.randn(8, 3, 5)
    stream = prnn.Stream(model, 3)
    stream.reset(rows)  # before the first frame, of nothing
    first = stream.push(x[:5])
    stream.reset(rows)
    second = stream.push(x[5:])
    again = torch.ones(3, dtype=torch.bool) if rows is None else torch.zeros(3, dtype=torch.bool)
    if rows is not None:
        again[rows] = True
    with torch.no_grad():
        whole, anew = model(x)[0], model(x[5:])[0]
    torch.testing.assert_close(first, whole[:5])
    torch.testing.assert_close(second, torch.where(again[None, :, None], anew, whole[5:]))


def test_a_state_to_begin_with_and_to_go_back_to() -> None:
    model, x = prnn.LSTM(5, 7), torch.randn(6, 2, 5)
    state = (torch.randn(1, 2, 7), torch.randn(1, 2, 7))
    stream = prnn.Stream(model, 2, state=state)
    with torch.no_grad():
        expected = model(x, state)[0]
    for _ in range(2):
        torch.testing.assert_close(stream.push(x), expected)
        stream.reset([0])
        for found, given in zip(stream.state, state, strict=True):
            torch.testing.assert_close(found[:, 0], given[:, 0])
        stream.reset()
    stream.state = pytree.tree_map(lambda each: each[:, [1, 1, 0]], state)
    assert stream.batch_size == 3
    torch.testing.assert_close(stream.push(x[:, [1, 1, 0]]), expected[:, [1, 1, 0]])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: prnn.Stream(prnn.GRU(3, 4, bidirectional=True)), "both directions"),
        (lambda: prnn.Stream(nn.Sequential(prnn.GRU(3, 4, bidirectional=True))), r"GRU \(0\) runs in both"),
        (lambda: prnn.Stream(nn.Linear(3, 4)).push(torch.zeros(2, 1, 3)), "Linear returned a Tensor"),
        (lambda: prnn.Stream(prnn.GRU(3, 4), 2).push(torch.zeros(2, 5, 3)), r"of 2 streams, .*\[2, 5, 3\], has 5"),
        (lambda: prnn.Stream(prnn.GRU(3, 4), 0), "batch_size must be"),
        (lambda: prnn.Stream(prnn.GRU(3, 4), 2).reset([2]), r"numbers from 0 to 1 or booleans \[2\], got \[2\]"),
        (lambda: prnn.Stream(prnn.GRU(3, 4), 2).reset(torch.tensor([True])), "rows must be"),
        (lambda: prnn.Stream(prnn.GRU(3, 4), 2).reset([0.5]), "rows must be"),
        (lambda: prnn.Stream(prnn.GRU(3, 4), 2).reset("01"), "rows must be"),
        (
            lambda: prnn.Stream(prnn.GRU(3, 4), 2).push(torch.zeros(2, 2, 5)),
            r"GRU does not take the frames \[2, 2, 5\]",
        ),
        (lambda: prnn.Stream(prnn.GRU(3, 4), 2).push(None), "does not take the frames NoneType"),
        (lambda: prnn.Stream(prnn.LSTMCell(3, 4), 4), "got LSTMCell"),
        (lambda: prnn.Stream(prnn.GRU(3, 4), True), "batch_size must be"),
        (lambda: prnn.Stream(prnn.LSTM(3, 4), 2, state=(torch.zeros(1, 2, 4), torch.zeros(1, 3, 4))), "dimension 1"),
        (lambda: prnn.Stream(len), "got builtin"),
    ],
)
def test_what_does_not_fit(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_modes_are_each_modules_own() -> None:
    model = Tagger()
    model.train()
    model.norm.eval()
    x = torch.randn(4, 3, 5)
    stream = prnn.Stream(model, 3)
    output = stream.push(x)
    assert model.training and model.dropout.training and not model.norm.training
    model.eval()
    model.dropout.train()
    stream.reset()
    assert torch.equal(stream.push(x), output)
    assert model.dropout.training and not model.training


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.norm, self.dropout = prnn.LSTM(5, 6), nn.LayerNorm(6), nn.Dropout(0.5)

    def forward(self, x, state=None):
        output, state = self.rnn(x, state)
        return self.dropout(self.norm(output)), state


def test_reset_of_a_model_that_begins_with_a_state_of_its_own() -> None:
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.h0 = prnn.GRU(5, 6), nn.Parameter(torch.randn(1, 1, 6))

        def forward(self, x, state=None):
            return self.rnn(x, self.h0.expand(-1, x.shape[1], -1).contiguous() if state is None else state)

    model, x = Learned(), torch.randn(4, 3, 5)
    stream = prnn.Stream(model, 3)
    stream.push(x)
    with pytest.raises(ValueError, match="begins with another state than zeros: give state="):
        stream.reset([1])
    state = model.h0.detach().expand(-1, 3, -1)
    stream = prnn.Stream(model, 3, state=state)
    first = stream.push(x)
    stream.reset([1])
    torch.testing.assert_close(stream.push(x)[:, 1], first[:, 1])


def test_a_model_that_writes_to_its_state_leaves_the_streams_first_one() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = prnn.GRU(5, 6)

        def forward(self, x, state):
            output, h = self.rnn(x, state)
            return output, state.copy_(h)

    x, state = torch.randn(4, 2, 5), torch.randn(1, 2, 6)
    given, stream = state.clone(), prnn.Stream(InPlace(), 2, state=state)
    first = stream.push(x)
    stream.reset()
    assert torch.equal(stream.push(x), first) and torch.equal(state, given)
