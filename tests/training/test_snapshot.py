"""A run resumed with other settings: what does not fit any more starts anew, with a warning."""

import pytest

from prnn.config import OptimizerConfig
from prnn.training import checkpoint, evaluate
from tests.training.test_loop import train
from tests.training.toy_task import ToyTask


def test_resuming_on_other_terms_says_what_starts_anew(tmp_path, capsys):
    train(tmp_path, max_steps=10)
    train(tmp_path, resume=True, max_steps=14, batch_size=4, optimizer=OptimizerConfig("sgd"))
    said = capsys.readouterr().out
    assert "the optimizer differs" in said
    assert "epoch 1 starts over" in said


def test_resuming_in_another_precision_starts_the_carried_state_anew(tmp_path, capsys):
    train(tmp_path, max_steps=10, precision="bfloat16")
    assert train(tmp_path, resume=True, max_steps=12).step == 12
    assert "trainer.precision differs" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["rmsprop", "sgd"])
@pytest.mark.parametrize("momenta", [(0.0, 0.9), (0.9, 0.0)])
def test_resuming_with_momentum_turned_on_or_off_starts_the_optimizer_anew(tmp_path, capsys, name, momenta):
    train(tmp_path, max_steps=10, optimizer=OptimizerConfig(name, momentum=momenta[0]))
    train(tmp_path, resume=True, max_steps=12, optimizer=OptimizerConfig(name, momentum=momenta[1]))
    assert "its momentum was turned on or off: state reset" in capsys.readouterr().out
    train(tmp_path, resume=True, max_steps=14, optimizer=OptimizerConfig(name, momentum=momenta[1] / 2))
    assert "state reset" not in capsys.readouterr().out


def test_resuming_with_another_seed_starts_the_epoch_anew(tmp_path, capsys):
    train(tmp_path, max_steps=10)
    train(tmp_path, resume=True, max_steps=12, seed=9)
    assert "seed than the checkpoint's: epoch 1 starts over" in capsys.readouterr().out
    assert checkpoint.read(tmp_path).state["position"] == {"epoch": 1, "index": 2}


def test_resuming_on_other_data_of_the_same_settings_starts_the_epoch_anew(tmp_path, capsys, monkeypatch):
    train(tmp_path, max_steps=10)
    train(tmp_path, resume=True, max_steps=12)
    assert "other data" not in capsys.readouterr().out
    monkeypatch.setattr(ToyTask, "fingerprint", lambda task: "other")
    train(tmp_path, resume=True, max_steps=14)
    assert "other data, batch size or seed than the checkpoint's: epoch 1 starts over" in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, "{"], ids=["deleted", "damaged"])
def test_a_best_checkpoint_that_is_no_longer_marked_is_kept(tmp_path, monkeypatch, capsys, content):
    """The validation loss rises from step 5 on."""
    losses = iter(range(1, 100))
    monkeypatch.setattr(evaluate, "evaluate", lambda *args: {"loss": float(next(losses))})
    train(tmp_path, max_steps=10, eval_every=5, checkpoint_every=5, keep_checkpoints=1)
    best = checkpoint.folder(tmp_path) / checkpoint.BEST
    marked = best.read_text()
    best.unlink() if content is None else best.write_text(content)
    train(tmp_path, max_steps=20, eval_every=5, checkpoint_every=5, keep_checkpoints=1, resume=True)
    assert best.read_text() == marked
    assert [checkpoint.step_of(path) for path in checkpoint.listing(tmp_path)] == [5, 20]
    assert capsys.readouterr().out.count("did not name the best checkpoint: it is rewritten") == 1


def test_a_best_checkpoint_that_a_kill_left_unmarked_is_marked_at_the_resume(tmp_path):
    train(tmp_path, max_steps=5)
    best = checkpoint.folder(tmp_path) / checkpoint.BEST
    marked = best.read_text()
    best.unlink()
    train(tmp_path, max_steps=5, resume=True)
    assert best.read_text() == marked
