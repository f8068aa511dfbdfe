"""Perceptual decisions: the trials, what counts as a choice, the noise in the units, what is learned and drawn."""

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from prnn import config, tasks
from prnn.config import CONF
from prnn.data.decision import COHERENCES, Periods, ideal, trials
from prnn.data.sampler import IGNORED
from prnn.errors import UserError
from prnn.task import Position, Shard
from prnn.tasks.decision import Config, DataConfig, choices
from prnn.training import fit
from prnn.training.distributed import World

CPU = torch.device("cpu")
SHORT = ["data.fixation=2", "data.stimulus=6", "data.delay=3", "data.response=2", "data.val_trials=40"]


def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["task=decision", "trainer.max_steps=3", "model.hidden_size=6", *SHORT, *overrides])
    return config.check(OmegaConf.create(OmegaConf.to_container(cfg)), tasks.schemas(cfg.task.name))


class Integrator(torch.nn.Module):
    """The ideal observer: at every step, the difference of the streams so far."""

    def forward(self, inputs):
        right = (inputs[..., 2] - inputs[..., 1]).cumsum(0)
        return torch.stack([-right, right], -1)


def test_a_trial_is_fixation_evidence_delay_and_response():
    periods = Periods(fixation=3, stimulus=5, delay=4, response=2)
    drawn = trials(np.random.default_rng(1), periods, 0.0, 500)
    assert drawn.inputs.shape == (14, 500, 3) and drawn.inputs.dtype == np.float32 and drawn.targets.dtype == np.int64
    assert (drawn.inputs[:3, :, 1:] == 0).all() and (drawn.inputs[8:, :, 1:] == 0).all()
    np.testing.assert_allclose(
        drawn.inputs[3:8, :, 2] - drawn.inputs[3:8, :, 1], np.tile(drawn.coherences, (5, 1)), 1e-5
    )
    np.testing.assert_allclose(drawn.inputs[3:8, :, 1:].sum(-1), 1, rtol=1e-6)
    asked = drawn.targets != IGNORED
    assert (asked.sum(0) == 2).all() and not asked[:8].any()
    go = asked.argmax(0)
    assert set(go) == {8, 9, 10, 11, 12}, "each delay from 0 to 4"
    for steps, fixation in zip(go, drawn.inputs[..., 0].T, strict=True):
        assert (fixation[:steps] == 1).all() and (fixation[steps:] == 0).all()
    assert (drawn.targets.max(0) == (drawn.coherences > 0)).all()
    assert set(np.abs(drawn.coherences)) == set(COHERENCES) and 0.4 < (drawn.coherences > 0).mean() < 0.6


def test_the_ideal_observer_is_as_good_as_is_stated():
    task = tasks.build(composed("data.stimulus=40", "data.noise=0.4"))
    found = task.test(Integrator(), CPU).figures
    assert found["ideal_accuracy"] == pytest.approx(0.865, abs=5e-4)
    assert found["accuracy"] == pytest.approx(found["ideal_accuracy"], abs=0.01)
    assert ideal(0.1, 10, 0.0) == 1 and ideal(0.0, 10, 0.4) == 0.5


def test_the_files_are_the_documented_defaults():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["task=decision", "trainer.max_steps=1"])
    typed = config.check(OmegaConf.create(OmegaConf.to_container(cfg)), tasks.schemas("decision"))
    assert typed.task == Config() and typed.data == DataConfig()
    assert (typed.model.cell, typed.model.num_layers, typed.data.periods.steps) == ("prnn.cells:ctrnn", 1, 80)


@pytest.mark.parametrize(
    "setting", ["data.stimulus=0", "data.delay=-1", "data.noise=-0.1", "data.epoch_trials=3", "task.noise=-1"]
)
def test_settings_out_of_range(setting):
    with pytest.raises(UserError, match=f"{setting.replace('.', '[.]')}(.0)? must be at least"):
        composed(setting)


def test_too_many_trials_at_once():
    with pytest.raises(UserError, match="data.val_trials=60000000 trials of 13 steps are generated at once"):
        composed("data.val_trials=60000000")


def test_only_the_response_counts():
    task = tasks.build(composed())
    [batch] = task.eval_batches(Shard())
    inputs, targets = batch.tensors["inputs"], batch.tensors["targets"]
    right = torch.nn.functional.one_hot(targets.clamp(min=0), 2) * 50.0

    class Answers(torch.nn.Module):
        def __init__(self, logits):
            super().__init__()
            self.logits = logits

        def forward(self, _):
            return self.logits

    elsewhere = torch.where(targets[..., None] == IGNORED, torch.tensor([1e4, 0.0]), right)  # a wrong answer there
    figures, _ = task.eval_step(Answers(elsewhere), batch, None)
    assert (int(figures["accuracy"]), batch.count) == (40, 40) and float(figures["loss"]) < 1e-6
    figures, _ = task.eval_step(Answers(torch.zeros(*targets.shape, 2)), batch, None)
    assert float(figures["loss"]) == pytest.approx(40 * np.log(2), rel=1e-5)
    assert (choices(-right, targets) != targets.amax(0)).all() and inputs.shape[:2] == targets.shape


@pytest.mark.parametrize("layers", [1, 2])
def test_noise_is_for_cells_that_take_it_and_for_training(layers):
    x = next(iter(tasks.build(composed()).eval_batches(Shard()))).tensors["inputs"]
    for model, noisy in (("ctrnn", True), ("gru", False)):
        net = tasks.build(composed(f"model={model}", "task.noise=0.5", f"model.num_layers={layers}")).build_model()
        with torch.no_grad():
            assert torch.equal(net(x), net(x)) is not noisy
            assert torch.equal(net.eval()(x), net(x))
            net.train().noise = 0.0
            assert torch.equal(net(x), net.eval()(x))


def test_sample_and_picture_show_choices():
    task = tasks.build(composed("data.noise=0"))
    lines = task.sample(Integrator(), CPU).splitlines()
    assert len(lines) == 5 and all(("+" in line) == line.endswith("right") for line in lines)
    [axes] = task.test(Integrator(), CPU).pictures["psychometric"]().axes
    assert axes.get_title() == "100.0% of 10,000 trials are right"
    x, y = axes.lines[1].get_data()
    assert len(x) == 2 * len(COHERENCES) and (y == np.where(x > 0, 100, 0)).all()


def test_a_hundred_steps_learn_easy_trials(tmp_path):
    more = ["data.noise=0.1", "trainer.max_steps=100", "optimizer.lr=0.01", "trainer.threads=1", "trainer.eval_every=0"]
    cfg = composed(*more, "trainer.progress=off", "model.hidden_size=16", "trainer.batch_size=32")
    assert fit(cfg, tasks.build(cfg), World(), tmp_path).val_loss < 0.5  # without evidence: log 2 = 0.693
    assert (tmp_path / "psychometric.png").exists()


def test_trials_are_new_in_every_batch_and_the_same_for_every_run():
    task = tasks.build(composed("data.epoch_trials=256"))
    batches = [batch for epoch in range(2) for [batch] in task.train_batches(Shard(), Position(epoch))]
    batches += list(task.eval_batches(Shard()))
    columns = [column.tobytes() for batch in batches for column in batch.tensors["inputs"].numpy().transpose(1, 0, 2)]
    assert len(set(columns)) == len(columns) == 2 * 256 + 40
