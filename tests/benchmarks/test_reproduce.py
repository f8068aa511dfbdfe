"""Sweeps over seeds: what is run, what is run again and what not, and what is recorded of it."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.common import files
from benchmarks.reproduce import __main__ as reproduce
from benchmarks.reproduce import page as reproductions_page
from benchmarks.reproduce import records, reproductions, seeds
from benchmarks.reproduce import sweep as sweeps
from benchmarks.reproduce.rows import Figure, Group, Published, Row
from prnn.errors import UserError
from prnn.training import fit
from prnn.training.distributed import World
from prnn.training.observe.record_reader import read_records
from prnn.training.run_dir import Lock
from prnn.training.step import Diverged
from tests.training.toy_task import ToyTask, toy_config

LOSS = Figure("best_val_loss", "loss", "lower", goal=1.0, published=(Published(0.9, "nanoGPT"),))
SOLVED = Figure("test.solved", "% solved", "higher", scale=100)
FAKE = Row("fake", "a fake", ("model=gru",), (LOSS, SOLVED), "nothing")


class Sweeper:
    """Runs sweeps of FAKE in an empty directory, over fake trainings that do what ``script`` says."""

    def __init__(self, capsys):
        self.capsys = capsys
        self.out, self.err = "", ""

    def __call__(self, script, *arguments):
        Path("script.json").write_text(json.dumps({str(seed): todo for seed, todo in script.items()}))
        Path("calls.jsonl").write_text("")
        status = reproduce.main(["fake", "--out", "found.json", *arguments])
        self.out, self.err = self.capsys.readouterr()
        return status

    @property
    def calls(self):
        return [json.loads(line) for line in Path("calls.jsonl").read_text().splitlines()]

    @property
    def called(self):
        """The seeds that were run, in order, with a ``+`` where a run was continued."""
        names = [(words[-1].rpartition("-")[2], words[0].startswith("resume=")) for words in self.calls]
        return [name + "+" * resumed for name, resumed in names]

    @property
    def recorded(self):
        return records.load(Path("found.json"))


@pytest.fixture
def sweep(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproductions, "ROWS", {"fake": FAKE})
    monkeypatch.setattr(seeds, "TRAIN", [sys.executable, str(Path(__file__).with_name("fake_train.py"))])
    monkeypatch.setattr(seeds, "POLL_SECONDS", 0.02)
    for name in sweeps.SWITCHES:
        monkeypatch.delenv(name, raising=False)
    return Sweeper(capsys)


def test_every_seed_is_a_training_and_the_figures_are_put_together(sweep):
    assert sweep({1: 0.5, 2: 1.5, 3: 1.0}, "trainer.max_steps=3") == 0
    assert [words[:3] for words in sweep.calls] == [
        ["model=gru", "trainer.max_steps=3", f"seed={i}"] for i in (1, 2, 3)
    ]
    [record] = sweep.recorded
    loss, solved = record["figures"]
    assert loss["ours"] == {"mean": 1.0, "min": 0.5, "max": 1.5, "std": 0.5}
    assert (loss["seeds"], loss["reached"], loss["goal"]) == (3, 2, 1.0)
    assert loss["published"][0]["value"] == 0.9 and "github.com" in loss["published"][0]["address"]
    assert solved["ours"]["mean"] == 25 and solved["reached"] == 3  # without a goal none is missed
    assert [(each["seed"], each["reached"], each["restarts"]) for each in record["seeds"]] == [
        (1, True, 0), (2, False, 0), (3, True, 0),
    ]  # fmt: skip
    assert record["seeds"][1]["attempts"][0]["figures"] == {"best_val_loss": 1.5, "test.solved": 25}
    assert (record["steps"]["mean"], record["seconds"]["mean"], record["tokens_per_second"]["max"]) == (3, 2, 30)
    assert (record["unit"], record["machine"]["device"], record["overrides"]) == (
        "characters", "cpu", ["trainer.max_steps=3"],
    )  # fmt: skip
    assert record["command"] == "python -m benchmarks.reproduce fake --out found.json trainer.max_steps=3"
    assert {"processor", "torch", "native"} <= record["machine"].keys() and record["commit"] and record["date"]


def test_the_repositorys_own_records_come_with_their_page(sweep, monkeypatch, tmp_path):
    monkeypatch.setattr(records, "RECORDS", tmp_path / "results" / "all.json")
    monkeypatch.setattr(reproductions_page, "PAGE", tmp_path / "docs.md")
    assert sweep({1: 0.5}, "--seeds", "1", "--out", "elsewhere.json") == 0
    assert not records.RECORDS.exists() and not reproductions_page.PAGE.exists()
    assert reproduce.main(["fake", "--seeds", "1"]) == 0
    [record] = records.load(records.RECORDS)
    assert record["command"] == "python -m benchmarks.reproduce fake --seeds 1"
    assert reproductions_page.PAGE.read_text() == reproductions_page.render([record])


def test_a_finished_seed_is_not_run_again_and_history_is_kept(sweep):
    sweep({1: 0.5, 2: 0.5}, "--seeds", "2")
    assert sweep({}, "--seeds", "2") == 0
    assert sweep.called == [] and len(sweep.recorded) == 1 and "has it already" in sweep.out
    assert sweep({3: 0.5}, "--seeds", "3") == 0
    assert sweep.called == ["3"]
    assert [[seed["seed"] for seed in record["seeds"]] for record in sweep.recorded] == [[1, 2], [1, 2, 3]]


@pytest.mark.parametrize("what", ["code", "overrides", "environment", "machine"])
def test_another_run_is_run(sweep, monkeypatch, what):
    sweep({1: 0.5}, "--seeds", "1")
    if what == "code":
        monkeypatch.setattr(sweeps, "code_digest", lambda: "other")
    if what == "environment":
        monkeypatch.setenv("PRNN_BACKEND", "torch")
    if what == "machine":
        monkeypatch.setattr(sweeps.machine, "processor", lambda: "another")
    more = ["model.hidden_size=3"] if what == "overrides" else []
    assert sweep({1: 0.7}, "--seeds", "1", *more) == 0
    assert sweep.called == ["1"]
    assert [record["figures"][0]["ours"]["mean"] for record in sweep.recorded] == [0.5, 0.7]


def test_a_seed_that_diverges_or_dies_does_not_end_the_others(sweep):
    assert sweep({1: "diverged", 2: "died", 3: "killed", 4: 0.5}, "--seeds", "4") == 0
    [record] = sweep.recorded
    assert [seed["status"] for seed in record["seeds"]] == ["diverged", "failed", "failed", "finished"]
    told = [seed["attempts"][0].get("message") for seed in record["seeds"]]
    assert told[0] == "the loss is not finite at step 2 (loss nan): lower optimizer.lr."
    assert "MemoryError" in told[1] and "killed by signal 9" in told[2]
    assert record["figures"][0]["ours"]["mean"] == 0.5 and record["figures"][0]["reached"] == 1
    assert record["figures"][0]["seeds"] == 4
    # The one would diverge again, the others may have been in bad luck.
    assert sweep({2: 0.6, 3: 0.7}, "--seeds", "4") == 0
    assert sweep.called == ["2", "3"]
    assert [seed["status"] for seed in sweep.recorded[-1]["seeds"]] == ["diverged", *["finished"] * 3]


def test_if_all_diverge_that_is_recorded(sweep):
    assert sweep({1: "diverged"}, "--seeds", "1") == 0
    [record] = sweep.recorded
    assert record["figures"][0]["ours"] is None and record["steps"] is None
    assert "1 diverged" in reproductions_page.render([record], [group(FAKE)])


def test_a_mistake_ends_the_sweep_and_what_is_finished_is_recorded(sweep):
    assert sweep({1: 0.5, 2: "mistake", 3: 0.5}) == 2
    assert sweep.called == ["1", "2"]
    assert sweep.err == "reproduce: seed 2: trainer.batch_size=7 is odd.\n"
    assert [seed["seed"] for seed in sweep.recorded[0]["seeds"]] == [1]


def test_ctrl_c_is_handed_on_once_and_the_same_command_goes_on(sweep):
    assert sweep({1: 0.5, 2: ["stopped", 0.7], 3: 0.9}) == 130
    assert sweep.called == ["1", "2"]
    assert "the same command goes on" in sweep.err
    assert [seed["seed"] for seed in sweep.recorded[0]["seeds"]] == [1] and sweep.recorded[0]["seeds_asked"] == 3
    assert "stopped early, of 3" in reproductions_page.render(sweep.recorded, [group(FAKE)])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert sweep({2: 0.7, 3: 0.9}) == 0
    assert sweep.called == ["2+", "3"]
    assert [seed["seed"] for seed in sweep.recorded[1]["seeds"]] == [1, 2, 3]


def test_a_second_ctrl_c_waits_for_nobody(sweep):
    began = time.monotonic()
    assert sweep({1: 0.5, 2: "deaf"}) == 130
    assert time.monotonic() - began < 50  # the training would have slept for 60 seconds
    [pid] = Path("runs").rglob("seed-2/pid")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert [seed["seed"] for seed in sweep.recorded[0]["seeds"]] == [1]


def test_a_restart_takes_another_seed_and_is_counted(sweep):
    first, second = sweeps.RESTART, 2 * sweeps.RESTART
    script = {1: 0.5, 2: 1.5, 2 + first: "diverged", 2 + second: 0.7, 3: 2.0, 3 + first: 3.0, 3 + second: 2.5}
    assert sweep(script, "--restarts", "2") == 0
    assert sweep.called == [str(seed) for seed in script]
    [record] = sweep.recorded
    assert [(each["restarts"], each["reached"]) for each in record["seeds"]] == [(0, True), (2, True), (2, False)]
    assert [each["status"] for each in record["seeds"][1]["attempts"]] == ["finished", "diverged", "finished"]
    assert record["figures"][0]["ours"]["max"] == 2.5  # the last try counts, not the best
    assert "2 of 3 (4 restarts)" in reproductions_page.render([record], [group(FAKE)])
    assert sweep({}, "--seeds", "3") == 0 and sweep.called == []  # without restarts, the same first runs
    assert [each["reached"] for each in sweep.recorded[1]["seeds"]] == [True, False, False]


def test_a_figure_that_is_not_finite_misses(sweep):
    assert sweep({1: None}, "--seeds", "1") == 0
    assert sweep.recorded[0]["figures"][0] | {"published": None} == {
        "key": "best_val_loss", "what": "loss", "better": "lower", "published": None, "goal": 1.0, "ours": None,
        "seeds": 1, "reached": 0,
    }  # fmt: skip
    assert "not finite" in sweep.out


def test_a_figure_that_a_run_does_not_have_is_named(sweep, monkeypatch):
    monkeypatch.setitem(reproductions.ROWS, "fake", Row("fake", "", (), (Figure("test.bleu", "", "higher"),), ""))
    assert sweep({1: 0.5}, "--seeds", "1") == 2
    assert "has no 'bleu': its log may say why" in sweep.err and sweep.recorded == []


def test_code_that_is_changed_meanwhile_ends_the_sweep(sweep, monkeypatch):
    digests = iter(["a", "a", "b"])
    monkeypatch.setattr(sweeps, "code_digest", lambda: next(digests))
    assert sweep({1: 0.5, 2: 0.5}) == 2
    assert sweep.called == ["1"] and "changed during the sweep" in sweep.err


def test_a_training_that_is_still_alive_is_left_alone(sweep):
    assert sweep({1: "died"}, "--seeds", "1") == 0
    [run_dir] = Path("runs").rglob("seed-1")
    lock = Lock(run_dir)
    assert sweep({1: 0.5}, "--seeds", "1") == 2
    assert "being written by another job" in sweep.err and (run_dir / "metrics.jsonl").exists()
    lock.release()
    assert sweep({1: 0.5}, "--seeds", "1") == 0


def test_the_digest_is_of_code_and_configuration(tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "ROOT", tmp_path)
    for name in ("prnn/a.py", "conf/b.yaml", "docs/c.md"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("1")
    found = [sweeps.code_digest()]
    for name in ("docs/c.md", "prnn/a.py", "conf/b.yaml"):
        (tmp_path / name).write_text("2")
        found.append(sweeps.code_digest())
    assert found[0] == found[1] and len(set(found)) == 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "name one of fake"),
        (["nonsense"], "nonsense is not a reproduction"),
        (["fake", "seed=3"], "seed=3 is chosen by the row or by --seeds"),
        (["fake", "run_dir=x"], "run_dir=x is chosen"),
        (["fake", "nonsense"], "nonsense cannot be read"),
        (["fake", "--seeds", "0"], "must be a number of seeds"),
        (["fake", "--seeds", "1,1"], "must be a number of seeds"),
        (["fake", "--seeds", "a,b"], "must be a number of seeds"),
        (["fake", "--restarts", "-1"], "must be at least 0"),
    ],
)
def test_a_mistake_in_the_command_is_told(sweep, capsys, arguments, sentence):
    with pytest.raises(SystemExit, match="2"):
        reproduce.main(arguments)
    assert sentence in capsys.readouterr().err


def test_seeds_are_a_number_or_a_list():
    assert reproduce.parse_seeds("3") == [1, 2, 3]
    assert reproduce.parse_seeds("4,7") == [4, 7]
    assert reproduce.parse_seeds("4,") == [4]


def test_a_dry_run_runs_nothing(sweep):
    assert sweep({1: 0.5}, "--seeds", "1") == 0
    assert sweep({}, "--seeds", "2", "--dry-run") == 0
    assert sweep.called == [] and len(sweep.recorded) == 1
    finished, due = sweep.out.splitlines()
    assert finished.startswith("finished python -m prnn.train") and due.startswith("to run python -m prnn.train")
    assert "model=gru seed=2 run_dir=runs/reproduce/fake/" in due


def test_the_list_names_every_row(capsys):
    assert reproduce.main(["--list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said and row.needs in said for name, row in reproductions.ROWS.items())


def test_a_damaged_file_is_told_before_anything_is_run_and_left_as_it_is(sweep):
    Path("found.json").write_text("[{")
    assert sweep({}) == 2
    assert "found.json is not a list of reproductions" in sweep.err
    assert Path("found.json").read_text() == "[{"


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "found.json"
    files.write(path, "old")

    def full(self, target):
        raise OSError("full")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="full"):
        files.write(path, "new")
    assert [each.name for each in tmp_path.iterdir()] == ["found.json"] and path.read_text() == "old"


def test_sweeps_that_end_together_are_all_recorded(tmp_path):
    record = {
        "name": "n",
        "overrides": [],
        "environment": {},
        "machine": {"processor": "p", "device": "cpu"},
        "threads": 1,
    }

    def write(code):
        for i in range(20):
            assert records.append(tmp_path / "r.json", {**record, "code": code, "seeds": [], "figures": i})

    with ThreadPoolExecutor(4) as pool:  # the lock is on an open file: threads are as good as processes
        list(pool.map(write, range(4)))
    assert len(records.load(tmp_path / "r.json")) == 80
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def group(*rows):
    return Group("Title", "About.", rows)


TINY = [
    "data=shakespeare", "task.bptt=5", "task.sample_length=0", "task.eval_tokens=20", "model.hidden_size=4",
    "model.num_layers=1", "trainer.batch_size=4", "trainer.threads=1", "trainer.max_seconds=null",
    "trainer.log_every=100",
]  # fmt: skip


@pytest.mark.slow(seconds=60)
def test_real_trainings_are_stopped_and_go_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(seeds, "POLL_SECONDS", 0.02)
    command = ["char_lstm_31s", "--out", "found.json", "--seeds", "1", *TINY, "trainer.max_steps=3000"]

    def interrupt():
        while not any(map(read_records, tmp_path.rglob("metrics.jsonl"))):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    assert reproduce.main(command) == 130
    [run_dir] = tmp_path.rglob("seed-1")
    assert list(run_dir.glob("checkpoints/step_*")) and not (run_dir / "summary.json").exists()
    assert reproduce.main(command) == 0
    assert [r["step"] for r in read_records(run_dir / "metrics.jsonl") if r["kind"] == "train"] == [
        1,
        *range(100, 3001, 100),
    ]
    [record] = records.load(tmp_path / "found.json")
    summary = json.loads((run_dir / "summary.json").read_text())
    assert record["figures"][0]["ours"]["mean"] == pytest.approx(summary["best_val_loss"])
    assert record["steps"]["mean"] == 3000 and record["threads"] == 1


def test_a_divergence_is_told_in_the_words_that_are_looked_for(tmp_path):
    cfg = toy_config(nan_at=2)
    with pytest.raises(Diverged, match=seeds.NOT_FINITE):
        fit(cfg, ToyTask(cfg), World(), tmp_path)


def test_a_lock_held_by_nobody_is_no_hindrance(tmp_path):
    place = seeds.Place(tmp_path, 1)
    place.run_dir.mkdir()
    (place.run_dir / "metrics.jsonl").write_text("{}\n")
    place.log.write_text("old")
    place.clear()
    assert not list(tmp_path.iterdir())


def test_records_of_something_else_are_refused(tmp_path):
    (tmp_path / "x.json").write_text('{"name": 1}')
    with pytest.raises(UserError, match="not a list of reproductions"):
        records.load(tmp_path / "x.json")
    assert records.load(tmp_path / "none.json") == []
