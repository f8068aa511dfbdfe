import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from prnn import config, tasks
from prnn.config import CONF, ModelConfig, TrainConfig
from prnn.data.parallel_corpora import DataConfig
from prnn.data.parallel_text import BOS, EOS, PAD, UNK
from prnn.errors import UserError
from prnn.nn.seq2seq import Seq2Seq
from prnn.task import Position, Shard, TaskResults
from prnn.tasks import translation
from prnn.tasks.decode import TextTask, TranslatingTask
from prnn.tasks.searching import attention_of, make_batch, search, source_tensors
from prnn.tasks.translation import Config, Translation
from prnn.training import evaluate, fit
from prnn.training.distributed import World

CPU = torch.device("cpu")
SMALL = DataConfig(train_size=40, dev_size=20, test_size=10, train_length=4, test_length=6)


def configured(data: DataConfig = SMALL, batch_size: int = 4, **task: Any) -> TrainConfig:
    cfg = TrainConfig(task=Config(**task), data=data)
    cfg.trainer.batch_size = batch_size
    cfg.model = ModelConfig(cell="gru", hidden_size=6, num_layers=1, embedding_size=5)
    return cfg


def built(*args: Any, **task: Any) -> tuple[Translation, Seq2Seq]:
    translation = tasks.build(configured(*args, **task))
    torch.manual_seed(1)
    model = translation.build_model()
    assert isinstance(translation, Translation) and isinstance(model, Seq2Seq)
    return translation, model


# Configuration


def test_the_yaml_files_are_the_documented_defaults() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=["task=translation"])
        verses = compose("train", overrides=["task=translation", "data=verses"])
    assert OmegaConf.to_container(cfg.task) == vars(Config())
    assert OmegaConf.to_container(cfg.data) == vars(DataConfig())
    assert (verses.data.name, verses.data.max_length) == ("bible-en-es", 15)


def test_a_file_of_ones_own_must_be_given() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=["task=translation", "data=tsv", "trainer.max_steps=1"])
    with pytest.raises(UserError, match="data.path must be given"):
        config.check(cfg, tasks.schemas("translation"))


@pytest.mark.parametrize(
    ("section", "setting", "value", "sentence"),
    [
        ("task", "attention", "general", "must be one of luong, dot, bahdanau, none"),
        ("task", "attention", "dot", "needs task.bidirectional=false"),
        ("task", "beam", 0, "must be at least 1"),
        ("task", "beam", 1001, "must be at least 1 and at most 1,000"),
        ("task", "length_penalty", -0.5, "must be at least 0 and at most 10"),
        ("task", "length_penalty", math.nan, "must be at least 0 and at most 10"),
        ("task", "length_penalty", 500.0, "must be at least 0 and at most 10"),
        ("task", "max_length", 0, "must be at least 1"),
        ("task", "label_smoothing", 1.0, "must be at least 0 and below 1"),
        ("task", "bleu_tokenize", "spm", "must be one of 13a, intl, zh, char, none"),
        ("data", "level", "byte", "must be one of word, char"),
        ("data", "vocabulary_size", 4, "must be at least 5"),
        ("data", "min_count", 0, "must be at least 1"),
        ("data", "dev_size", -1, "must be at least 0"),
        ("data", "train_length", 0, "must be at least 1"),
        ("data", "numbers", 0, "must be at least 1"),
        ("data", "max_length", 0, "must be at least 1"),
        ("data", "train_size", None, "must be a number"),
        ("data", "name", "tatoeba", "give its data.file, or a file of yours with data.path"),
        ("model", "embedding_size", 0, "must be at least 1"),
    ],
)
def test_settings_out_of_range(section: str, setting: str, value: Any, sentence: str) -> None:
    cfg = configured()
    setattr(cfg, section, replace(getattr(cfg, section), **{setting: value}))
    given = "null" if value is None else value
    with pytest.raises(UserError, match=rf"{section}\.{setting}={given} .*{sentence}"):
        config.check_task(cfg)


def test_settings_that_exclude_each_other() -> None:
    cfg = configured(attention="none", bridge=False)
    with pytest.raises(UserError, match="gives the decoder no access"):
        config.check_task(cfg)


# Batches, loss and validation


def test_a_batch_says_what_is_read_and_what_is_to_be_said() -> None:
    task, _ = built()
    batch = make_batch(task._tokens([("3 1", "1 3"), ("7", "7")]))
    three, one, seven = (int(task.source.encode(digit)[0]) for digit in "317")
    tensors = {name: tensor.T.tolist() for name, tensor in batch.tensors.items() if name != "lengths"}
    assert tensors["source"] == [[BOS, three, one, EOS], [BOS, seven, EOS, PAD]]
    assert batch.tensors["lengths"].tolist() == [4, 3]
    three, one, seven = (int(task.target.encode(digit)[0]) for digit in "317")
    assert tensors["inputs"] == [[BOS, one, three], [BOS, seven, PAD]]
    assert tensors["targets"] == [[one, three, EOS], [seven, EOS, PAD]]
    assert (batch.count, batch.tokens) == (5, 5)


@pytest.mark.parametrize("attention", ["luong", "bahdanau"])
def test_the_loss_is_the_sum_over_sentences_whatever_they_share_a_batch_with(attention: str) -> None:
    task, model = built(attention=attention)
    tokens = task._tokens([("3 1 4 1", "1 4 1 3"), ("7", "7"), ("2 0", "0 2")])
    together, _ = task.loss(model, make_batch(tokens), None)
    alone = [task.loss(model, make_batch([pair]), None)[0] for pair in tokens]
    torch.testing.assert_close(together, sum(alone))
    # An untrained model finds all tokens about equally likely.
    assert float(together.detach()) / 10 == pytest.approx(math.log(len(task.target)), rel=0.1)


def test_label_smoothing_is_for_training_alone() -> None:
    (plain, model), (smooth, _) = built(), built(label_smoothing=0.2)
    batch = make_batch(plain._tokens([("3 1", "1 3"), ("7", "7")]))
    assert smooth.loss(model, batch, None)[0] != plain.loss(model, batch, None)[0]
    model.eval()
    assert smooth.loss(model, batch, None)[0] == plain.loss(model, batch, None)[0]


def test_validation_counts_every_target_token_once() -> None:
    task, model = built()
    batches = list(task.eval_batches(Shard()))
    assert sum(batch.count for batch in batches) == sum(len(target.split()) + 1 for _, target in task._open().parts.dev)
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias.zero_()[EOS] = 1.0  # right once a sentence, padding not counted
        accuracy = sum(int(task.eval_step(model, batch, None)[0]["accuracy"]) for batch in batches)
    assert accuracy == 20


def test_a_piece_of_the_validation_data_has_no_more_logits_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    task, _ = built()
    pairs = task._tokens([(" ".join("3" * n), " ".join("3" * n)) for n in (1, 2, 2, 3, 4, 4, 5)])
    per_sentence = (5 + 1) * len(task.target)  # of the longest, its end included

    def sizes(logits: int) -> list[int]:
        monkeypatch.setattr(translation, "EVAL_LOGITS", logits)
        pieces = task._pieces(pairs)
        assert [id(pair) for piece in pieces for pair in piece] == [id(pair) for pair in pairs]
        return [len(piece) for piece in pieces]

    assert sizes(3 * per_sentence) == [3, 3, 1] and sizes(3 * per_sentence - 1) == [2, 2, 2, 1]
    assert sizes(1) == [1] * 7 and sizes(100 * per_sentence) == [7]
    monkeypatch.setattr(translation, "EVAL_SENTENCES", 4)
    assert sizes(100 * per_sentence) == [4, 3]
    assert task._pieces([]) == []


def test_no_validation_and_no_test_data() -> None:
    task, model = built(replace(SMALL, dev_size=0, test_size=0))
    assert list(task.eval_batches(Shard())) == [] and task.test(model, CPU) == TaskResults()
    assert task.sample(model, CPU) is None


def test_a_checkpoint_knows_its_pairs() -> None:
    task, model = built()
    cfg = configured()
    restored = tasks.build(cfg, task.state_dict())
    assert restored.sample(model, CPU) == task.sample(model, CPU)
    assert restored.steps_per_epoch() == 10
    other = tasks.build(replace(cfg, data=replace(SMALL, train_size=44)), task.state_dict())
    with pytest.raises(UserError, match="reversal does not contain the pairs the checkpoint was trained on"):
        other.steps_per_epoch()


def test_a_translation_knows_no_dropout() -> None:
    """A model as prnn-sample gets it, fresh from build_model: in training mode, with dropout in the encoder."""
    task, model = built()
    model.dropout.p = 0.5
    model.train()
    source = [task.source.encode("3 1 2")]
    found = [search(model, source, [6], 2, 1.0) for _ in range(5)]
    weights = [attention_of(model, source[0], (4, 5, EOS)) for _ in range(2)]
    assert model.training
    model.eval()
    assert found == [search(model, source, [6], 2, 1.0)] * 5
    assert torch.equal(weights[0], weights[1])


def test_fewer_pairs_than_a_batch() -> None:
    with pytest.raises(UserError, match="trainer.batch_size=50 is more than the 40 training pairs"):
        built(batch_size=50)


# Translations


def log_prob(task: Translation, model: Seq2Seq, source: str, tokens: tuple[int, ...]) -> float:
    memory, state = model.encode(*source_tensors([task.source.encode(source)]))
    logits, _, _ = model.decode(torch.tensor([BOS, *tokens[:-1]])[:, None], state, memory)
    logits[..., [PAD, UNK, BOS]] = -torch.inf
    return float(logits[:, 0].log_softmax(-1)[range(len(tokens)), list(tokens)].sum().detach())


@pytest.mark.parametrize("attention", ["luong", "bahdanau", "none"])
@pytest.mark.parametrize("width", [1, 4])
def test_sentences_searched_together_are_those_searched_alone(attention: str, width: int) -> None:
    task, model = built(attention=attention)
    lines = ["3 1 4", "7", "2 7 1 8 2 8", "9 9"]
    sources = [task.source.encode(line) for line in lines]
    together = search(model, sources, [8, 3, 6, 8], width, 1.0)
    alone = [search(model, [source], [n], width, 1.0)[0] for source, n in zip(sources, [8, 3, 6, 8], strict=True)]
    assert together == alone and len(set(together)) > 1
    assert all(len(found) <= n for found, n in zip(together, [8, 3, 6, 8], strict=True))


def test_greedy_takes_the_most_probable_token_and_a_beam_finds_no_worse() -> None:
    task, model = built()
    with torch.no_grad():
        model.output.weight.mul_(20)  # so that sentences differ in likelihood
    for line in ("3 1 4", "2 7 1 8", "5"):
        source = task.source.encode(line)
        (greedy,), (wide,) = (search(model, [source], [6], width, 0.0) for width in (1, 30))
        assert log_prob(task, model, line, wide) >= log_prob(task, model, line, greedy) - 1e-6
        for i, token in enumerate(greedy):
            rivals = {other: log_prob(task, model, line, (*greedy[:i], other)) for other in range(len(task.target))}
            assert rivals[token] == max(rivals.values())


def test_an_unknown_word_is_read_but_never_written() -> None:
    task, model = built()
    with torch.no_grad():
        model.output.bias[[PAD, UNK, BOS]] = 100.0
    (found,) = search(model, [task.source.encode("3 x 4")], [6], 2, 1.0)
    assert not {PAD, UNK, BOS} & set(found)


def test_lines_are_translated_as_they_come() -> None:
    task, model = built()
    asked = []

    def lines() -> Any:
        for line in ("3 1", "", "  ", "x y"):
            asked.append(line)
            yield line

    found = task.translate(model, CPU, lines())
    assert next(found) == task._translations(model, CPU, ["3 1"])[0] and asked == ["3 1"]
    assert next(found) == "" and next(found) == "" and isinstance(next(found), str)
    assert isinstance(task, TranslatingTask) and not isinstance(task, TextTask) and model.training


def test_the_bound_on_a_translation() -> None:
    task, model = built(max_length=2, beam=1)
    with torch.no_grad():
        model.output.bias[EOS] = -100.0  # never ends by itself
    assert len(next(task.translate(model, CPU, ["3 1 4"])).split()) == 2
    task.cfg.task.max_length = None
    assert len(next(task.translate(model, CPU, ["3 1 4"])).split()) == 2 * 3 + 10


# Learning


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Translation, Seq2Seq, dict[str, float], Path]:
    """The preset for a quick look, trained: the task, its model, the test's figures, the run directory."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose(
            "train", overrides=["experiment=reversal_short", "trainer.threads=1", "trainer.progress=off"]
        )
    cfg = config.check(OmegaConf.create(OmegaConf.to_container(composed)), tasks.schemas("translation"))
    task = tasks.build(cfg)
    kept: dict[str, Any] = {}
    test = evaluate.test

    def keep(cfg: Any, task: Any, best: Any, *rest: Any) -> Any:
        kept["model"], _ = best()
        found = test(cfg, task, best, *rest)
        kept["tested"], _ = found
        return found

    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "test", keep)
        fit(cfg, task, World(), folder)
    assert isinstance(task, Translation)
    return task, kept["model"], kept["tested"].figures, folder


def test_the_short_preset_learns_to_reverse_digits(trained: Any) -> None:
    pytest.importorskip("sacrebleu")
    task, model, figures, folder = trained
    # Guessing digits is right one time in ten, and no sentence of five by chance.
    assert figures["exact"] > 0.9 and figures["bleu"] > 90 and figures["perplexity"] < 1.1
    assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]))
    assert list(task.translate(model, CPU, ["3 1 4 1 5", "9 2"], beam=3)) == ["5 1 4 1 3", "2 9"]
    assert "source     " in task.sample(model, CPU) and (folder / "attention.png").stat().st_size > 5000


def test_the_model_looks_at_the_digit_it_writes(trained: Any) -> None:
    task, model, _, _ = trained
    source = task.source.encode("3 1 4 2 5")
    weights = attention_of(model, source, [*task.target.encode("5 2 4 1 3").tolist(), EOS])
    assert weights.shape == (6, 7)
    torch.testing.assert_close(weights.sum(-1), torch.ones(6))
    # Not always at it: the states beside it know of it too.
    assert [abs(int(row.argmax()) - (5 - step)) <= 1 for step, row in enumerate(weights[:5])].count(True) >= 4
    axes = task.test(model, CPU).pictures["attention"]().axes[0]
    drawn = torch.from_numpy(axes.images[0].get_array().data)
    assert drawn.shape == (len(axes.get_yticks()), len(axes.get_xticks()))
    torch.testing.assert_close(drawn.sum(-1), torch.ones(len(drawn)))
    assert axes.get_yticklabels()[-1].get_text() == "<eos>" == axes.get_xticklabels()[-1].get_text()


def test_verses_are_ready_to_train_on(data_dir: Path) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=["task=translation", "data=verses", "trainer.max_steps=1"])
    task = tasks.build(config.check(cfg, tasks.schemas("translation")))
    parts = task._open().parts
    assert [len(part) for part in (parts.train, parts.dev, parts.test)] == [
        4398,
        500,
        500,
    ]  # one is another translation of a verse tested on
    (batch,) = next(task.train_batches(Shard(), Position()))
    assert batch.tensors["source"].shape[1] == 50
