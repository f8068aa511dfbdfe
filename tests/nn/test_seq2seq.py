"""Encoder, attention, decoder: shapes, padding, attention weights, and each equation worked out once more by hand."""

from itertools import product

import pytest
import torch
from torch import Tensor

from prnn.cell_table import CELLS
from prnn.config import ModelConfig
from prnn.nn.seq2seq import ATTENTIONS, Attention, Memory, Seq2Seq

S, T, B, H, V = 6, 5, 3, 4, 7
LENGTHS = torch.tensor([6, 2, 4])
SOURCE = torch.randint(4, 9, (S, B), generator=torch.Generator().manual_seed(1))
TARGETS = torch.randint(0, V, (T, B), generator=torch.Generator().manual_seed(2))


def model(attention: str = "luong", cell: str = "gru", bidirectional: bool = True, layers: int = 1, **more) -> Seq2Seq:
    config = ModelConfig(cell=cell, hidden_size=H, num_layers=layers, embedding_size=5)
    return Seq2Seq(9, V, config, attention, bidirectional, **more).double()


KINDS = [
    (attention, cell, bidirectional, layers)
    for attention, cell, bidirectional, layers in product(ATTENTIONS, CELLS, (True, False), (1, 2))
    if not (attention == "dot" and bidirectional)
]


@pytest.mark.parametrize(("attention", "cell", "bidirectional", "layers"), KINDS)
def test_shapes_and_attention_over_the_source_alone(
    attention: str, cell: str, bidirectional: bool, layers: int
) -> None:
    net = model(attention, cell, bidirectional, layers)
    logits = net(SOURCE, LENGTHS, TARGETS)
    assert logits.shape == (T, B, V)
    memory, state = net.encode(SOURCE, LENGTHS)
    assert memory.values.shape == (B, S, H * (2 if bidirectional else 1)) and memory.padding.shape == (B, S)
    again, _, weights = net.decode(TARGETS, state, memory)
    assert torch.equal(again, logits)
    if attention == "none":
        assert weights is None
        return
    assert weights.shape == (B, T, S)
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, T).double())
    for row, length in enumerate(LENGTHS.tolist()):
        assert (weights[row, :, :length] > 0).all() and (weights[row, :, length:] == 0).all()


@pytest.mark.parametrize(("attention", "cell", "bidirectional", "layers"), KINDS)
def test_padding_reaches_nothing(attention: str, cell: str, bidirectional: bool, layers: int) -> None:
    """A sentence means the same alone, and whatever stands behind it; and a target's end nothing to its beginning."""
    net = model(attention, cell, bidirectional, layers)
    whole = net(SOURCE, LENGTHS, TARGETS)
    padding = torch.arange(S)[:, None] >= LENGTHS
    assert torch.equal(net(SOURCE.masked_fill(padding, 0), LENGTHS, TARGETS), whole)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = net(SOURCE[:length, row : row + 1], LENGTHS[row : row + 1], TARGETS[:, row : row + 1])
        torch.testing.assert_close(alone[:, 0], whole[:, row])
    torch.testing.assert_close(net(SOURCE, LENGTHS, TARGETS[:3]), whole[:3])
    gradient = torch.autograd.grad(whole.sum(), net.source_embedding.weight)[0]
    unread = sorted(set(range(9)) - set(SOURCE[~padding].tolist()))
    assert 0 in unread and (gradient[unread] == 0).all() and (gradient[SOURCE[0, 0]] != 0).any()


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_step_by_step_is_teacher_forcing(attention: str, cell: str) -> None:
    net = model(attention, cell, bidirectional=attention != "dot", layers=2)
    memory, state = net.encode(SOURCE, LENGTHS)
    steps = []
    for tokens in TARGETS:
        logits, state, _ = net.decode(tokens[None], state, memory)
        steps.append(logits)
    torch.testing.assert_close(torch.cat(steps), net(SOURCE, LENGTHS, TARGETS))


def by_hand(net: Seq2Seq, attention: str, source: Tensor, targets: Tensor) -> Tensor:
    """One sentence [S] and what the decoder reads [T] -> logits [T,V], a GRU with torch.nn's cells and plain sums."""

    def cell(weights: torch.nn.Module, suffix: str, x: Tensor, h: Tensor) -> Tensor:
        gru = torch.nn.GRUCell(len(x), len(h)).double()
        named = {name.removesuffix(suffix): p for name, p in weights.named_parameters() if name.endswith(suffix)}
        return torch.func.functional_call(gru, named, (x[None], h[None]))[0]

    embedded = net.source_embedding.weight[source]
    h, forward = torch.zeros(H).double(), []
    for x in embedded:
        h = cell(net.encoder, "_l0", x, h)
        forward.append(h)
    h, backward = torch.zeros(H).double(), []
    for x in embedded.flip(0):
        h = cell(net.encoder, "_l0_reverse", x, h)
        backward.insert(0, h)
    memory = [torch.cat(pair) for pair in zip(forward, backward, strict=True)]
    (bridge,) = net.bridges
    h = torch.tanh(bridge.weight @ torch.cat([forward[-1], backward[0]]) + bridge.bias)

    def context(query: Tensor) -> Tensor:
        a = net.attention
        if attention == "luong":
            scores = [query @ a.key.weight @ m for m in memory]
        else:
            hidden = [torch.tanh(a.query.weight @ query + a.query.bias + a.key.weight @ m) for m in memory]
            scores = [a.energy.weight[0] @ each for each in hidden]
        total = sum(score.exp() for score in scores)
        return sum(score.exp() / total * m for score, m in zip(scores, memory, strict=True))

    logits = []
    for token in targets:
        x = net.target_embedding.weight[token]
        if attention == "bahdanau":
            c = context(h)
            h = cell(net.decoder, "_l0", torch.cat([x, c]), h)
        else:
            h = cell(net.decoder, "_l0", x, h)
            c = context(h)
        vector = torch.tanh(net.combine.weight @ torch.cat([c, h]))
        logits.append(net.output.weight @ vector + net.output.bias)
    return torch.stack(logits)


@pytest.mark.parametrize("attention", ["luong", "bahdanau"])
def test_outputs_and_gradients_are_those_of_the_equations(attention: str) -> None:
    net = model(attention)
    plain = [by_hand(net, attention, SOURCE[:n, b], TARGETS[:, b]) for b, n in enumerate(LENGTHS.tolist())]
    expected, found = torch.stack(plain, dim=1), net(SOURCE, LENGTHS, TARGETS)
    torch.testing.assert_close(found, expected)
    parameters = dict(net.named_parameters())
    weights = torch.randn(T, B, V, generator=torch.Generator().manual_seed(3)).double()
    gradients = [torch.autograd.grad((logits * weights).sum(), parameters.values()) for logits in (found, expected)]
    for name, ours, theirs in zip(parameters, *gradients, strict=True):
        torch.testing.assert_close(ours, theirs, msg=lambda text, name=name: f"{name}: {text}")


def test_dot_attention_is_luongs_with_the_identity() -> None:
    general, dot = Attention("luong", H, H).double(), Attention("dot", H, H).double()
    torch.nn.init.eye_(general.key.weight)
    values, query = torch.randn(2, S, H).double(), torch.randn(2, T, H).double()
    padding = torch.zeros(2, S, dtype=torch.bool)
    found = [each(query, Memory(values, each.keys(values), padding)) for each in (general, dot)]
    torch.testing.assert_close(found[0], found[1])


def last_states(net: Seq2Seq, cell: str, bidirectional: bool, row: int) -> list[Tensor]:
    """Those of the sentence ``row``, by torch.nn's module of two layers: h_n [2*D,H], of an LSTM c_n too."""
    kinds = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM, "rnn_tanh": torch.nn.RNN}
    plain = kinds[cell](5, H, 2, bidirectional=bidirectional).double()
    plain.load_state_dict(net.encoder.state_dict())
    _, state = plain(net.source_embedding(SOURCE[: LENGTHS[row], row]))
    return list(state) if cell == "lstm" else [state]


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn_tanh"])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_each_layer_of_the_decoder_begins_where_that_of_the_encoder_ends(cell: str, bidirectional: bool) -> None:
    net = model(cell=cell, bidirectional=bidirectional, layers=2)
    state = net.encode(SOURCE, LENGTHS)[1]
    parts = state if cell == "lstm" else (state,)
    assert len(net.bridges) == (len(parts) if bidirectional else 0)
    for row in range(B):
        expected = last_states(net, cell, bidirectional, row)
        if bidirectional:  # layer 0 forward, layer 0 backward, layer 1 forward, layer 1 backward
            both = [torch.stack([torch.cat([part[0], part[1]]), torch.cat([part[2], part[3]])]) for part in expected]
            expected = [torch.tanh(x @ w.weight.T + w.bias) for w, x in zip(net.bridges, both, strict=True)]
        for part, plain in zip(parts, expected, strict=True):
            assert part.shape == (2, B, H)
            torch.testing.assert_close(part[:, row], plain)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_without_a_bridge_the_decoder_begins_with_zeros(cell: str, bidirectional: bool) -> None:
    net = model(cell=cell, bidirectional=bidirectional, layers=2, bridge=False)
    memory, state = net.encode(SOURCE, LENGTHS)
    assert not list(net.bridges) and len(state) == 2
    for part in state if cell == "lstm" else (state,):
        assert part.shape == (2, B, H) and part.dtype == torch.float64 and (part == 0).all()
    assert net.decode(TARGETS, state, memory)[0].shape == (T, B, V)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_dropout_is_of_embeddings_and_outputs_and_in_training_alone(attention: str) -> None:
    """Where all is dropped, nothing that is read matters, and nothing but the output's bias is said."""
    net = model(attention, bidirectional=attention != "dot")
    kept = net(SOURCE, LENGTHS, TARGETS)
    net.dropout.p = 1.0
    net.eval()
    assert torch.equal(net(SOURCE, LENGTHS, TARGETS), kept)
    for training in (True, False):
        net.train(training)
        (memory, state), (other, _) = (net.encode(source, LENGTHS) for source in (SOURCE, SOURCE.flip(1)))
        assert torch.equal(memory.values, other.values) == training and (memory.values[0] != 0).all()
        (logits, after, _), (_, other_after, _) = (net.decode(read, state, memory) for read in (TARGETS, 6 - TARGETS))
        assert torch.equal(after, other_after) == training and (after != 0).all()
        assert torch.equal(logits, net.output.bias.expand_as(logits)) == training


def test_dropout_is_the_models_setting() -> None:
    config = ModelConfig(cell="gru", hidden_size=H, num_layers=2, embedding_size=5, dropout=0.3)
    net = Seq2Seq(9, V, config)
    assert (net.dropout.p, net.encoder.dropout, net.decoder.dropout) == (0.3, 0.3, 0.3)


def test_rows_of_a_memory() -> None:
    memory, _ = model().encode(SOURCE, LENGTHS)
    chosen = memory.rows(torch.tensor([2, 2, 0]))
    assert torch.equal(chosen.values[1], memory.values[2]) and torch.equal(chosen.padding[2], memory.padding[0])


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="the same width, not 4, 8"):
        model("dot", bidirectional=True)
    with pytest.raises(ValueError, match="no access to the source"):
        model("none", bridge=False)
