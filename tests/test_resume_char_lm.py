"""The loop with the real language model: exact resume, and a compiled model's curve."""

from functools import partial

import pytest
import torch

from prnn import tasks
from prnn.config import ModelConfig, TrainConfig, TrainerConfig
from prnn.tasks.char_lm import Config, DataConfig
from prnn.training import checkpoint, fit
from prnn.training.distributed import World
from tests.training.test_loop import assert_same_bits, losses

TEXT = "".join(f"{i} green bottles hanging on the wall, and if one should fall, {i - 1}.\n" for i in range(40, 0, -1))


@pytest.fixture
def train(tmp_path):
    """Train a small language model of a small text: ``train(run directory, resume, settings of the trainer)``."""
    text = tmp_path / "text.txt"
    text.write_text(TEXT)

    def run(name, resume=False, dropout=0.4, cell="lstm", forget=(), **settings):
        cfg = TrainConfig(Config(bptt=8, sample_length=20), DataConfig(path=str(text)))
        cfg.model = ModelConfig(cell, hidden_size=8, num_layers=2, dropout=dropout, embedding_size=0)
        cfg.trainer = TrainerConfig(
            batch_size=4, threads=1, log_every=1, eval_every=2, checkpoint_every=3, progress="off", **settings
        )
        loaded = checkpoint.read(tmp_path / name) if resume else None
        for setting in forget:  # as an older version's checkpoint, which does not have it
            del loaded.manifest["config"]["data"][setting]
        task = tasks.build(cfg, loaded.manifest["task"] if loaded else None)
        fit(cfg, task, World(), tmp_path / name, loaded)
        return tmp_path / name

    return run


@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
def test_six_steps_are_three_a_resume_and_three(train, cell):
    straight = train("straight", cell=cell, max_steps=6)
    cut = train("cut", cell=cell, max_steps=3)
    assert checkpoint.read(cut).step == 3
    train("cut", resume=True, cell=cell, max_steps=6)
    metrics = cut / "metrics.jsonl"  # without the validation and the sample that ended the first part
    lines = [line for line in metrics.read_text().splitlines() if '"step": 3' not in line or '"train"' in line]
    metrics.write_text("\n".join(lines) + "\n")
    assert_same_bits(straight, cut)


def test_a_checkpoint_from_before_a_setting_of_the_data_is_of_the_same_data(train, capsys):
    straight = train("straight", max_steps=6)
    cut = train("cut", max_steps=3)
    train("cut", resume=True, forget=("fraction",), max_steps=6)
    assert "other data" not in capsys.readouterr().out
    a, b = checkpoint.read(straight), checkpoint.read(cut)
    assert all(torch.equal(a.model_state[name], b.model_state[name]) for name in a.model_state)


def test_a_compiled_models_curve_is_the_ordinary_ones(train, monkeypatch):
    torch._dynamo.reset()
    compiled = []
    compile_ = partial(torch.compile, backend="aot_eager")  # inductor would call a C++ compiler, for minutes

    def spy(model, **options):
        compiled.append(options)
        return compile_(model, **options)

    monkeypatch.setattr(torch, "compile", spy)
    ordinary = train("ordinary", dropout=0.0, max_steps=2)
    assert not compiled
    fast = train("compiled", dropout=0.0, max_steps=2, compile=True)
    assert compiled == [{"fullgraph": True}]
    for kind in ("train", "val"):
        assert dict(losses(fast, kind)) == pytest.approx(dict(losses(ordinary, kind)), abs=1e-5)
    assert checkpoint.read(fast).model_state.keys() == checkpoint.read(ordinary).model_state.keys()
