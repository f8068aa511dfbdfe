"""Hydra's sweeps as a search space."""

import pytest

from prnn.command_line import without_sweeps
from prnn.errors import UserError
from prnn.tuning.space import Space

optuna = pytest.importorskip("optuna")

WORDS = [
    "task=char_lm", "model=rnn,gru", "seed=range(1,8,3)", "optimizer.lr=tag(log,interval(1e-4,1e-1))",
    "model.hidden_size=int(interval(16,64))", "trainer.compile=choice(true,false)", "task.prompt=a,'b c'",
    "+optimizer.betas=[0.9,0.99],[0.8,0.9]", "model.input_std=interval(0.9,0.99999)", "optimizer.weight_decay=1,0",
]  # fmt: skip
# Of a run without the sweeps.
DEFAULTS = {
    "model": "gru", "seed": 1, "optimizer.lr": 1e-3, "model.hidden_size": 48, "trainer.compile": False,
    "task.prompt": "b c", "optimizer.betas": [0.9, 0.99], "model.input_std": 0.9, "model.dropout": 0.0,
    "optimizer.weight_decay": 0.0,
}  # fmt: skip


def test_a_trial_has_the_fixed_words_and_a_value_of_each_sweep():
    space = Space.of(WORDS, {"model": "lstm,rnn", "model.dropout": "interval(0,0.5)"}, DEFAULTS.get)
    assert space.fixed == ("task=char_lm",) and without_sweeps(WORDS) == ["task=char_lm"]
    assert space.defaults == {**DEFAULTS, "task.prompt": "'b c'", "optimizer.betas": "[0.9,0.99]"}
    for key in Space.of(WORDS, {}, DEFAULTS.get).swept:
        outside = {"seed": 2, "optimizer.lr": 1.0, "model.hidden_size": 48.0}.get(key, "none of them")
        assert Space.of(WORDS, {}, {**DEFAULTS, key: outside}.get).defaults is None
    study = optuna.create_study()
    for _ in range(20):
        trial = study.ask()
        words = dict(word.partition("=")[::2] for word in space.suggest(trial))
        assert words.pop("task") == "char_lm" and words["model"] in ("rnn", "gru")  # the word, not the preset's
        assert words["seed"] in ("1", "4", "7") and words["trainer.compile"] in ("true", "false")
        assert 1e-4 <= float(words["optimizer.lr"]) <= 1e-1 and len(words["optimizer.lr"]) <= 9
        assert 16 <= int(words["model.hidden_size"]) <= 64 and 0 <= float(words["model.dropout"]) <= 0.5
        assert words["task.prompt"] in ("a", "'b c'")
        assert words["+optimizer.betas"] in ("[0.9,0.99]", "[0.8,0.9]") and 0.9 <= float(words["model.input_std"]) < 1
        assert dict(word.partition("=")[::2] for word in space.overrides(trial.params)) == words
    assert trial.distributions["optimizer.lr"].log and not trial.distributions["model.dropout"].log


@pytest.mark.parametrize(
    "word",
    [
        "a=interval(2,1)",
        "a=tag(log,interval(0,1))",
        "a=glob(*)",
        "a=range(1,1)",
        "a=interval(1,1)",
        "a=range(0,1,0)",
        "a=interval(0,inf)",
    ],
)
def test_a_sweep_without_a_distribution(word):
    with pytest.raises(UserError, match="cannot be tuned: write several values"):
        Space.of([word], {}, DEFAULTS.get)


def test_nothing_to_tune():
    with pytest.raises(UserError, match="nothing is to be tuned: give a setting several values"):
        Space.of(["seed=1"], {}, DEFAULTS.get)


def test_a_rounded_value_stays_in_its_interval():
    space = Space.of(["model.dropout=interval(0.9999,0.99999999)"], {}, DEFAULTS.get)
    assert space.overrides({"model.dropout": 0.999999}) == ["model.dropout=0.99999999"]
