"""What a task is asked for late, or too much of, is refused before the first step."""

import pytest
import torch
from hydra import compose, initialize_config_dir

from prnn import config, tasks
from prnn.config import CONF
from prnn.errors import UserError

TEXT = "the quick brown fox jumps over the lazy dog. " * 20


def checked(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["trainer.max_steps=1", *overrides])
    return config.check(cfg, tasks.schemas(cfg.task.name))


@pytest.mark.parametrize(
    ("task", "override"),
    [
        ("char_lm", "task.sample_length=1000000000000"),
        ("char_lm", f"task.top_k={2**63}"),
        ("char_lm", f"task.bptt={10**30}"),
        ("char_lm", f"task.eval_streams={10**12}"),
        ("char_lm", f"task.eval_tokens={10**30}"),
        ("char_lm", f"data.max_words={10**30}"),
        ("translation", "task.max_length=1000000000"),
        ("translation", f"data.numbers={10**30}"),
        ("translation", f"data.train_size={10**12}"),
        ("translation", "data.test_size=100000000"),
        ("translation", f"data.vocabulary_size={10**30}"),
        ("stack_rnn", f"task.test_size={10**9}"),
        ("stack_rnn", f"task.test_sequences={10**9}"),
        ("stack_rnn", f"task.memories={10**9}"),
        ("stack_rnn", f"task.capacity={10**12}"),
        ("stack_rnn", "task.noise=1e300"),
        ("stack_rnn", f"data.max_size={10**9}"),
        ("irnn_mnist", f"data.pool={10**30}"),
        ("irnn_mnist", f"data.validation={10**30}"),
        ("adding", f"data.length={10**12}"),
        ("adding", "data.val_sequences=100000000"),
        ("adding", f"data.epoch_sequences={10**30}"),
    ],
)
def test_more_than_can_be_is_refused(task, override):
    with pytest.raises(UserError) as caught:
        checked(f"task={task}", override)
    assert str(caught.value).startswith(f"{override} ".replace("1e300", "1e+300"))


@pytest.mark.parametrize("rows", [["data.row=1000"], ["data.max_size=60000"]])
def test_a_step_of_patterns_has_a_bound(rows):
    with pytest.raises(UserError, match="are generated at once"):
        checked("task=stack_rnn", *rows, "data.sequences=10000000", "trainer.batch_size=5000")


def test_a_step_of_additions_has_a_bound():
    with pytest.raises(
        UserError, match=r"trainer\.batch_size=100000 sequences of data\.length=10000 are generated at once"
    ):
        checked("task=adding", "data.length=10000", "trainer.batch_size=100000", "data.val_sequences=1")


@pytest.mark.parametrize("level", ["char", "byte", "word"])
def test_a_prompt_is_checked_with_the_text_and_not_after_training(tmp_path, level):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    small = ["task.bptt=5", "trainer.batch_size=2", "model.hidden_size=4", "task.sample_length=3"]
    cfg = checked(f"data.path={path}", f"data.level={level}", *small, "task.prompt='the é'")
    if level == "char":
        with pytest.raises(UserError, match=r"task\.prompt='the é' holds the character 'é' \(U\+00E9, position 4\)"):
            tasks.build(cfg)
        cfg.task.prompt = "the"
    task = tasks.build(cfg)
    state = task.state_dict()
    assert task.sample(task.build_model(), torch.device("cpu")).startswith(cfg.task.prompt)
    cfg.task.prompt = "Ω"  # asked for by a resumed run
    again = tasks.build(cfg, state)
    again.build_model()
    if level == "char":
        with pytest.raises(UserError, match=r"task\.prompt='Ω' holds"):
            again.steps_per_epoch()


def test_a_prompt_of_bytes_that_are_no_text_is_shown_with_marks(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    small = ["task.bptt=5", "trainer.batch_size=2", "model.hidden_size=4", "task.sample_length=3"]
    task = tasks.build(checked(f"data.path={path}", "data.level=byte", *small, "task.prompt='a\udcff'"))
    task.sample(task.build_model(), torch.device("cpu")).encode()  # samples.txt is UTF-8
