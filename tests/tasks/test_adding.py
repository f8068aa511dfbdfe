"""The adding problem: what is generated, what is right, what is learned and drawn."""

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from prnn import config, tasks
from prnn.config import CONF, ModelConfig, TrainConfig
from prnn.data.adding import VARIANCE, sequences
from prnn.errors import UserError
from prnn.task import Batch, Position, Shard
from prnn.tasks.adding import Config, DataConfig
from prnn.training import fit
from prnn.training.distributed import World

CPU = torch.device("cpu")


def configured(batch_size=4, seed=1, **data):
    cfg = TrainConfig(task=Config(), data=DataConfig(**{"length": 10, "val_sequences": 50, **data}), seed=seed)
    cfg.model = ModelConfig(cell="rnn_relu", init="identity", hidden_size=6, num_layers=1)
    cfg.trainer.batch_size = batch_size
    return cfg


def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", list(overrides))
    return config.check(OmegaConf.create(OmegaConf.to_container(cfg)), tasks.schemas(cfg.task.name))


class Adder(torch.nn.Module):
    """Always right, by so much."""

    def __init__(self, off=0.0):
        super().__init__()
        self.off = off

    def forward(self, inputs):
        return inputs.prod(-1).sum(0)[:, None] + self.off


class One(torch.nn.Module):
    def forward(self, inputs):
        return torch.ones(inputs.shape[1], 1)


@pytest.mark.parametrize("length", [2, 3, 11, 150])
def test_two_numbers_are_marked_one_in_each_half(length):
    inputs, sums = sequences(np.random.default_rng(1), length, 2000)
    assert inputs.shape == (length, 2000, 2) and inputs.dtype == sums.dtype == np.float32
    values, marks = inputs[..., 0], inputs[..., 1]
    assert values.min() >= 0 and values.max() < 1 and values.mean() == pytest.approx(0.5, abs=0.02)
    assert set(np.unique(marks)) <= {0, 1}
    half = length // 2
    assert (marks[:half].sum(0) == 1).all() and (marks[half:].sum(0) == 1).all()
    np.testing.assert_allclose(sums, (values * marks).sum(0), rtol=1e-6)
    assert marks.sum(1).min() > 0, "every step is marked now and then, the first and the last too"


def test_always_answering_one_has_the_error_that_is_stated():
    _, sums = sequences(np.random.default_rng(2), 20, 100_000)
    assert (
        np.square(sums - 1).mean() == pytest.approx(VARIANCE, rel=0.02) and pytest.approx(0.167, abs=1e-3) == VARIANCE
    )


def test_the_files_are_the_documented_defaults():
    cfg = composed("task=adding", "trainer.max_steps=1")
    assert cfg.task == Config() and cfg.data == DataConfig()
    assert (cfg.model.cell, cfg.model.init, cfg.model.num_layers) == ("rnn_relu", "identity", 1)


@pytest.mark.parametrize("name, value", [("length", 1), ("epoch_sequences", 3), ("val_sequences", 0)])
def test_settings_out_of_range(name, value):
    cfg = configured(**{name: value})
    with pytest.raises(UserError, match=rf"data\.{name}={value} must be at least"):
        config.check_task(cfg)


def test_no_sequence_comes_twice_and_none_is_validated_on():
    task = tasks.build(configured(epoch_sequences=43))
    assert task.steps_per_epoch() == 10
    batches = [batch for epoch in range(2) for [batch] in task.train_batches(Shard(), Position(epoch))]
    batches += list(task.eval_batches(Shard()))
    columns = [column.tobytes() for batch in batches for column in batch.tensors["inputs"].numpy().transpose(1, 0, 2)]
    assert len(set(columns)) == len(columns) == 2 * 40 + 50


def test_the_shares_of_a_batch_are_its_parts():
    task = tasks.build(configured())
    [whole] = next(iter(task.train_batches(Shard(), Position())))
    parts = [part for rank in (0, 1) for part in next(iter(task.train_batches(Shard(rank, 2, 2), Position())))]
    assert torch.equal(torch.cat([part.tensors["inputs"] for part in parts], 1), whole.tensors["inputs"])
    assert torch.equal(torch.cat([part.tensors["sums"] for part in parts]), whole.tensors["sums"])


def test_validation_is_the_same_for_every_seed_and_training_is_not():
    first, second = (tasks.build(configured(seed=seed)) for seed in (1, 2))
    [a], [b] = list(first.eval_batches(Shard())), list(second.eval_batches(Shard()))
    assert torch.equal(a.tensors["inputs"], b.tensors["inputs"]) and torch.equal(a.tensors["sums"], b.tensors["sums"])
    [a], [b] = (next(iter(task.train_batches(Shard(), Position()))) for task in (first, second))
    assert not torch.equal(a.tensors["inputs"], b.tensors["inputs"])


def test_loss_and_figures_are_sums_over_the_batch():
    task = tasks.build(configured())
    [batch] = task.eval_batches(Shard())
    assert isinstance(batch, Batch) and batch.count == 50
    for off, right in ((0.0, 50), (0.03, 50), (0.05, 0), (-0.05, 0)):
        figures, state = task.eval_step(Adder(off), batch, None)
        assert state is None and int(figures["accuracy"]) == right
        assert float(figures["loss"]) == pytest.approx(50 * off**2, abs=1e-6)
        assert float(task.loss(Adder(off), batch, None)[0]) == pytest.approx(50 * off**2, abs=1e-6)


def test_sample_and_picture_show_sums_beside_answers():
    task = tasks.build(configured())
    lines = task.sample(Adder(0.25), CPU).splitlines()
    assert len(lines) == 5
    for line in lines:
        right, answer = (float(word) for word in line.split()[1::2])
        assert answer - right == pytest.approx(0.25, abs=2e-3)
    for model in (Adder(), One()):
        [axes] = task.test(model, CPU).pictures["answers"]().axes
        points = np.asarray(axes.collections[0].get_offsets())
        assert points.shape == (50, 2)
        expected = points[:, 0] if isinstance(model, Adder) else 1
        np.testing.assert_allclose(points[:, 1], expected, rtol=1e-5)
    assert "10 steps" in axes.get_title()


@pytest.mark.slow(seconds=15)
def test_the_ci_preset_learns(tmp_path):
    cfg = composed("experiment=adding_20", "trainer.threads=1", "trainer.progress=off")
    outcome = fit(cfg, tasks.build(cfg), World(), tmp_path)
    assert outcome.val_loss < 0.02  # by a constant answer: 0.167
    assert (tmp_path / "answers.png").exists()


def test_presets_are_irnns():
    for name, length in (("adding_150", 150), ("adding_20", 20)):
        cfg = composed(f"experiment={name}")
        assert (cfg.data.length, cfg.model.cell, cfg.model.init) == (length, "rnn_relu", "identity")
