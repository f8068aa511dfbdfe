"""Which step looks where, by models whose weights are set by hand: what is right is known without training."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from prnn import tasks
from prnn.config import ModelConfig, TrainConfig
from prnn.data.parallel_corpora import DataConfig
from prnn.data.parallel_text import BOS, EOS, SPECIAL
from prnn.nn.seq2seq import Seq2Seq
from prnn.tasks.searching import attention_of, search
from prnn.tasks.translation import Config, Translation

A, B, C = range(len(SPECIAL), len(SPECIAL) + 3)
V = len(SPECIAL) + 3
SURE = 40.0  # a score that leaves nothing for the others


def pairs_to(size: int, pairs: dict[int, int]) -> Tensor:
    """A matrix that turns the one-hot vector of each key into that of its value."""
    matrix = torch.zeros(size, size)
    for column, row in pairs.items():
        matrix[row, column] = 1.0
    return matrix


@pytest.fixture(params=["luong", "bahdanau"])
def copying(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Translation, Seq2Seq]:
    """A model that writes "a b c" when it reads that, each letter by looking at it.

    Every vector is the one-hot of a token: the memory's of the one read there, the decoder's state of the one that
    comes next (luong), or of the one read last (bahdanau, whose query is the state before). Whatever attention finds
    is written.
    """
    path = tmp_path / "letters.tsv"
    path.write_text("a\ta\nb\tb\nc\tc\na b c\ta b c\n")
    cfg = TrainConfig(
        task=Config(attention=request.param, bidirectional=False),
        data=DataConfig(path=str(path), train_size=None, dev_size=0, test_size=0),
        model=ModelConfig(cell="rnn_relu", hidden_size=V, num_layers=1, embedding_size=V),
    )
    cfg.trainer.batch_size = 2
    task = tasks.build(cfg)
    assert isinstance(task, Translation) and task.source.encode("a b c").tolist() == [A, B, C]
    model = task.build_model()
    assert isinstance(model, Seq2Seq) and model.attention is not None and model.combine is not None
    follows = {BOS: A, A: B, B: C, C: EOS}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        identity = torch.eye(V)
        for weight in (model.source_embedding.weight, model.target_embedding.weight, model.encoder.weight_ih_l0):
            weight.copy_(identity)
        if request.param == "luong":
            model.decoder.weight_ih_l0.copy_(pairs_to(V, follows))
            model.attention.key.weight.copy_(SURE * identity)
        else:
            model.decoder.weight_ih_l0[:, :V] = identity
            # At the first step the state is the encoder's last, of EOS; at the others of the token before the last.
            model.attention.key.weight.copy_(20 * pairs_to(V, {A: EOS, B: BOS, C: A, EOS: B}))
            model.attention.query.weight.copy_(20 * identity)
            model.attention.query.bias.fill_(-30.0)  # both, or tanh is -1
            model.attention.energy.weight.fill_(SURE)
        model.combine.weight[:, :V] = identity
        model.output.weight.copy_(identity)
    return task, model


def test_the_weights_of_a_step_are_those_of_the_token_it_writes(copying: tuple[Translation, Seq2Seq]) -> None:
    task, model = copying
    source = task.source.encode("a b c")
    (written,) = search(model, [source], [10], 1, 1.0)
    assert written == (A, B, C, EOS)
    torch.testing.assert_close(attention_of(model, source, written), torch.eye(5)[1:])


def test_the_picture_names_what_is_read_and_written(copying: tuple[Translation, Seq2Seq]) -> None:
    task, model = copying
    task.examples = [("a b c", "a b c")]
    axes = task.test(model, torch.device("cpu")).pictures["attention"]().axes[0]
    read, written = (
        [label.get_text() for label in labels] for labels in (axes.get_xticklabels(), axes.get_yticklabels())
    )
    assert (read, written) == (["<bos>", "a", "b", "c", "<eos>"], ["a", "b", "c", "<eos>"])
    assert [read[column] for column in axes.images[0].get_array().argmax(1)] == written
