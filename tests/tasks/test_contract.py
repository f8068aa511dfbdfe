"""What the loop may count on, for every task as Hydra composes it: the protocol of prnn/tasks/task.py."""

import json
import os
import subprocess
import sys

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from prnn import config, tasks
from prnn.config import CONF
from prnn.tasks.task import Position, Shard
from prnn.training import checkpoint, fit
from prnn.training.distributed import World
from tests.training.test_loop import assert_same_bits, losses

# Overrides that make a step of each task take milliseconds. A new task adds a line.
TASKS = {
    "translation": ["data.train_size=40", "data.dev_size=6", "data.test_size=3", "task.max_length=4", "task.beam=2"],
    "char_lm": ["task.bptt=8", "task.sample_length=20", "task.eval_tokens=50"],
    "stack_rnn": ["data.sequences=24", "data.row=2", "task.memories=2", "task.test_size=4", "task.test_sequences=3"],
    "irnn_mnist": ["data.pool=2", "model.input_std=0.1"],
    "adding": ["data.length=6", "data.epoch_sequences=100", "data.val_sequences=50", "model.input_std=0.1"],
}
# In the test of resuming: what draws random numbers in training, where the model's dropout does not.
DRAWS = {"stack_rnn": ["task.noise=0.5"]}
SMALL = ["model.hidden_size=8", "model.dropout=0.3", "trainer.threads=1", "trainer.log_every=1"]
SMALL += ["trainer.eval_every=2", "trainer.checkpoint_every=3", "trainer.batch_size=4", "trainer.progress=off"]


def overrides(name, *more):
    return [f"task={name}", *SMALL, *TASKS[name], *more]


def configured(name, *more):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=["trainer.max_steps=6", *overrides(name, *more)])
    return config.check(OmegaConf.create(OmegaConf.to_container(cfg)), tasks.schemas(name))


def train(name, run_dir, steps, resume=False):
    cfg = configured(name, f"trainer.max_steps={steps}", *DRAWS.get(name, []))
    loaded = checkpoint.read(run_dir) if resume else None
    fit(cfg, tasks.build(cfg, loaded.manifest["task"] if loaded else None), World(), run_dir, loaded)
    return run_dir


def same(one, other):
    assert one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(one.tensors[key], other.tensors[key]) for key in one.tensors)
    assert (one.count, one.tokens, one.fresh) == (other.count, other.tokens, other.fresh)


@pytest.fixture(params=TASKS)
def name(request):
    return request.param


def test_every_task_is_held_to_its_contract():
    known = {path.stem for path in (CONF / "task").glob("*.yaml")}
    assert known == TASKS.keys()


def test_six_steps_are_three_a_resume_and_three(name, tmp_path):
    straight = train(name, tmp_path / "straight", 6)
    cut = train(name, tmp_path / "cut", 3)
    train(name, cut, 6, resume=True)
    metrics = cut / "metrics.jsonl"  # without what ended the first part: validation, sample, test, pictures
    lines = [line for line in metrics.read_text().splitlines() if '"step": 3' not in line or '"train"' in line]
    metrics.write_text("\n".join(lines) + "\n")
    assert_same_bits(straight, cut)
    assert [checkpoint.read(run).manifest["task"] for run in (straight, cut)] == [
        tasks.build(configured(name, *DRAWS.get(name, []))).state_dict()
    ] * 2


def test_two_processes_follow_the_curve_of_one(name, tmp_path):
    free = str(29500 + os.getpid() % 1000)
    more = ["trainer.max_steps=4", "model.dropout=0", "trainer.clip_norm=0.3"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "prnn.train", *overrides(name, *more), f"run_dir={tmp_path / str(size)}"],
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": free},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for size in (1, 2) for rank in range(size)
    ]  # fmt: skip
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    for kind in ("train", "val"):
        assert losses(tmp_path / "1", kind)
        alone, together = (dict(losses(tmp_path / size, kind)) for size in "12")
        assert together == pytest.approx(alone, rel=1e-4)


def test_batches_are_a_function_of_the_position(name):
    task = tasks.build(configured(name))
    whole = list(task.train_batches(Shard(), Position(1)))
    assert len(whole) == task.steps_per_epoch() > 1
    middle = len(whole) // 2
    again = list(tasks.build(configured(name)).train_batches(Shard(), Position(1, middle)))
    assert len(again) == len(whole) - middle
    for [a], [b] in zip(again, whole[middle:], strict=True):
        same(a, b)
    [other] = next(iter(task.train_batches(Shard(), Position(2))))
    assert any(
        other.tensors[key].shape != whole[0][0].tensors[key].shape
        or not torch.equal(other.tensors[key], whole[0][0].tensors[key])
        for key in other.tensors
    )


def test_the_shares_of_the_processes_make_up_the_whole(name):
    task = tasks.build(configured(name))
    for index, [whole] in zip(range(2), task.train_batches(Shard(), Position()), strict=False):
        parts = [
            micro
            for rank in range(3)
            for micro in next(iter(task.train_batches(Shard(rank, 3, accumulate=2), Position(0, index))))
        ]
        assert any(part.stand_in for part in parts)  # four rows, six places
        assert sum(part.count for part in parts) == whole.count
        assert sum(part.tokens for part in parts) == whole.tokens
    counts = [sum(batch.count for rank in range(n) for batch in task.eval_batches(Shard(rank, n))) for n in (1, 2, 3)]
    assert counts[0] == counts[1] == counts[2] > 0


def test_a_checkpoint_needs_no_data_to_build_the_model(name, monkeypatch, tmp_path):
    cfg = configured(name)
    state = json.loads(json.dumps(tasks.build(cfg).state_dict()))
    monkeypatch.setenv("PRNN_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setenv("PRNN_CACHE", str(tmp_path / "nowhere"))
    shapes = [
        {key: value.shape for key, value in task.build_model().state_dict().items()}
        for task in (tasks.build(cfg), tasks.build(cfg, state))
    ]
    assert shapes[0] == shapes[1]
