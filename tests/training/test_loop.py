"""The loop against a plain loop, its limits, and exact resume: one process, and a task of the tests' own."""

import errno
import itertools
import json
import logging
import math
import signal
import subprocess
import sys
from collections.abc import Mapping
from types import SimpleNamespace

import pytest
import torch

from prnn.errors import UserError
from prnn.task import Position, Shard
from prnn.training import checkpoint, fit, loop, optim, snapshot
from prnn.training.checkpoint import whole
from prnn.training.distributed import World
from prnn.training.observe import loggers
from prnn.training.observe.record_reader import read_records
from prnn.training.observe.record_writer import Record
from prnn.training.progress import Progress
from prnn.training.step import Diverged
from tests.training import toy_task
from tests.training.toy_task import ToyTask, toy_config


def train(run_dir, resume=False, **settings):
    cfg = toy_config(**settings)
    return fit(cfg, ToyTask(cfg), World(), run_dir, checkpoint.read(run_dir) if resume else None)


def records(run_dir, kind="train"):
    return [record for record in read_records(run_dir / "metrics.jsonl") if record["kind"] == kind]


def losses(run_dir, kind="train"):
    return [(record["step"], record["loss"]) for record in records(run_dir, kind)]


def assert_same_bits(one, other):
    """Weights, optimizer, random numbers, carried state and every recorded loss."""
    a, b = checkpoint.read(one), checkpoint.read(other)
    assert a.step == b.step
    assert a.model_state.keys() == b.model_state.keys()
    assert all(torch.equal(a.model_state[name], b.model_state[name]) for name in a.model_state)
    for part in ("optimizer", "ranks", "position", "scaler"):
        assert repr(flat(a.state[part])) == repr(flat(b.state[part])), part
    assert losses(one, "val") == losses(other, "val")
    told = [[tuple(r[key] for key in ("step", "epoch", "loss", "lr")) for r in records(run)] for run in (one, other)]
    assert told[0] == told[1]
    assert [r["text"] for r in records(one, "sample")] == [r["text"] for r in records(other, "sample")]


def flat(value):
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: flat(part) for key, part in value.items()}
    return [flat(part) for part in value] if isinstance(value, (list, tuple)) else value


def plain_loop(steps, uneven):
    """The same training, as one would write it by hand: the mean loss over all predictions, clipped, Adam."""
    cfg = toy_config(uneven=uneven, clip_norm=0.3)
    task = ToyTask(cfg)
    torch.manual_seed(cfg.seed)
    model = task.build_model()
    optimizer = torch.optim.Adam(model.parameters(), cfg.optimizer.lr)
    found, epoch = [], 0
    while len(found) < steps:
        state = None
        for [batch] in task.train_batches(Shard(), Position(epoch)):
            loss, state = task.loss(model, batch, state)
            optimizer.zero_grad()
            (loss / batch.count).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
            optimizer.step()
            found.append(loss.item() / batch.count)
        epoch += 1
    return found[:steps]


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("uneven", [False, True])
def test_the_curve_is_a_plain_loops_whatever_the_micro_batches(tmp_path, accumulate, uneven):
    train(tmp_path, uneven=uneven, accumulate=accumulate, clip_norm=0.3)
    assert [loss for _, loss in losses(tmp_path)] == pytest.approx(plain_loop(20, uneven), abs=1e-5)


def test_grad_norm_is_recorded_before_clipping(tmp_path):
    train(tmp_path / "a", max_steps=3, clip_norm=None)
    train(tmp_path / "b", max_steps=3, clip_norm=1e-3)
    assert records(tmp_path / "a")[0]["grad_norm"] == records(tmp_path / "b")[0]["grad_norm"] > 1e-2


@pytest.mark.plots
def test_a_finished_run_leaves_its_files(tmp_path):
    outcome = train(tmp_path)
    assert (outcome.reason, outcome.step) == ("max_steps", 20)
    assert {p.name for p in tmp_path.iterdir()} == {
        "metrics.jsonl", "train.log", "samples.txt", "loss.png", "line.png", "summary.json", "checkpoints",
        "heartbeat",
    }  # fmt: skip
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["val_loss"] == outcome.val_loss == losses(tmp_path, "val")[-1][1]
    assert summary["steps"] == 20
    assert summary["tokens"] == 20 * 8 * toy_task.TIME
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "line.png").read_bytes().startswith(b"\x89PNG")
    assert records(tmp_path, "pictures")[0]["files"] == {"line": "line.png"}
    assert "step 20" in (tmp_path / "samples.txt").read_text()
    assert "validation loss" in (tmp_path / "train.log").read_text()
    assert [step for step, _ in losses(tmp_path, "val")] == [5, 10, 15, 20]


def test_the_best_model_is_tested(tmp_path):
    train(tmp_path, lr=0.1, max_steps=40)  # the last steps make it worse
    summary = json.loads((tmp_path / "summary.json").read_text())
    [record] = records(tmp_path, "test")
    best = checkpoint.read(tmp_path, "best")
    assert best.step == record["of_step"] == summary["best_step"] < 40
    assert record["figures"] == summary["test"] == {"weight": float(best.model_state["head.bias"])}
    assert record["signatures"] == summary["signatures"] == {"weight": "of the head"}
    assert loggers.flatten(record) == {"test/of_step": best.step, "test/weight": summary["test"]["weight"]}
    assert float(checkpoint.read(tmp_path).model_state["head.bias"]) != summary["test"]["weight"]


def test_the_summary_has_the_figures_of_the_last_and_the_best_validation_after_a_resume_too(tmp_path):
    settings = {"lr": 0.1, "eval_every": 1, "seed": 3}
    train(tmp_path, max_steps=10, **settings)
    train(tmp_path, resume=True, max_steps=40, **settings)
    by_step = {record["step"]: record for record in records(tmp_path, "val")}
    best = min(by_step.values(), key=lambda record: record["loss"])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["best_step"] == best["step"] < 40
    assert summary["best_val"] == best["figures"] == {"twice": pytest.approx(2 * best["loss"])}
    assert summary["val"] == by_step[40]["figures"] != summary["best_val"]
    # A resume that validates nothing itself knows them from the checkpoint.
    (tmp_path / "summary.json").unlink()
    train(tmp_path, resume=True, max_steps=40, **settings)
    assert json.loads((tmp_path / "summary.json").read_text())["best_val"] == summary["best_val"]


def test_a_checkpoint_of_before_those_figures_still_loads():
    state = Progress(step=3, best_loss=1.0).state_dict()
    del state["eval_figures"], state["best_figures"], state["plateau"]
    assert Progress.from_state(state) == Progress(step=3, best_loss=1.0)
    assert Progress.from_state({"seconds": 5.0}).agreed_seconds == 5.0


def test_validation_and_samples_do_not_disturb_training(tmp_path):
    train(tmp_path / "often", dropout=0.5, eval_every=1, sample_every=1)
    train(tmp_path / "never", dropout=0.5, eval_every=0, sample_every=0)
    assert losses(tmp_path / "often") == losses(tmp_path / "never")


def test_limits(tmp_path):
    assert train(tmp_path / "e", max_steps=None, max_epochs=2).step == 14
    assert train(tmp_path / "s", max_steps=None, max_seconds=1e-4).reason == "max_seconds"
    early = train(tmp_path / "p", max_steps=500, patience=2, lr=1e-12, eval_every=1)
    assert early.reason == "patience"
    assert early.step < 500


def test_the_learning_rate_follows_the_schedule(tmp_path):
    cfg = toy_config(max_steps=16)
    cfg.optimizer.schedule.name, cfg.optimizer.schedule.gamma, cfg.optimizer.schedule.every_epochs = "step", 0.5, 1
    fit(cfg, ToyTask(cfg), World(), tmp_path)
    assert [r["lr"] / cfg.optimizer.lr for r in records(tmp_path)] == [1.0] * 7 + [0.5] * 7 + [0.25] * 2
    assert optim.lr_factor(cfg.optimizer.schedule, 0, 2, 16) == 0.25


@pytest.mark.parametrize("dies_in", [None, 3, 6, 10])
def test_the_learning_rate_follows_the_time_under_a_time_limit(dies_in, tmp_path, monkeypatch):
    cfg = toy_config(max_steps=None, max_seconds=6.0, checkpoint_every=2)
    cfg.optimizer.schedule.name, cfg.optimizer.schedule.warmup_steps = "linear", 3
    ticks = itertools.count()
    monkeypatch.setattr(loop.RunLogger, "count_flops", lambda *_: 0.0)
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: next(ticks) / 4))  # half a second a step
    if dies_in is not None:
        with monkeypatch.context() as patch:
            run = loop.Stepper.run
            patch.setattr(loop.Stepper, "run", lambda self, step, *_: 1 / 0 if step == dies_in else run(self, step, *_))
            with pytest.raises(ZeroDivisionError):
                fit(cfg, ToyTask(cfg), World(), tmp_path)
    resume = None if dies_in is None else checkpoint.read(tmp_path)
    assert fit(cfg, ToyTask(cfg), World(), tmp_path, resume).step == 13
    # By the seconds before the step before, which all ranks know: one when the warmup has ended.
    decay = [1 - 0.9 * second / 2 / 5 for second in range(10)]
    assert [r["lr"] / cfg.optimizer.lr for r in records(tmp_path)] == pytest.approx([1 / 3, 2 / 3, 1.0, *decay])


@pytest.mark.parametrize(("bounds", "total"), [((None, 2), 14), ((10, 2), 10), ((20, 2), 14), ((10, None), 10)])
@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_cosine_and_linear_end_where_training_ends(tmp_path, name, bounds, total):
    cfg = toy_config(max_steps=bounds[0], max_epochs=bounds[1], eval_every=0, checkpoint_every=0)
    cfg.optimizer.schedule.name, cfg.optimizer.schedule.final_factor = name, 0.2
    assert fit(cfg, ToyTask(cfg), World(), tmp_path).step == total
    half = [0.5 * (1 - math.cos(math.pi * k / total)) if name == "cosine" else k / total for k in range(total)]
    assert [r["lr"] / cfg.optimizer.lr for r in records(tmp_path)] == pytest.approx([1 - 0.8 * part for part in half])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
@pytest.mark.parametrize("in_eval", [False, True])
def test_a_signal_stops_with_a_checkpoint_and_the_resumed_run_gives_the_same_bits(tmp_path, number, in_eval):
    settings = {"dropout": 0.3, "log_every": 3, "sample_every": 10, "accumulate": 2}
    train(tmp_path / "straight", **settings)
    stopped = train(tmp_path / "cut", signal_at=9, signal=int(number), signal_in_eval=in_eval, **settings)
    assert (stopped.reason, stopped.signal, stopped.step) == ("signal", number, 10)
    assert checkpoint.read(tmp_path / "cut").step == 10
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert train(tmp_path / "cut", resume=True, **settings).step == 20
    assert_same_bits(tmp_path / "straight", tmp_path / "cut")


@pytest.mark.parametrize("where", ["sample", "test"])
def test_a_signal_breaks_into_a_long_sample_or_test_and_the_resumed_run_has_it_whole(tmp_path, where):
    settings = {"dropout": 0.3, "sample_every": 10}
    train(tmp_path / "straight", **settings)
    slow = {f"{where}_seconds": 60.0, "signal_at": 9 if where == "sample" else 19, "signal_delay": 0.5}
    cfg = toy_config(**settings, **slow)
    task = ToyTask(cfg)
    stopped = fit(cfg, task, World(), tmp_path / "cut")
    assert (stopped.reason, stopped.signal, stopped.step) == ("signal", signal.SIGTERM, slow["signal_at"] + 1)
    assert 0 < task.unhurried < 30
    assert checkpoint.read(tmp_path / "cut").step == stopped.step
    assert not (tmp_path / "cut" / "summary.json").exists()
    train(tmp_path / "cut", resume=True, **settings)
    assert_same_bits(tmp_path / "straight", tmp_path / "cut")
    assert [r["figures"] for r in records(tmp_path / "cut", "test")] == [
        r["figures"] for r in records(tmp_path / "straight", "test")
    ]


@pytest.mark.slow(seconds=10)
def test_kill_9_and_resume_gives_the_same_bits(tmp_path):
    settings = {"dropout": 0.3, "log_every": 4, "accumulate": 2, "max_steps": 24}
    train(tmp_path / "straight", **settings)
    words = [f"{key}={value}" for key, value in {**settings, "signal_at": 13, "signal": int(signal.SIGKILL)}.items()]
    command = [sys.executable, "-m", "tests.training.toy_task", str(tmp_path / "cut"), *words]
    killed = subprocess.run(command, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert losses(tmp_path / "cut")[-1][0] == 12
    assert checkpoint.read(tmp_path / "cut").step == 10
    train(tmp_path / "cut", resume=True, **settings)
    assert_same_bits(tmp_path / "straight", tmp_path / "cut")


@pytest.mark.slow(seconds=10)
def test_kill_9_during_a_validation_loses_nothing(tmp_path):
    settings = {"dropout": 0.3, "sample_every": 10}
    train(tmp_path / "straight", **settings)
    killer = {**settings, "signal_at": 8, "signal": int(signal.SIGKILL), "signal_in_eval": True}
    words = [f"{key}={value}" for key, value in killer.items()]
    command = [sys.executable, "-m", "tests.training.toy_task", str(tmp_path / "cut"), *words]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert checkpoint.read(tmp_path / "cut").step == 10  # written before the validation of that step
    assert train(tmp_path / "cut", resume=True, **settings).step == 20
    assert_same_bits(tmp_path / "straight", tmp_path / "cut")


def test_a_crash_between_a_validation_and_its_checkpoint_repeats_no_record(tmp_path, monkeypatch):
    settings = {"dropout": 0.3, "sample_every": 10}
    train(tmp_path / "straight", **settings)
    save = snapshot.save

    def crash(*args):
        if args[7].step == args[7].sample_step == 10:
            raise RuntimeError("crash")
        save(*args)

    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "save", crash)
        with pytest.raises(RuntimeError, match="crash"):
            train(tmp_path / "cut", **settings)
    assert [step for step, _ in losses(tmp_path / "cut", "val")] == [5, 10]
    train(tmp_path / "cut", resume=True, **settings)
    assert_same_bits(tmp_path / "straight", tmp_path / "cut")
    assert (tmp_path / "cut" / "samples.txt").read_bytes() == (tmp_path / "straight" / "samples.txt").read_bytes()


def test_the_best_checkpoint_knows_its_validation(tmp_path):
    train(tmp_path, max_steps=15, keep_checkpoints=1, lr=1e-2)
    best, last = checkpoint.read(tmp_path, "best"), checkpoint.read(tmp_path)
    lowest = min(losses(tmp_path, "val"), key=lambda point: point[1])
    assert (best.step, best.manifest["val_loss"], best.state["progress"]["best_loss"]) == (lowest[0], *lowest[1:] * 2)
    assert last.manifest["val_loss"] == losses(tmp_path, "val")[-1][1]


def test_resuming_from_the_last_good_checkpoint_drops_the_later_records(tmp_path):
    train(tmp_path)
    weights = checkpoint.listing(tmp_path)[-1] / checkpoint.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1])
    before = losses(tmp_path)
    train(tmp_path, resume=True)
    assert losses(tmp_path) == before
    assert checkpoint.read(tmp_path).step == 20


@pytest.mark.parametrize("where", ["prnn.training.snapshot.restore", "prnn.training.observe.run_logger.Console"])
def test_a_run_that_fails_at_its_start_leaves_nothing_open(tmp_path, monkeypatch, where):
    train(tmp_path, max_steps=5)
    logger = logging.getLogger("prnn")
    before = (logger.level, logger.propagate, list(logger.handlers))
    closed = []
    monkeypatch.setattr(loggers.Loggers, "close", lambda self, failed=False: closed.append(("loggers", failed)))
    close = Record.close
    monkeypatch.setattr(Record, "close", lambda self: (closed.append("record"), close(self)))

    def fail(*args, **kwargs):
        raise UserError("it does not fit")

    monkeypatch.setattr(where, fail)
    with pytest.raises(UserError, match="it does not fit"):
        train(tmp_path, resume=True)
    assert (logger.level, logger.propagate, logger.handlers) == before
    assert closed == [("loggers", True), "record"]


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path):
    with pytest.raises(Diverged, match=r"loss is not finite at step 13 .*lower optimizer\.lr") as stopped:
        train(tmp_path, nan_at=12)
    assert stopped.value.exit_status == 1
    loaded = checkpoint.read(tmp_path)
    assert loaded.step == 10
    assert all(tensor.isfinite().all() for tensor in loaded.model_state.values())
    assert losses(tmp_path)[-1][0] == 12


def fill_disk(monkeypatch, from_step):
    write = whole.write_synced

    def full(path, content):
        if int("".join(filter(str.isdigit, path.parent.name)) or 0) >= from_step:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    monkeypatch.setattr(whole, "write_synced", full)


def test_a_full_disk_costs_a_periodic_checkpoint_but_fails_at_the_end(tmp_path, monkeypatch, capsys):
    fill_disk(monkeypatch, from_step=10)
    with pytest.raises(UserError, match="step 20 could not be written"):
        train(tmp_path)
    said = [line for line in capsys.readouterr().out.splitlines() if "Training goes on." in line]
    assert [line.split(" could")[0] for line in dict.fromkeys(said)] == [
        f"the checkpoint of step {step}" for step in (10, 15, 20)
    ]
    assert [p.name for p in checkpoint.folder(tmp_path).glob("*step*")] == ["step_00000005"]
    assert len(losses(tmp_path)) == 20


def test_a_full_disk_at_the_first_checkpoint_stops(tmp_path, monkeypatch):
    fill_disk(monkeypatch, from_step=0)
    with pytest.raises(UserError, match="step 5 could not be written"):
        train(tmp_path)


def test_bfloat16_trains(tmp_path):
    train(tmp_path, precision="bfloat16")
    assert losses(tmp_path)[-1][1] == pytest.approx(plain_loop(20, False)[-1], rel=0.2)
