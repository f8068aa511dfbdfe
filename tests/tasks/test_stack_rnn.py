"""The task of algorithmic patterns: its rule of what is solved, its batches, its refusals, and that it learns."""

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from prnn import config, tasks
from prnn.config import CONF, ModelConfig, TrainConfig, check
from prnn.data.algorithmic import IGNORED, PROBLEMS, rows
from prnn.errors import UserError
from prnn.task import Position, Shard
from prnn.tasks import stack_rnn
from prnn.tasks.generalization import Outcome, draw_sizes, solve
from prnn.tasks.stack_rnn import Config, DataConfig
from prnn.training import fit
from prnn.training.distributed import World
from prnn.training.observe.record_reader import read_records
from tests.nn.test_stack import solver

CPU = torch.device("cpu")


def configured(batch_size=4, hidden_size=8, cell="lstm", data=None, compile=False, **task):
    cfg = TrainConfig(Config(**task), DataConfig(**(data or {"sequences": 60, "row": 3})))
    cfg.trainer.compile = compile
    cfg.trainer.batch_size, cfg.trainer.max_steps = batch_size, 5
    cfg.trainer.threads, cfg.trainer.progress = 1, "off"
    cfg.model = ModelConfig(cell, hidden_size=hidden_size, num_layers=1)
    return cfg


def oracle(drawn, wrong=()):
    """A ``predict`` that is right everywhere but at the places ``wrong``; its state is where it stands."""
    answers = drawn.targets.copy()
    for t, b in wrong:
        answers[t, b] += 1

    def predict(tokens, state):
        start = 0 if state is None else state
        return torch.from_numpy(answers[start : start + len(tokens)]), start + len(tokens)

    return predict


def test_one_wrong_character_costs_its_sequence_and_its_size():
    drawn = rows(PROBLEMS["anbn"], np.random.default_rng(0), [[2] * 5, [3] * 5])
    assert solve(oracle(drawn), drawn, [2, 3], True, CPU).right == [1.0, 1.0]
    # Row 0 is aabb aabb aabb aabb aabb: 3 is a known b of the first, 4 the first character of the second, 5 one nobody
    # can know, and 19 in the last, which does not count.
    for t, share in ((3, 0.75), (4, 0.75), (5, 1.0), (19, 1.0)):
        assert solve(oracle(drawn, [(t, 0)]), drawn, [2, 3], True, CPU).right == [share, 1.0]
    assert solve(oracle(drawn, [(4, 0)]), drawn, [2, 3], False, CPU).right == [1.0, 1.0]  # where it is not known either
    # Where an end says nothing the last counts too, and rows of one size are one figure.
    assert solve(oracle(drawn, [(19, 0)]), drawn, [2, 3], False, CPU).right == [0.8, 1.0]
    drawn = rows(PROBLEMS["anbn"], np.random.default_rng(0), [[2] * 5, [2] * 5])
    assert solve(oracle(drawn, [(3, 1)]), drawn, [2, 2], True, CPU).right == [0.875]
    drawn = rows(PROBLEMS["anbn"], np.random.default_rng(0), [[2] * 5, [3] * 5])
    assert solve(oracle(drawn, [(3, 0), (7, 0), (8, 0)]), drawn, [2, 3], True, CPU).right == [0.5, 1.0]


def test_figures():
    found = Outcome([2, 3, 4, 5], [1.0, 1.0, 0.5, 1.0]).figures()
    assert found == {"solved": 0.75, "solved_to": 3.0, "right": 0.875, "right_to": 3.0}
    assert Outcome([2, 3], [0.5, 1.0]).figures()["solved_to"] == 0.0
    assert Outcome([2, 3], [1.0, 1.0]).figures()["solved_to"] == 3.0
    assert Outcome([2, 3, 4, 5], [1.0, 0.9, 0.89, 1.0]).figures()["right_to"] == 3.0


def test_the_picture_of_sizes_holds_every_share():
    axes = draw_sizes({"a": Outcome([2, 3, 4], [1.0, 0.5, 0.25]), "b": Outcome([2, 3, 4], [1.0, 1.0, 0.0])}, 3).axes[0]
    assert [list(line.get_ydata()) for line in axes.lines] == [[100, 50, 25], [100, 100, 0]]


def test_weights_made_by_hand_pass_the_test():
    """The network of tests/nn/test_stack.py, put into the task: every size is solved, rounded and not."""
    cfg = configured(memories=1, hidden_size=3, capacity=70, test_sequences=10)
    task = tasks.build(cfg)
    model = task.build_model()
    network, decoder = solver(torch.float32)
    model.recurrent, model.decoder = network, decoder
    model.eval()
    with torch.no_grad():
        figures = task.test(model, CPU).figures
        assert figures["solved"] == figures["solved_rounded"] == 1.0
        assert figures["solved_to"] == 59
        decoder.weight.neg_()
        assert task.test(model, CPU).figures["solved"] == 0.0


def test_sizes_grow_with_the_epochs():
    task = tasks.build(configured(data={"sequences": 600, "row": 3, "max_size": 9}))
    for epoch, largest in ((0, 3), (2, 5), (6, 9), (50, 9)):
        longest = 0
        for [batch] in task.train_batches(Shard(), Position(epoch)):
            for row in batch.tensors["targets"].t().tolist():
                runs = "".join("ab"[t] for t in row if t != IGNORED).split("b")
                longest = max([longest, *map(len, runs)])
        assert longest == largest


def test_only_answers_are_trained_on_where_the_question_is_random():
    task = tasks.build(configured(problem="addition"))
    [batch] = next(iter(task.train_batches(Shard(), Position(10))))
    assert 0 < batch.count == int((batch.tensors["targets"] != IGNORED).sum()) < batch.tokens
    assert set(batch.tensors["targets"].unique().tolist()) <= {IGNORED, 0, 1, 4}  # digits and the end


def test_validation_may_be_on_the_answers_alone():
    def counts(**options):
        task = tasks.build(configured(problem="memorization", **options))
        [batch] = task.eval_batches(Shard())
        [trained] = next(iter(task.train_batches(Shard(), Position())))
        assert trained.count == trained.tokens
        # Of n letters, an a and the n letters again, the last n are determined.
        return batch.count, (batch.tokens - 1000) // 2

    (everything, answers), (fewer, same) = counts(), counts(validate_answers=True)
    assert everything > 2 * answers and fewer == answers == same


@pytest.mark.parametrize("memory", ["stack", "none"])
def test_validation_is_drawn_once_and_shared_out(memory, monkeypatch):
    task, again = (tasks.build(configured(memory=memory)) for _ in range(2))
    [whole] = task.eval_batches(Shard())
    [other] = again.eval_batches(Shard())
    assert torch.equal(whole.tensors["inputs"], other.tensors["inputs"])  # the same for every run
    monkeypatch.setattr(stack_rnn, "rows", None)  # nothing is drawn any more
    assert whole.tensors["inputs"].shape[1] == 100
    parts = [batch for rank in range(3) for batch in task.eval_batches(Shard(rank, 3))]
    assert [batch.tensors["inputs"].shape[1] for batch in parts] == [33, 33, 34]
    assert sum(batch.count for batch in parts) == whole.count
    assert [len(list(task.eval_batches(Shard(rank, 101)))) for rank in range(101)].count(0) == 1


@pytest.mark.parametrize("memory", ["stack", "list"])
def test_initial_weights_have_the_deviation_set(memory):
    model = tasks.build(configured(memory=memory, init_std=0.0)).build_model()
    assert not any(parameter.any() for parameter in model.recurrent.parameters())
    assert model.decoder.weight.any()  # which is torch's
    for setting, name in (("init_std_ih", "weight_ih"), ("init_std_read", "weight_read")):
        recurrent = tasks.build(configured(memory=memory, init_std=0.0, **{setting: 1.0})).build_model().recurrent
        assert [own for own, parameter in recurrent.named_parameters() if parameter.any()] == [name]


@pytest.mark.parametrize("kind", ["noise", "value_noise", "action_noise", "flips"])
def test_noise_is_for_training_alone(kind):
    task = tasks.build(configured(**{kind: 0.5}))
    model = task.build_model()
    [batch] = next(iter(task.train_batches(Shard(), Position())))
    model.eval()
    plain = task.eval_step(model, batch, None)[0]["loss"]
    assert torch.equal(plain, task.eval_step(model, batch, None)[0]["loss"])
    model.train()
    assert not torch.equal(task.loss(model, batch, None)[0], task.loss(model, batch, None)[0])


@pytest.mark.parametrize(
    ("epochs", "actions", "flips"),
    [
        (0, [2.0, 2.0, 2.0], [0.5, 0.5, 0.5]),
        (1, [0.0, 2.0, 2.0], [0.5, 0.0, 0.0]),
        (4, [0.0, 0.5, 1.0, 1.5, 2.0, 2.0], [0.5, 0.375, 0.25, 0.125, 0.0, 0.0]),
    ],
)
def test_noise_varies_with_the_epoch(epochs, actions, flips):
    task = tasks.build(configured(action_noise=2.0, flips=0.5, noise_epochs=epochs))
    model = task.build_model()
    for epoch, expected in enumerate(zip(actions, flips, strict=True)):
        for batches in task.train_batches(Shard(0, 2), Position(epoch=epoch)):
            for batch in batches:
                assert (batch.numbers["action_noise"], batch.numbers["flips"]) == expected
                task.loss(model, batch, None)[0].backward()


@pytest.mark.parametrize(("memory", "cell"), [("list", "lstm"), ("none", "rnn_tanh"), ("none", "lstm")])
def test_other_networks_train_and_are_tested(memory, cell, tmp_path):
    cfg = configured(memory=memory, cell=cell, test_sequences=2, test_size=6, rounds=True, no_op=True)
    fit(cfg, tasks.build(cfg), World(), tmp_path)
    [record] = [r for r in read_records(tmp_path / "metrics.jsonl") if r["kind"] == "test"]
    assert ("solved_rounded" in record["figures"]) == (memory != "none")
    assert (tmp_path / "memories.png").exists() == (memory != "none") and (tmp_path / "sizes.png").exists()


@pytest.mark.slow(seconds=15)
def test_the_preset_learns_to_count(tmp_path):
    """a^n b^n, from n up to 15 to all n up to 59: less than a third of the preset, some 8 s of a core."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        given = compose("train", overrides=["experiment=stack_rnn", "trainer.max_epochs=12", "trainer.progress=off"])
    cfg = check(OmegaConf.create(OmegaConf.to_container(given)), tasks.schemas("stack_rnn"))
    cfg.task.test_sequences = 20
    fit(cfg, tasks.build(cfg), World(), tmp_path)
    [record] = [r for r in read_records(tmp_path / "metrics.jsonl") if r["kind"] == "test"]
    assert record["figures"]["solved_rounded"] == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"problem": "anbnn"}, "task.problem=anbnn must be one of anbn"),
        ({"memory": "queue"}, "task.memory=queue must be one of stack, list, none"),
        ({"memories": 0}, "task.memories=0 must be at least 1"),
        ({"noise": -1.0}, "task.noise=-1.0"),
        ({"depth": 5, "capacity": 4}, "task.depth=5 must be at most 4 for a stack of task.capacity=4"),
        ({"depth": 5, "capacity": 8, "memory": "list"}, "must be at most 4 for a list"),
        ({"test_row": 3}, "task.test_row=3 must be null or a divisor of task.test_sequences=200"),
        ({"noise": float("nan")}, "task.noise=nan must be at least 0"),
        ({"compile": True}, "trainer.compile=true is not supported with task.memory=stack"),
        ({"data": {"max_size": 1}}, "data.max_size=1 must be at least 2"),
        ({"data": {"sequences": 10, "row": 3}}, "data.sequences=10 must fill at least one batch"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_mistakes_are_told(settings, message):
    cfg = configured(**settings)
    with pytest.raises(UserError, match=message):
        config.check_task(cfg)
