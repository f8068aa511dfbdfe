import math
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from prnn import config, tasks
from prnn.cell_table import CELLS
from prnn.config import CONF, ModelConfig, TrainConfig
from prnn.data import encoding
from prnn.errors import UserError
from prnn.task import Batch, Position, Shard, State, Task
from prnn.tasks.char_lm import Config, DataConfig
from prnn.training import fit
from prnn.training.distributed import World
from tests.tasks.conftest import TEXT

CPU = torch.device("cpu")


def configured(
    path: Path | None, batch_size: int = 4, model: ModelConfig | None = None, **settings: Any
) -> TrainConfig:
    """A small configuration; ``settings`` go to the sections task and data by their names."""
    names = {field.name for field in fields(Config)}
    task = Config(**{name: value for name, value in settings.items() if name in names})
    data = DataConfig(**{name: value for name, value in settings.items() if name not in names})
    cfg = TrainConfig(task=task, data=replace(data, path=None if path is None else str(path)))
    cfg.trainer.batch_size = batch_size
    cfg.model = model or ModelConfig(hidden_size=6, num_layers=1)
    return cfg


def built(path: Path | None, *args: Any, **settings: Any) -> tuple[Task, torch.nn.Module]:
    task = tasks.build(configured(path, *args, **settings))
    torch.manual_seed(1)
    return task, task.build_model()


def batches(task: Task, shard: Shard = Shard(), position: Position = Position()) -> list[list[Batch]]:
    return list(task.train_batches(shard, position))


def same(a: Batch, b: Batch) -> bool:
    tensors = all(torch.equal(a.tensors[name], b.tensors[name]) for name in ("inputs", "targets"))
    return tensors and (a.count, a.tokens, a.reset_state) == (b.count, b.tokens, b.reset_state)


# Configuration


def test_the_presets_are_the_documented_defaults() -> None:
    for file, schema in (("task/char_lm.yaml", Config), ("data/shakespeare.yaml", DataConfig)):
        assert OmegaConf.to_container(OmegaConf.load(Path(CONF) / file)) == vars(schema())
    tiny = OmegaConf.to_container(OmegaConf.load(Path(CONF) / "data/tinyshakespeare.yaml"))
    differing = {name for name, value in vars(DataConfig()).items() if tiny[name] != value}
    assert differing == {"name", "url", "sha256"} and tiny.keys() == vars(DataConfig()).keys()


@pytest.mark.parametrize(
    "setting, value",
    [
        ("bptt", 0), ("eval_streams", 0), ("eval_tokens", 1), ("sample_length", -1), ("temperature", -0.1),
        ("top_k", -1), ("top_p", 1.5), ("level", "syllable"), ("val_fraction", 0.0),
        ("val_fraction", 1.0), ("max_words", 1), ("fraction", 0.0), ("fraction", 1.01), ("fraction", float("nan")),
    ],
)  # fmt: skip
def test_settings_out_of_range(setting: str, value: Any) -> None:
    cfg = configured(None, **{setting: value})
    section = "task" if hasattr(cfg.task, setting) else "data"
    with pytest.raises(UserError, match=rf"{section}\.{setting}={value} must be"):
        config.check_task(cfg)


def test_the_defaults_are_in_range() -> None:
    cfg = configured(None)
    config.check_task(cfg)


def test_an_unknown_task_is_told_the_known_ones() -> None:
    assert tasks.schemas("char_lm") == (Config, DataConfig)
    for name in ("nonesuch", "decode", "task", "../x"):
        with pytest.raises(UserError, match=r"there is no task .* the known tasks are .*char_lm"):
            tasks.schemas(name)


@pytest.mark.parametrize(
    "content, settings, sentence",
    [
        (b"", {}, "is empty"),
        (b"\xef\xbb\xbf", {}, "is empty"),
        (b"   ", {"level": "word"}, "is empty"),
        (b"ab\xff", {}, "not UTF-8"),
        (b"short", {}, r"x task.bptt=50 need 201 tokens to train on, and the text has 4"),
        (b"a" * 300, {"val_fraction": 1e-6}, "leaves 1 to validate on"),
    ],
)
def test_texts_that_cannot_be_trained_on(
    tmp_path: Path, content: bytes, settings: dict[str, Any], sentence: str
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        tasks.build(configured(path, **settings))


# Data


@pytest.mark.parametrize("level", ["char", "byte", "word"])
@pytest.mark.parametrize("held_bytes", [0, 1 << 20])
def test_batches_are_of_the_text_training_began_with(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str, held_bytes: int
) -> None:
    monkeypatch.setenv("PRNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(encoding, "HELD_BYTES", held_bytes)
    task = tasks.build(configured(text_file, bptt=5, level=level))
    before, validated = batches(task), list(task.eval_batches(Shard()))
    text_file.write_bytes(b"\xff" * 7)
    assert all(same(a, b) for (a,), (b,) in zip(before, batches(task), strict=True))
    assert all(same(a, b) for a, b in zip(validated, task.eval_batches(Shard()), strict=True))


def test_ranks_that_read_different_data_are_refused(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts of one length and one alphabet: nothing else would notice."""
    cfg = configured(text_file, bptt=5)
    task = tasks.build(cfg)
    text_file.write_text(TEXT[::-1])
    other = tasks.build(cfg)
    assert other.state_dict() == task.state_dict()
    fingerprints = [task.fingerprint(), other.fingerprint()]
    assert fingerprints == list(dict.fromkeys(fingerprints))
    monkeypatch.setattr(World, "gather", lambda self, value: [value, fingerprints[1]])
    with pytest.raises(UserError, match="^the ranks do not read the same data: give each machine the same files"):
        fit(cfg, task, World(), tmp_path / "run")


def test_tinyshakespeare_is_split_as_everybody_splits_it() -> None:
    if not os.environ.get("PRNN_DATA"):
        pytest.skip("PRNN_DATA is not set")
    cfg = configured(None)
    cfg.data = DataConfig(name="tinyshakespeare", url="http://127.0.0.1:9/input.txt")  # where nobody listens
    task = tasks.build(cfg)
    train, validation = task._open()
    assert (train.start, train.stop, validation.start, validation.stop) == (0, 1_003_854, 1_003_854, 1_115_394)
    assert validation.stop - validation.start == 111_540 and len(task.vocabulary) == 65
    (inputs,) = [batch.tensors["inputs"] for batch in list(task.eval_batches(Shard()))[:1]]
    assert task.vocabulary.decode(inputs[:4, 0].tolist()) == "?\n\nG"


@pytest.mark.parametrize("shard", [Shard(0, 2, 1), Shard(0, 1, 3), Shard(0, 2, 3)])
def test_shards_together_are_the_unsharded_batch(text_file: Path, shard: Shard) -> None:
    task, _ = built(text_file, batch_size=12, bptt=7)
    ranks = [batches(task, Shard(rank, shard.world_size, shard.accumulate)) for rank in range(shard.world_size)]
    for step, (whole,) in enumerate(batches(task)):
        parts = [micro for rank in ranks for micro in rank[step]]
        assert len(parts) == shard.world_size * shard.accumulate
        for name, tensor in whole.tensors.items():
            torch.testing.assert_close(torch.cat([part.tensors[name] for part in parts], dim=1), tensor)
        assert sum(part.count for part in parts) == whole.count == 12 * 7
        assert {part.reset_state for part in parts} == {step == 0}


def test_any_position_continues_with_the_same_batches(text_file: Path) -> None:
    task, _ = built(text_file, bptt=11)
    for epoch in (0, 3):
        whole = batches(task, position=Position(epoch))
        assert len(whole) == task.steps_per_epoch()
        again = tasks.build(task.cfg, task.state_dict())  # as another process would
        for index in (0, 1, 5, len(whole)):
            rest = batches(again, position=Position(epoch, index))
            assert len(rest) == len(whole) - index
            assert all(same(a, b) for (a,), (b,) in zip(whole[index:], rest, strict=True))


def test_a_checkpoint_needs_no_text_until_it_trains_and_then_the_same_text(text_file: Path) -> None:
    task, model = built(text_file)
    state = task.state_dict()
    text_file.rename(text_file.with_name("elsewhere.txt"))
    restored = tasks.build(task.cfg, state)
    assert restored.sample(model, CPU) == task.sample(model, CPU)
    with pytest.raises(UserError, match="there is no such file"):
        restored.steps_per_epoch()
    text_file.write_text(TEXT.replace("fox", "cat"))
    with pytest.raises(UserError, match="is not the text the checkpoint was trained on"):
        restored.steps_per_epoch()


# The textbook's checks


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("embedding_size", [0, 8])
def test_the_first_loss_is_ln_v(cell: str, embedding_size: int) -> None:
    model_config = ModelConfig(cell=cell, hidden_size=64, num_layers=2, embedding_size=embedding_size, dropout=0.1)
    task, model = built(None, batch_size=20, model=model_config)
    (batch,) = next(task.train_batches(Shard(), Position()))
    loss, _ = task.loss(model, batch, None)
    assert float(loss.detach()) / batch.count == pytest.approx(math.log(len(task.vocabulary)), rel=0.02)


def split_loss(task: Task, model: torch.nn.Module, batch: Batch, cut: int, detach: bool) -> Tensor:
    """The summed loss over a batch read in two parts, the state carried from one to the other, detached or not."""
    first, second = (
        Batch({name: tensor[part] for name, tensor in batch.tensors.items()}, 0, 0)
        for part in (slice(0, cut), slice(cut, None))
    )
    before, state = task.loss(model, first, None)
    if not detach:
        _, state = model(first.tensors["inputs"], None)
    after, _ = task.loss(model, second, state)
    return before + after


@pytest.mark.parametrize("cell", CELLS)
def test_carried_state_is_one_long_sequence_but_its_gradient_is_truncated(text_file: Path, cell: str) -> None:
    task, model = built(text_file, bptt=12, model=ModelConfig(cell=cell, hidden_size=6, num_layers=2))
    model.double()
    (batch,) = next(task.train_batches(Shard(), Position()))

    def gradient(loss: Tensor) -> Tensor:
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()))])

    whole, _ = task.loss(model, batch, None)
    carried = split_loss(task, model, batch, 5, detach=False)
    truncated = split_loss(task, model, batch, 5, detach=True)
    torch.testing.assert_close(carried, whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(truncated, whole, rtol=1e-12, atol=0)
    full = gradient(whole)
    torch.testing.assert_close(gradient(carried), full, rtol=1e-9, atol=1e-9)
    assert (gradient(truncated) - full).norm() > 1e-3 * full.norm()


def test_the_loss_is_float32_under_autocast(text_file: Path) -> None:
    task, model = built(text_file)
    (batch,) = next(task.train_batches(Shard(), Position()))
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = task.loss(model, batch, None)
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(task.loss(model, batch, None)[0].detach()), rel=0.01)


def test_carried_state_is_detached_and_matters(text_file: Path) -> None:
    task, model = built(text_file, bptt=12)
    (first,), (second,) = batches(task)[:2]
    _, state = task.loss(model, first, None)

    def flat(state: State) -> list[Tensor]:
        return [state] if isinstance(state, Tensor) else [tensor for part in state for tensor in flat(part)]

    assert not any(tensor.requires_grad for tensor in flat(state))
    assert task.loss(model, second, state)[0] != task.loss(model, second, None)[0]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("embedding_size", [0, 3])
def test_finite_differences_of_the_whole_bptt(tmp_path: Path, cell: str, embedding_size: int) -> None:
    path = tmp_path / "text.txt"
    path.write_text("abcabdacb" * 20)
    shape = ModelConfig(cell=cell, hidden_size=3, num_layers=2, embedding_size=embedding_size)
    task, model = built(path, batch_size=2, bptt=6, model=shape)
    model.double()
    (batch,) = next(task.train_batches(Shard(), Position()))

    def loss() -> Tensor:
        return task.loss(model, batch, None)[0]

    assert loss().dtype == torch.float64
    gradients = torch.autograd.grad(loss(), list(model.parameters()))
    step = 1e-6
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        flat = parameter.data.view(-1)
        for i in range(0, len(flat), max(1, len(flat) // 6)):
            value = float(flat[i])
            flat[i] = value + step
            above = float(loss().detach())
            flat[i] = value - step
            below = float(loss().detach())
            flat[i] = value
            assert float(gradient.view(-1)[i]) == pytest.approx((above - below) / (2 * step), rel=1e-5, abs=1e-7)
