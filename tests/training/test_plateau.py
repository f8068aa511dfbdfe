"""optimizer.schedule.name=plateau: where validation gets worse, a lower learning rate and the best model again."""

import copy
from itertools import pairwise

import pytest
import torch

from prnn.task import Position, Shard
from prnn.training import checkpoint
from prnn.training.step import Stepper
from tests.test_distributed import pair, words
from tests.training.test_loop import assert_same_bits, flat, losses, records, train
from tests.training.toy_task import ToyTask, toy_config

# So high a rate that validation soon gets worse.
SETTINGS = {
    "lr": 0.2, "max_steps": 40, "eval_every": 2, "checkpoint_every": 2, "dropout": 0.3, "accumulate": 2,
    "schedule": {"name": "plateau"},
}  # fmt: skip


def settings(**changes):
    return copy.deepcopy(SETTINGS | changes)


def cuts(run_dir):
    """The steps after whose validation the learning rate was lowered."""
    rates = [(record["step"], record["lr"]) for record in records(run_dir)]
    return [step for (step, before), (_, after) in pairwise(rates) if after < before]


def assert_same_course(one, other):
    assert_same_bits(one, other)
    a, b = checkpoint.read(one).state, checkpoint.read(other).state
    assert a["progress"]["plateau"] == b["progress"]["plateau"]
    assert repr(flat(a["kept"])) == repr(flat(b["kept"]))
    assert cuts(one) == cuts(other)


def by_hand(cfg, reload_best):
    """The loss and the learning rate of each step, as one would write the schedule."""
    task = ToyTask(cfg)
    torch.manual_seed(cfg.seed)
    model, lr, best = task.build_model(), cfg.optimizer.lr, (float("inf"), None, None)
    optimizer = torch.optim.Adam(model.parameters(), lr)
    found, epoch = [], 0
    while True:
        state = None
        for [batch] in task.train_batches(Shard(), Position(epoch)):
            if len(found) == cfg.trainer.max_steps:
                return found
            optimizer.param_groups[0]["lr"] = lr
            loss, state = task.loss(model, batch, state)
            optimizer.zero_grad()
            (loss / batch.count).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.trainer.clip_norm)
            optimizer.step()
            found.append((loss.item() / batch.count, lr))
            if len(found) % cfg.trainer.eval_every == 0:
                with torch.no_grad():
                    value = sum(float(task.loss(model, each, None)[0]) for each in task.eval_batches(Shard()))
                if value < best[0]:
                    best = value, copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
                else:
                    lr /= 2
                    if reload_best:
                        model.load_state_dict(best[1])
                        optimizer.load_state_dict(copy.deepcopy(best[2]))
        epoch += 1


@pytest.mark.parametrize("reload_best", [True, False])
def test_it_is_the_schedule_one_would_write(tmp_path, reload_best):
    changes = settings(dropout=0.0, accumulate=1, schedule={"name": "plateau", "reload_best": reload_best})
    train(tmp_path, **changes)
    expected = by_hand(toy_config(**changes), reload_best)
    assert [record["lr"] for record in records(tmp_path)] == [lr for _, lr in expected]
    assert [loss for _, loss in losses(tmp_path)] == pytest.approx([loss for loss, _ in expected], rel=1e-3)
    assert len(cuts(tmp_path)) > 3
    assert (checkpoint.read(tmp_path).state["kept"] is not None) == reload_best


def test_what_is_saved_and_tested_is_the_model_that_was_validated(tmp_path):
    train(tmp_path, **settings())
    steps = cuts(tmp_path)
    train(tmp_path / "end", **settings(max_steps=steps[0]))  # the next step would go back
    saved = checkpoint.read(tmp_path / "end")
    assert saved.state["progress"]["plateau"]["back"]
    assert saved.manifest["val_loss"] == losses(tmp_path / "end", "val")[-1][1]
    kept, best = saved.state["kept"]["model"], checkpoint.read(tmp_path / "end", "best")
    assert best.step < steps[0]
    assert all(torch.equal(kept[name], best.model_state[name]) for name in kept)
    assert not all(torch.equal(kept[name], saved.model_state[name]) for name in kept)


def test_a_stop_anywhere_around_a_reload_and_a_resume_give_the_same_bits(tmp_path, monkeypatch):
    straight = tmp_path / "straight"
    train(straight, **settings())
    step = cuts(straight)[1]
    for stopped_after in (step, step + 1, step + 2):  # before the validation, after the reload, before the next one
        cut = tmp_path / f"signal_{stopped_after}"
        assert train(cut, signal_at=stopped_after - 1, **settings()).step == stopped_after
        train(cut, resume=True, **settings())
        assert_same_course(straight, cut)

    run, cut = Stepper.run, tmp_path / "crash"

    def crash(self, number, *args):
        if number == step + 1:
            raise RuntimeError("crash")
        return run(self, number, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "run", crash)
        with pytest.raises(RuntimeError, match="crash"):
            train(cut, **settings())
    assert checkpoint.read(cut).step == step and checkpoint.read(cut).state["progress"]["plateau"]["back"]
    train(cut, resume=True, **settings())
    assert_same_course(straight, cut)


def test_validations_that_were_not_due_decide_nothing(tmp_path):
    train(tmp_path / "straight", **settings())
    cut = tmp_path / "cut"
    train(cut, **settings(max_steps=cuts(tmp_path / "straight")[0] + 1))  # ends with a validation
    validated = losses(cut, "val")
    assert validated[-1][0] % 2 == 1
    best = min(loss for step, loss in validated[:-1])
    assert checkpoint.read(cut).state["progress"]["plateau"] == {"best": best, "bad": 0, "cuts": 1, "back": False}
    train(cut, resume=True, **settings())
    assert cuts(cut) == cuts(tmp_path / "straight")
    assert losses(cut) == losses(tmp_path / "straight")


def test_training_ends_when_the_rate_falls_below_the_least(tmp_path):
    outcome = train(tmp_path, **settings(schedule={"name": "plateau", "min_lr": 0.05}))
    assert outcome.reason == "min_lr"
    assert min(record["lr"] for record in records(tmp_path)) == 0.05
    assert outcome.step == losses(tmp_path, "val")[-1][0] < 40
    assert train(tmp_path, resume=True, **settings(schedule={"name": "plateau", "min_lr": 0.05})).step == outcome.step


def test_another_optimizer_forgets_the_best_model_of_the_first(tmp_path):
    train(tmp_path, **settings())
    assert train(tmp_path, resume=True, **settings(max_steps=50, name="sgd")).step == 50


@pytest.mark.slow(seconds=40)
def test_two_processes_take_the_same_decisions(tmp_path):
    alone = settings(accumulate=1, dropout=0.0)
    train(tmp_path / "alone", **alone)
    step = cuts(tmp_path / "alone")[0]
    two = settings(accumulate=1)
    statuses, said = pair(
        [tmp_path / "curve", *words(**alone)],
        [tmp_path / "straight", *words(**two)],
        [tmp_path / "cut", *words(signal_at=step, nan_rank=1, **two)],
        [tmp_path / "cut", "resume", *words(**two)],
    )
    assert statuses == [0, 0], said
    assert_same_course(tmp_path / "straight", tmp_path / "cut")
    first = [dict(losses(tmp_path / name)) for name in ("curve", "alone")]
    assert cuts(tmp_path / "curve")[:2] == cuts(tmp_path / "alone")[:2]
    assert [first[0][k] for k in range(1, step + 4)] == pytest.approx(
        [first[1][k] for k in range(1, step + 4)], rel=1e-3
    )
