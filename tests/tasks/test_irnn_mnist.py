"""Pixel by pixel: what the model sees, what it is told, what it learns and what is drawn of it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from prnn import config, tasks
from prnn.config import CONF, ModelConfig, TrainConfig
from prnn.data.mnist import embedded, pixel_order
from prnn.errors import UserError
from prnn.task import Position, Shard
from prnn.tasks import irnn_mnist
from prnn.tasks.irnn_mnist import Config, DataConfig
from prnn.training import fit
from prnn.training.distributed import World
from prnn.training.observe.record_reader import read_records

CPU = torch.device("cpu")


def configured(batch_size=4, model=None, **data):
    cfg = TrainConfig(task=Config(), data=DataConfig(**data))
    cfg.model = model or ModelConfig(cell="rnn_relu", init="identity", hidden_size=6, num_layers=1)
    cfg.trainer.batch_size = batch_size
    return cfg


def built(*args, **data):
    task = tasks.build(configured(*args, **data))
    torch.manual_seed(1)
    return task, task.build_model().eval()


def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", list(overrides))
    return config.check(OmegaConf.create(OmegaConf.to_container(cfg)), tasks.schemas(cfg.task.name))


class Oracle(torch.nn.Module):
    """Knows the embedded test images by heart, and takes every 7 for a 1."""

    def __init__(self):
        super().__init__()
        images = embedded().part(slice(1437, None))
        self.known = {pixels.tobytes(): int(label) for pixels, label in zip(images.pixels, images.labels, strict=True)}

    def forward(self, inputs):
        pixels = (inputs[..., 0].T * 16).round().to(torch.uint8).numpy()
        answers = torch.tensor([self.known[row.tobytes()] for row in pixels])
        return 9.0 * torch.nn.functional.one_hot(torch.where(answers == 7, 1, answers), 10).float()


# Configuration


def test_the_files_are_the_documented_defaults():
    cfg = composed("task=irnn_mnist", "trainer.max_steps=1")
    assert cfg.task == Config() and cfg.data == DataConfig()
    mnist = OmegaConf.to_container(OmegaConf.load(CONF / "data/mnist.yaml"))
    assert {name for name, value in vars(DataConfig()).items() if mnist[name] != value} == {"name", "url"}
    assert mnist.keys() == vars(DataConfig()).keys()


def test_other_cells_take_the_place_of_the_irnn():
    for name, cell in (("irnn", "rnn_relu"), ("rnn", "rnn_tanh"), ("gru", "gru"), ("lstm", "lstm")):
        cfg = composed("task=irnn_mnist", f"model={name}", "model.hidden_size=5", "trainer.max_steps=1")
        assert cfg.model.cell == cell
        batch = next(iter(tasks.build(cfg).train_batches(Shard(), Position())))[0]
        assert tasks.build(cfg).build_model()(batch.tensors["pixels"]).shape == (32, 10)


@pytest.mark.parametrize(
    ("name", "value"),
    [("name", " "), ("name", "../x"), ("pool", 0), ("permute_seed", -1), ("permute_seed", 2**32), ("validation", -1)],
)
def test_settings_out_of_range(name, value):
    cfg = configured(**{name: value})
    with pytest.raises(UserError, match=rf"data\.{name}={value} must be"):
        config.check_task(cfg)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"pool": 3}, r"data.pool=3 must divide the images' side: those of data.name=digits are 8x8 pixels"),
        ({"pool": 16}, "data.pool=16 must divide"),
        ({"batch_size": 1438}, "trainer.batch_size=1438 must not exceed the images to train on.* has 1,437"),
        ({"validation": 1437}, "data.validation=1437 of them are held out"),
        ({"name": "nonesuch"}, "data.name=nonesuch does not come with prnn"),
    ],
)
def test_what_cannot_be_trained_on(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        built(**settings)


# Batches


def test_a_batch_holds_images_in_columns_with_their_labels():
    task, _ = built()
    [batch] = next(iter(task.train_batches(Shard(), Position())))
    assert batch.tensors["pixels"].shape == (64, 4, 1) and (batch.count, batch.tokens) == (4, 4)
    known = {image.tobytes(): label for image, label in zip(embedded().pixels, embedded().labels, strict=True)}
    for column, label in zip(batch.tensors["pixels"][..., 0].T.numpy(), batch.tensors["labels"], strict=True):
        assert known[(column * 16).round().astype(np.uint8).tobytes()] == label


def test_an_epoch_shows_every_image_at_most_once_and_leaves_less_than_a_batch_out():
    task, _ = built(batch_size=100)
    for epoch in (0, 1):
        batches = [batch for [batch] in task.train_batches(Shard(), Position(epoch))]
        assert len(batches) == task.steps_per_epoch() == 14
        columns = [
            column.tobytes() for batch in batches for column in batch.tensors["pixels"].numpy().transpose(1, 0, 2)
        ]
        assert len(set(columns)) == len(columns) == 1400


def test_the_shares_of_a_batch_are_its_parts():
    task, _ = built(batch_size=8)
    [whole] = next(iter(task.train_batches(Shard(), Position())))
    parts = [part for rank in (0, 1) for part in next(iter(task.train_batches(Shard(rank, 2, 2), Position())))]
    assert torch.equal(torch.cat([part.tensors["pixels"] for part in parts], 1), whole.tensors["pixels"])
    assert torch.equal(torch.cat([part.tensors["labels"] for part in parts]), whole.tensors["labels"])


def test_validation_is_on_the_test_images_or_on_training_images_held_out():
    for settings, rows in (({}, slice(1437, None)), ({"validation": 100}, slice(1337, 1437))):
        task, _ = built(**settings)
        batches = list(task.eval_batches(Shard()))
        labels = torch.cat([batch.tensors["labels"] for batch in batches])
        assert labels.tolist() == embedded().labels[rows].tolist()
        assert task.steps_per_epoch() == (1437 - settings.get("validation", 0)) // 4
    assert len(task._split.test) == 360


def test_pooled_and_permuted_images():
    plain, permuted = (built(pool=2, permute_seed=seed)[0] for seed in (None, 5))
    batches = [next(iter(task.eval_batches(Shard()))).tensors["pixels"] for task in (plain, permuted)]
    assert batches[0].shape == (16, 360, 1) and batches[0].max() <= 1
    assert torch.equal(batches[1], batches[0][pixel_order(16, 5)]) and not torch.equal(*batches)


def test_large_images_are_validated_in_several_batches(monkeypatch):
    task, model = built(batch_size=8)
    whole, pieces = list(task.eval_batches(Shard())), None
    monkeypatch.setattr(irnn_mnist, "EVAL_PIXELS", 64 * 50)
    pieces = list(task.eval_batches(Shard()))
    assert len(whole) == 1 and [piece.count for piece in pieces] == [50] * 7 + [10]
    with torch.no_grad():
        sums = [sum(float(task.eval_step(model, batch, None)[0]["loss"]) for batch in each) for each in (whole, pieces)]
    assert sums[0] == pytest.approx(sums[1], rel=1e-5)


# Figures


def test_a_fresh_model_knows_nothing():
    task, model = built()
    [batch] = next(iter(task.train_batches(Shard(), Position())))
    with torch.no_grad():
        loss, state = task.loss(model, batch, None)
    assert state is None and float(loss) / batch.count == pytest.approx(np.log(10), abs=0.02)


def test_accuracy_and_test_count_what_is_named_right():
    task, oracle = built()[0], Oracle()
    sevens = int((embedded().labels[1437:] == 7).sum())
    figures = [task.eval_step(oracle, batch, None)[0] for batch in task.eval_batches(Shard())]
    assert sum(int(each["accuracy"]) for each in figures) == 360 - sevens
    tested = task.test(oracle, CPU).figures
    assert tested["accuracy"] == pytest.approx(1 - sevens / 360)
    missed = np.log(np.exp(9) + 9)  # with nine other logits of 0
    assert tested["loss"] == pytest.approx(missed - 9 * (360 - sevens) / 360)
    assert sum(float(each["loss"]) for each in figures) / 360 == pytest.approx(tested["loss"], rel=1e-5)


def test_the_answer_depends_on_the_first_pixel():
    _, model = built(model=ModelConfig(cell="rnn_relu", init="identity", hidden_size=6, num_layers=1, input_std=0.1))
    pixels = torch.rand(64, 1, 1)
    other = pixels.clone()
    other[0] += 1
    assert not torch.allclose(model(pixels), model(other))


@pytest.mark.parametrize(("cell", "init"), [("rnn_relu", "identity"), ("gru", "default"), ("lstm", "default")])
def test_the_model_classifies_the_last_state_of_the_last_layer(cell, init):
    model = built(model=ModelConfig(cell=cell, init=init, hidden_size=5, num_layers=2))[1]
    pixels = torch.rand(7, 3, 1)
    output, _ = model.recurrent(pixels)
    torch.testing.assert_close(model(pixels), model.head(output[-1]))


def test_dropout_is_before_the_classifier():
    _, model = built(model=ModelConfig(cell="lstm", hidden_size=50, num_layers=1, dropout=0.5))
    pixels = torch.rand(5, 2, 1)
    assert torch.equal(model(pixels), model(pixels))
    model.train()
    assert not torch.equal(model(pixels), model(pixels))


def test_the_sample_names_the_mistakes():
    text = built()[0].sample(Oracle(), CPU)
    labels = embedded().labels[1437:1445].tolist()
    assert 7 in labels
    for label, line in zip(labels, text.splitlines()[1:], strict=True):
        taken = 1 if label == 7 else label
        assert line.startswith(f"a {label}: {taken} with ") and ("(wrong)" in line) == (label == 7)


def test_the_test_and_its_pictures_read_every_image_once():
    read = []

    class Counted(Oracle):
        def forward(self, inputs):
            read.append(inputs.shape[1])
            return super().forward(inputs)

    built()[0].test(Counted(), CPU)
    assert sum(read) == 360


def test_pictures_show_the_confusion_and_the_images_as_they_are_seen():
    task = built(permute_seed=3)[0]
    plain = built()[0]

    class Permuted(Oracle):
        def forward(self, inputs):
            upright = torch.empty_like(inputs)
            upright[pixel_order(64, 3)] = inputs
            return super().forward(upright)

    pictures = [task.test(Permuted(), CPU).pictures, plain.test(Oracle(), CPU).pictures]
    for figures in pictures:
        assert list(figures) == ["confusion", "predictions"]
        [axes] = figures["confusion"]().axes
        shares = np.asarray(axes.images[0].get_array())
        assert shares[7, 1] == 1 and shares[7, 7] == 0 and shares[1, 1] == 1
        assert "test images are correct" in axes.get_title()
        titles = [axes.get_title() for axes in figures["predictions"]().axes]
        assert len(titles) == 24 and titles[0].endswith("is a 7") and titles[-1].endswith("correct")
    shown = [[axes.images[0].get_array() for axes in each["predictions"]().axes] for each in pictures]
    assert all(np.array_equal(a, b) for a, b in zip(*shown, strict=True)), "a permuted image is drawn upright"


# Checkpoints and learning


def test_a_checkpoint_is_refused_for_another_order_of_pixels():
    state = json.loads(json.dumps(built(permute_seed=1)[0].state_dict()))
    tasks.build(configured(permute_seed=1), state)
    for settings in ({"permute_seed": 2}, {"permute_seed": 1, "pool": 2}, {}):
        with pytest.raises(
            UserError, match="trained with data.name=digits, data.pool=1, data.permute_seed=1, not with"
        ):
            tasks.build(configured(**settings), state)


@pytest.mark.slow(seconds=20)
def test_the_ci_preset_learns(tmp_path):
    cfg = composed("experiment=irnn_digits", "trainer.threads=1", "trainer.progress=off")
    outcome = fit(cfg, tasks.build(cfg), World(), tmp_path)
    tested = [record for record in read_records(tmp_path / "metrics.jsonl") if record["kind"] == "test"]
    assert outcome.val_loss < 1.0 and tested[0]["figures"]["accuracy"] > 0.7  # by chance: 2.303, 0.1
    assert {"confusion.png", "predictions.png"} <= {path.name for path in tmp_path.iterdir()}


def test_presets_are_the_recipes_of_their_originals():
    keras, paper, lstm, modern = (
        composed(f"experiment={name}") for name in ("irnn_keras", "irnn_paper", "lstm_pixel", "irnn_modern")
    )
    for cfg in (keras, paper, lstm, modern):
        assert (cfg.data.name, cfg.data.pool, cfg.data.permute_seed) == ("mnist", 1, None)
        assert cfg.data.validation == (3000 if cfg is modern else 0)
        assert cfg.model.num_layers == 1 and cfg.model.dropout == 0
    irnn = ModelConfig(
        "rnn_relu", init="identity", identity_scale=1, input_std=0.001, hidden_size=100, num_layers=1, bias_hh=False
    )
    assert keras.model == paper.model == irnn
    assert modern.model == replace(irnn, hidden_size=256, input_std=0.57735, bias_hh=True)  # nn.Linear's U(-1, 1)
    assert (lstm.model.cell, lstm.model.hidden_size, lstm.model.forget_bias) == ("lstm", 100, 1)
    assert not lstm.model.bias_hh
    summary = [
        (cfg.optimizer.name, cfg.optimizer.lr, cfg.trainer.batch_size, cfg.trainer.clip_norm, cfg.trainer.clip_value)
        for cfg in (keras, paper, lstm, modern)
    ]
    assert summary == [
        ("rmsprop", 1e-6, 32, None, None),
        ("sgd", 1.6e-7, 16, None, None),  # 1e-8 of a sum over the batch
        ("sgd", 0.01, 16, None, 1),
        ("adam", 1e-4, 128, 1, None),
    ]
    assert (keras.optimizer.alpha, keras.optimizer.eps, keras.trainer.max_epochs) == (0.9, 1e-7, 200)
    assert paper.trainer.max_steps == lstm.trainer.max_steps == 1_000_000
    schedule = modern.optimizer.schedule
    assert (schedule.name, schedule.gamma, schedule.every_epochs, modern.trainer.max_epochs) == ("step", 0.1, 100, 120)


def test_presets_for_a_cpu_take_any_cell():
    for name, pool, steps in (("irnn_14x14", 2, 196), ("irnn_7x7", 4, 49)):
        irnn = composed(f"experiment={name}")
        assert (irnn.data.name, irnn.data.pool, (28 // pool) ** 2) == ("mnist", pool, steps)
        assert (irnn.model.cell, irnn.model.init, irnn.model.num_layers) == ("rnn_relu", "identity", 1)
        for model, cell in (("lstm", "lstm"), ("rnn", "rnn_tanh")):
            other = composed(f"experiment={name}", f"model={model}")
            assert (other.model.cell, other.model.init, other.model.num_layers) == (cell, "default", 1)
            assert (other.trainer, other.optimizer) == (irnn.trainer, irnn.optimizer)
