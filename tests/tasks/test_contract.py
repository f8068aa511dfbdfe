"""What the loop may count on, for every task as Hydra composes it: the protocol of prnn/task.py."""

import json
import random
import string

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from prnn import config, tasks
from prnn.config import CONF
from prnn.errors import UserError
from prnn.task import Position, Shard
from prnn.training import checkpoint, evaluate, fit
from prnn.training.distributed import World
from prnn.training.interrupts import Interrupts
from prnn.training.observe.activity import Activity
from tests import warm
from tests.training.test_loop import assert_same_bits, losses

# Overrides that make a step of each task take milliseconds. A new task adds a line.
TASKS = {
    "translation": ["data.train_size=40", "data.dev_size=6", "data.test_size=3", "task.max_length=4", "task.beam=2"],
    "char_lm": ["task.bptt=8", "task.sample_length=20", "task.eval_tokens=50"],
    "stack_rnn": ["data.sequences=24", "data.row=2", "task.memories=2", "task.test_size=4", "task.test_sequences=3"],
    "irnn_mnist": ["data.pool=2", "model.input_std=0.1"],
    "adding": ["data.length=6", "data.epoch_sequences=100", "data.val_sequences=50", "model.input_std=0.1"],
    "decision": ["data.stimulus=6", "data.delay=3", "data.epoch_trials=100", "data.val_trials=50", "task.noise=0"],
}
# In the test of resuming: what draws random numbers in training, where the model's dropout does not.
DRAWS = {"stack_rnn": ["task.noise=0.5"], "decision": ["task.noise=0.5"]}
IN_TOKENS = ("char_lm", "translation")  # whose batches may be given in tokens
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
    assert (one.count, one.tokens, one.reset_state) == (other.count, other.tokens, other.reset_state)


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


@pytest.mark.slow(seconds=15)
@pytest.mark.xdist_group("curves")  # on one worker, whose processes import torch once
def test_two_processes_follow_the_curve_of_one(name, tmp_path):
    more = ["trainer.max_steps=4", "model.dropout=0", "trainer.clip_norm=0.3"]
    commands = [
        ([*overrides(name, *more), f"run_dir={tmp_path / str(size)}"], environment)
        for size in (1, 2)
        for environment in warm.ranks(size)
    ]
    statuses, said = warm.run("prnn.train", commands)
    assert statuses == [0, 0, 0], said
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
        assert any(part.dummy for part in parts)  # four rows, six places
        assert sum(part.count for part in parts) == whole.count
        assert sum(part.tokens for part in parts) == whole.tokens


@pytest.mark.parametrize("size", ["batch_size=5", "batch_tokens=40"])
def test_other_numbers_of_processes_go_on_with_the_same_examples(name, size, tmp_path):
    """1, 2, 3 and 1 again take turns at an epoch: every step has the rows it would have, each of them once."""
    if size == "batch_tokens=40" and name not in IN_TOKENS:
        with pytest.raises(UserError, match=f"is not supported by task={name}"):
            configured(name, f"trainer.{size}")
        return
    more = []
    if name == "char_lm":  # of nine plays an epoch takes half a minute
        text = tmp_path / "text.txt"
        text.write_text("".join(random.Random(0).choices(string.ascii_lowercase, k=4000)))
        more = [f"data.path={text}"]
    task = tasks.build(configured(name, f"trainer.{size}", *more))
    whole = list(task.train_batches(Shard(), Position(1)))
    assert len(whole) > 8 or name != "char_lm"  # more than are compared
    steps = min(len(whole), 8)
    cut = [steps * part // 4 for part in range(5)]
    for processes, first, last in zip((1, 2, 3, 1), cut, cut[1:], strict=False):
        shards = [Shard(rank, processes, micro_batch_size=2) for rank in range(processes)]
        for index, each in enumerate(zip(*(task.train_batches(s, Position(1, first)) for s in shards), strict=True)):
            if first + index < last:
                count = next(t.shape[1] for t in whole[first + index][0].tensors.values() if t.dim() > 1)
                rows = [rows for shard in shards for rows in shard.slices(count)]
                assert [row for part in rows for row in range(count)[part]] == list(range(count))
                parts = [batch for batches in each for batch in batches]
                assert sum(part.count for part in parts) == whole[first + index][0].count
                for part, batch in zip(rows, parts, strict=True):
                    assert batch.dummy == (part.start == part.stop)
                    assert batch.dummy or of_rows(batch, whole[first + index][0], part)


@pytest.mark.parametrize("name", ["char_lm", "translation"])
def test_a_batch_has_about_as_many_tokens_as_it_is_to_have(name):
    task = tasks.build(configured(name, "trainer.batch_tokens=45"))
    counts = [batch.count for [batch] in task.train_batches(Shard(), Position())]
    assert len(counts) == task.steps_per_epoch() > 3
    if name == "char_lm":
        assert set(counts) == {40}  # five sequences of eight
        with pytest.raises(UserError, match=r"trainer\.batch_tokens=7 must be at least task\.bptt=8"):
            configured(name, "trainer.batch_tokens=7")
    else:
        assert max(counts) < 45 + 2 * 11 and min(counts) > 45 - 11
        by_sequences = tasks.build(configured(name, "trainer.batch_size=1"))
        assert sum(counts) == sum(batch.count for [batch] in by_sequences.train_batches(Shard(), Position()))


def of_rows(batch, whole, rows):
    """Whether ``batch`` has the ``rows`` of ``whole``, as many steps of them as the longest needs."""
    for key, tensor in batch.tensors.items():
        every = whole.tensors[key]
        mine = every[rows] if every.dim() == 1 else every[: len(tensor), rows]
        if not torch.equal(mine, tensor):
            return False
    return True


@pytest.mark.parametrize("streams", [1, 4])
def test_validation_counts_each_example_once_whatever_the_number_of_processes(name, streams, monkeypatch):
    monkeypatch.setattr("prnn.tasks.translation.EVAL_SENTENCES", 2)
    if name != "char_lm" and streams > 1:
        pytest.skip("only a text is read in streams")
    more = ["data.dev_size=7"] if name == "translation" else []
    more += [f"task.eval_streams={streams}"] if name == "char_lm" else []
    cfg = configured(name, *more)
    task = tasks.build(cfg)
    torch.manual_seed(0)
    model = task.build_model().eval()
    found = []
    for size in (1, 2, 3):
        world = []
        for rank in range(size):
            shares = FewWorld(size, rank)
            evaluate.evaluate(cfg, task, model, shares, Interrupts(), Activity())
            world.append(shares.own)
        count = sum(part for _, part, _ in world)
        sums = [figures for figures, part, _ in world if part]
        found.append((count, {key: sum(each[key] for each in sums) / count for key in sums[0]}))
    assert found[0][0] == found[1][0] == found[2][0] > 0
    for _, figures in found[1:]:
        assert figures == pytest.approx(found[0][1], rel=1e-6)


class FewWorld(World):
    """One of several processes, without the others: what it would tell them is kept in ``own``."""

    def __init__(self, size, rank):
        super().__init__(rank, size)

    def all_sum(self, values):
        return [self.size * value for value in values]

    def gather(self, value):
        object.__setattr__(self, "own", value)
        return [value]


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
