"""The files in conf/: their comments, and that every choice composes."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from prnn import config
from prnn.config import CONF, TrainConfig, check
from tests.test_config import CLASSES, ROOT, composed, leaves


def meanings(lines: str, pattern: str) -> dict[str, str]:
    """Name of a setting -> its comment."""
    return dict(re.findall(pattern, lines, re.MULTILINE))


@pytest.mark.parametrize("group", CLASSES)
def test_default_yaml_says_what_the_schema_says(group: str) -> None:
    """The same fields, the same defaults, the same sentence about each."""
    text = (CONF / group / "default.yaml").read_text()
    expected = OmegaConf.to_container(OmegaConf.structured(CLASSES[group]))
    assert OmegaConf.to_container(OmegaConf.create(yaml.safe_load(text))) == OmegaConf.to_container(
        OmegaConf.create(expected)
    )
    classes = [CLASSES[group], config.ScheduleConfig] if group == "optimizer" else [CLASSES[group]]
    in_schema = {}
    for each in classes:
        in_schema |= meanings(inspect.getsource(each), r"^    (\w+): [^#\n]*  # (.+)$")
    in_yaml = meanings(text, r"^ *(\w+): [^#\n]*  # (.+)$")
    assert in_yaml == in_schema
    assert set(in_schema) >= {key.rpartition(".")[2] for key in leaves(CLASSES[group]())}


def test_train_yaml_composes_to_the_schema_and_its_defaults() -> None:
    from prnn import tasks

    cfg = composed("trainer.max_steps=1")
    assert "hydra" not in cfg
    typed = check(cfg, tasks.schemas(cfg.task.name))
    expected = TrainConfig(task=typed.task, data=typed.data)
    expected.trainer.max_steps = 1
    assert typed == expected
    for section in ("task", "data"):
        given, schema = getattr(cfg, section), type(getattr(typed, section))
        assert set(given) == {field.name for field in fields(schema)}, f"conf/{section} and its schema differ"


MISSING = {"tsv": ["data.path=x.tsv"]}  # what a choice leaves to the user


def of_data(path: Path) -> list[str]:
    """The override that chooses a task whose data ``path`` describes."""
    from prnn import tasks

    given = set(OmegaConf.load(path))
    known = [each.stem for each in sorted((CONF / "task").glob("*.yaml"))]
    return [f"task={next(t for t in known if given == {field.name for field in fields(tasks.schemas(t)[1])})}"]


@pytest.mark.parametrize("path", sorted(CONF.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_choice_composes_and_checks(path: Path) -> None:
    from prnn import tasks

    task = of_data(path) if path.parent.name == "data" else []
    cfg = composed(*task, f"{path.parent.name}={path.stem}", "trainer.max_steps=1000", *MISSING.get(path.stem, []))
    typed = check(cfg, tasks.schemas(cfg.task.name))
    chosen = getattr(typed, path.parent.name, None)
    if path.parent.name == "optimizer" and path.stem != "default":
        assert chosen.name == path.stem
    if path.parent.name == "model" and path.stem != "default":
        name = chosen.cell.rpartition(":")[2]  # without the module of a cell written in Python
        assert {"rnn_tanh": "rnn", "rnn_relu": "irnn"}.get(name, name) == path.stem


def test_presets_are_the_recipes_of_their_originals() -> None:
    from prnn import tasks

    found = {}
    for name in ("char_rnn", "min_char_rnn", "torch_rnn"):
        cfg = composed(f"experiment={name}")
        found[name] = check(cfg, tasks.schemas(cfg.task.name))
        assert found[name].data.name == "tinyshakespeare" and found[name].trainer.clip_norm is None
    first, second, third = (found[name] for name in ("min_char_rnn", "char_rnn", "torch_rnn"))
    summary = {
        name: (c.model.cell, c.model.num_layers, c.model.hidden_size, c.task.bptt, c.trainer.batch_size)
        for name, c in found.items()
    }
    assert summary == {
        "min_char_rnn": ("rnn_tanh", 1, 100, 25, 1),
        "char_rnn": ("lstm", 2, 128, 50, 50),
        "torch_rnn": ("lstm", 2, 128, 50, 50),
    }
    assert (first.optimizer.name, first.optimizer.lr) == ("adagrad", 0.1)
    # Both originals clip the gradient of a sum over bptt steps at 5; the loop's loss is a mean.
    assert first.trainer.clip_value == pytest.approx(5 / 25) and second.trainer.clip_value == pytest.approx(5 / 50)
    assert (second.optimizer.name, second.optimizer.lr, second.optimizer.alpha) == ("rmsprop", 2e-3, 0.95)
    assert (third.optimizer.name, third.optimizer.lr, third.model.embedding_size) == ("adam", 2e-3, 64)
    assert (third.optimizer.schedule.gamma, third.optimizer.schedule.every_epochs) == (0.5, 5)
    assert third.trainer.clip_value == 5


def test_digits_are_reversed_as_in_the_original_but_for_what_the_preset_says() -> None:
    from prnn import tasks

    cfg = composed("experiment=reversal")
    typed = check(cfg, tasks.schemas(cfg.task.name))
    assert (typed.data.train_size, typed.data.dev_size, typed.data.test_size) == (50_000, 1000, 1000)
    assert (typed.data.train_length, typed.data.test_length, typed.data.numbers) == (10, 15, 10)
    assert (typed.model.hidden_size, typed.model.embedding_size, typed.model.num_layers) == (64, 16, 1)
    assert (typed.model.dropout, typed.task.bridge, typed.task.bidirectional) == (0.1, False, True)
    assert (typed.optimizer.name, typed.optimizer.lr, typed.trainer.clip_norm) == ("adam", 1e-3, 1.0)


def test_a_tasks_data_give_way_to_those_that_are_asked_for() -> None:
    assert composed("task=translation").data.name == "reversal"
    assert composed("task=translation", "data=verses").data.name == "bible-en-es"
    assert composed("experiment=verses", "data=reversal").data.name == "reversal"


def test_a_later_choice_wins_over_a_preset() -> None:
    assert composed("experiment=torch_rnn", "model=gru", "trainer.batch_size=7").model.cell == "gru"
    assert composed("experiment=torch_rnn", "trainer.batch_size=7").trainer.batch_size == 7


def test_conf_is_beside_the_package_in_a_checkout() -> None:
    assert (ROOT / "conf") == CONF and CONF.is_absolute()


def test_configuration_is_read_without_torch() -> None:
    code = "import sys, prnn.config; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
