"""prnn.config: types, unknown keys, ranges, exclusions; and conf/ against the schema."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from prnn import config
from prnn.config import CONF, TrainConfig, check
from prnn.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
CLASSES = {
    "model": config.ModelConfig,
    "optimizer": config.OptimizerConfig,
    "trainer": config.TrainerConfig,
    "distributed": config.DistributedConfig,
    "logger": config.LoggerConfig,
}


@dataclass
class ToyTask:
    name: str = "toy"
    length: int = 3

    def validate(self, cfg: Any) -> None:
        if self.length > cfg.model.hidden_size:
            raise UserError(f"task.length={self.length} must not exceed model.hidden_size.")


@dataclass
class ToyData:
    path: str | None = None


def toy(changes: dict[str, Any]) -> TrainConfig:
    """The default configuration of a toy task, with changes by dotted key, checked."""
    defaults = TrainConfig(task=ToyTask(), data=ToyData())
    defaults.trainer.max_steps = 10
    cfg = OmegaConf.create(OmegaConf.to_container(OmegaConf.structured(defaults)))
    for key, value in changes.items():
        OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    return check(cfg, (ToyTask, ToyData))


def refusal(changes: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        toy(changes)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith((".", "?"))
    return sentence


def leaves(section: Any, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in fields(section):
        value = getattr(section, field.name)
        if is_dataclass(value):
            found |= leaves(value, f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = value
    return found


def composed(*overrides: str) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides))


def test_check_gives_typed_objects() -> None:
    cfg = toy({"model.hidden_size": "256", "optimizer.lr": 1, "optimizer.betas": [0.8, 0.9], "seed": "${task.length}"})
    assert isinstance(cfg, TrainConfig) and isinstance(cfg.task, ToyTask) and isinstance(cfg.data, ToyData)
    assert cfg.model == config.ModelConfig(hidden_size=256)
    assert isinstance(cfg.optimizer.lr, float) and cfg.optimizer.betas == (0.8, 0.9)
    assert cfg.seed == 3


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("model.hidden_size", "wide", "an integer"),
        ("model.hidden_size", 12.5, "an integer"),
        ("model.hidden_size", None, "an integer"),
        ("model.hidden_size", [1], "an integer"),
        ("trainer.compile", "perhaps", "true or false"),
        ("trainer.max_steps", "many", "an integer or null"),
        ("optimizer.lr", "fast", "a number"),
        ("optimizer.betas", ["a", 0.9], "a list of 2 values, each a number"),
        ("optimizer.betas", [[1], 2], "two numbers at least 0 and below 1"),
        ("optimizer.betas", "${seed}", "two numbers at least 0 and below 1"),
        ("logger.tags", [["a"]], "a list of texts"),
        ("logger.tags", "${seed}", "a list of texts"),
        ("optimizer.schedule.gamma", {}, "a number"),
        ("logger.tags", "one", "a list, each value a text"),
        ("task.length", "long", "an integer"),
        ("model", 3, "a section of settings"),
        ("optimizer.schedule", "step", "a section of settings"),
        ("task", None, "a section of settings"),
    ],
)
def test_wrong_type(key: str, value: Any, expected: str) -> None:
    sentence = refusal({key: value})
    assert sentence.startswith(f"{key}=") and f"must be {expected}" in sentence


def test_a_number_of_hundreds_of_digits() -> None:
    assert refusal({"optimizer.lr": 10**400}) == "optimizer.lr must be a number: it has hundreds of digits."


def test_the_sentence_shows_the_value_given() -> None:
    assert refusal({"model.hidden_size": "wide"}) == "model.hidden_size=wide must be an integer."
    assert refusal({"model.hidden_size": None}) == "model.hidden_size=null must be an integer."
    assert refusal({"model.cell": "rnn"}) == (
        "model.cell=rnn must be one of rnn_tanh, rnn_relu, gru, lstm, or module:name of a cell written in Python, "
        "such as mypkg.cells:lif."
    )


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("model.hiden_size", "model.hidden_size"),
        ("modle", "model"),
        ("optimizer.shedule", "optimizer.schedule"),
        ("optimizer.schedule.gama", "optimizer.schedule.gamma"),
        ("hidden_size", "model.hidden_size"),
        ("optimizer.cell", "model.cell"),
        ("task.lenght", "task.length"),
        ("logger.nam", "logger.name"),
    ],
)
def test_unknown_key(key: str, meant: str) -> None:
    assert refusal({key: 3}) == f"{key} is not a setting; did you mean {meant}?"


def test_unknown_key_like_no_other() -> None:
    assert refusal({"model.zzz": 3}) == "model.zzz is not a setting."


def test_missing_value_is_asked_for() -> None:
    assert refusal({"data.path": "???"}) == "data.path must be given (a text or null)."


@pytest.mark.parametrize("value", ["${sed}", "${oc.env:PRNN_THERE_IS_NO_SUCH_VARIABLE}"])
def test_interpolation_that_leads_nowhere(value: str) -> None:
    assert refusal({"seed": value}).startswith(("seed: ", "seed refers to the environment variable PRNN_THERE_IS_NO"))


def test_every_field_has_a_range_or_is_free() -> None:
    free = {"task", "data", "logger.entity", "logger.name", "logger.group"}
    every = leaves(TrainConfig())
    free |= {key for key, value in every.items() if isinstance(value, bool)}
    assert set(config.RANGES) == set(every) - free


@pytest.mark.parametrize(
    ("key", "wrong", "right"),
    [
        ("model.hidden_size", -1, 3),
        ("model.num_layers", 0, 1),
        ("model.heads", 0, 1),
        ("model.cell", "mypkg:", "mypkg.cells:group.lif"),
        ("model.cell", "my-pkg:lif", "gru"),
        ("model.hidden_size", 2**24 + 1, 2**24),
        ("model.embedding_size", 10**30, 2**24),
        ("model.num_layers", 10**9, 1000),
        ("model.forget_bias", 1e39, None),
        ("model.input_std", float("inf"), 1e38),
        ("optimizer.weight_decay", 1e39, 1e38),
        ("trainer.threads", 1025, 1024),
        ("trainer.max_steps", 2**63, 2**53),
        ("trainer.batch_size", 10**400, 2**53),
        ("trainer.clip_value", 1e39, 1e38),
        ("trainer.hang_seconds", 1e10, 1e9),
        ("trainer.profile", f"1+{'9' * 5000}", "1+5"),
        ("distributed.timeout_seconds", 1e300, 1e6),
        ("distributed.bucket_cap_mib", 1e13, 1e6),
        ("model.dropout", 1.0, 0.0),
        ("model.dropout", float("nan"), 0.99),
        ("model.embedding_size", -1, 0),
        ("optimizer.name", "adma", "sgd"),
        ("optimizer.lr", 0.0, 1e-8),
        ("optimizer.lr", float("inf"), 1.0),
        ("optimizer.betas", [0.9], [0.0, 0.5]),
        ("optimizer.betas", [0.9, 1.0], [0.9, 0.99]),
        ("optimizer.schedule.gamma", 0, 1),
        ("optimizer.schedule.patience", 0, 1),
        ("optimizer.schedule.threshold", 1, 0),
        ("optimizer.schedule.min_lr", -1e-9, 1e-9),
        ("trainer.max_steps", 0, 1),
        ("trainer.max_seconds", -1, 0.5),
        ("trainer.batch_size", 0, 1),
        ("trainer.clip_norm", 0, None),
        ("trainer.clip_value", -5, 5),
        ("trainer.precision", "fp16", "bfloat16"),
        ("trainer.threads", 0, None),
        ("trainer.keep_checkpoints", 0, 1),
        ("trainer.progress", "bar", "on"),
        ("trainer.profile", "100", "100+5"),
        ("trainer.profile", "0+5", "1+5+stacks+memory"),
        ("trainer.profile", "100+5+shapes", None),
        ("trainer.hang_seconds", 0, None),
        ("trainer.peak_tflops", 0, 989.4),
        ("distributed.backend", "mpi", "gloo"),
        ("logger.wandb_mode", "on", "online"),
        ("logger.project", " ", "mine"),
        ("seed", -1, 0),
        ("seed", 2**32, 2**32 - 1),
        ("run_dir", "", "runs/x"),
        ("resume", "", "latest"),
    ],
)
def test_range(key: str, wrong: Any, right: Any) -> None:
    toy({key: right})
    sentence = refusal({key: wrong})
    assert sentence.startswith(f"{key}=") and " must be " in sentence


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trainer.max_steps": None}, "training would never end"),
        ({"trainer.batch_tokens": 600}, "is not supported by task=toy"),
        ({"model.heads": 2}, "model.heads=2 is for cells written in Python, not model.cell=lstm"),
        ({"model.heads": 3, "model.cell": "a:b"}, "model.heads=3 must divide model.hidden_size=128"),
        (
            {"model.init": "identity"},
            "model.init=identity is for model.cell=rnn_relu, rnn_tanh or a cell in Python, not",
        ),
        ({"trainer.micro_batch_size": 4, "trainer.accumulate": 4}, "both set the number of micro-batches"),
        ({"distributed.static_graph": True, "trainer.micro_batch_size": 4}, "excludes trainer.micro_batch_size=4"),
        ({"distributed.static_graph": True, "trainer.accumulate": 2}, "no_sync()"),
        (
            {"optimizer.schedule.name": "plateau", "distributed.zero": True},
            "which distributed.zero=true is meant to avoid",
        ),
        ({"trainer.precision": "float16", "trainer.device": "cpu"}, "needs trainer.device=cuda"),
        ({"trainer.precision": "float16"}, "needs trainer.device=cuda"),
        ({"optimizer.schedule.warmup_steps": 10}, "must be below trainer.max_steps=10"),
        ({"optimizer.lr": 1e38}, "optimizer.lr=1e+38 is too large for optimizer.name=adam"),
        ({"trainer.patience": 3, "trainer.eval_every": 0}, "trainer.eval_every must be above 0"),
        ({"optimizer.schedule.name": "plateau", "trainer.eval_every": 0}, "name=plateau counts validations"),
        ({"optimizer.schedule.name": "plateau", "optimizer.schedule.gamma": 1.0}, "gamma=1 must be below 1 for"),
        (
            {"optimizer.schedule.name": "plateau", "optimizer.lr": 0.1, "optimizer.schedule.min_lr": 0.2},
            "min_lr=0.2 must be at most optimizer.lr=0.1",
        ),
    ],
)
def test_settings_that_exclude_each_other(changes: dict[str, Any], words: str) -> None:
    assert words in refusal(changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"trainer.max_steps": None, "trainer.max_epochs": 1},
        {"trainer.max_steps": None, "trainer.max_seconds": 1.5},
        {"trainer.batch_size": 6, "trainer.accumulate": 4},
        {"trainer.micro_batch_size": 4},
        {"distributed.static_graph": True},
        {"trainer.precision": "float16", "trainer.device": "cuda"},
        {"optimizer.schedule.name": "linear", "trainer.max_steps": None, "trainer.max_epochs": 2},
        {"optimizer.schedule.name": "linear", "trainer.max_steps": None, "trainer.max_seconds": 2.0},
        {"optimizer.schedule.warmup_steps": 9},
        {"optimizer.schedule.name": "plateau", "optimizer.lr": 0.1, "optimizer.schedule.min_lr": 0.1},
    ],
)
def test_settings_that_go_together(changes: dict[str, Any]) -> None:
    toy(changes)


def test_the_task_has_its_say() -> None:
    assert refusal({"task.length": 99, "model.hidden_size": 98}).startswith("task.length=99 must not exceed")
