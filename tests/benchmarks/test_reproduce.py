"""Sweeps over seeds: what is run, what is run again and what not, and what is recorded of it."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.reproduce import __main__ as reproduce
from benchmarks.reproduce import page as reproductions_page
from benchmarks.reproduce import parked, records, reproductions, seeds, settings
from benchmarks.reproduce import sweep as sweeps
from benchmarks.reproduce.rows import Figure, Group, Published, Row
from prnn.training import fit
from prnn.training.distributed import World
from prnn.training.observe.record_reader import read_records
from prnn.training.run_dir import Lock
from prnn.training.step import Diverged
from tests.training.toy_task import ToyTask, toy_config

LOSS = Figure("best_val_loss", "loss", "lower", goal=1.0, published=(Published(0.9, "nanoGPT"),))
SOLVED = Figure("test.solved", "% solved", "higher", scale=100)
FAKE = Row("fake", "a fake", ("model=gru", "trainer.max_epochs=1"), (LOSS, SOLVED), minutes=1)


class Sweeper:
    """Runs sweeps of FAKE in an empty directory, over fake trainings that do what ``script`` says."""

    def __init__(self, capsys):
        self.capsys = capsys
        self.out, self.err = "", ""

    def __call__(self, script, *arguments):
        Path("script.json").write_text(json.dumps({str(seed): todo for seed, todo in script.items()}))
        Path("calls.jsonl").write_text("")
        status = reproduce.main([*([] if "--all" in arguments else ["fake"]), "--out", "found", *arguments])
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
        return records.load(Path("found"), "fake")

    @property
    def page(self):
        groups = [group(FAKE)]
        return reproductions_page.render(reproductions_page.shown(Path("found"), groups), groups)


@pytest.fixture
def sweep(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproductions, "ROWS", {"fake": FAKE})
    monkeypatch.setattr(seeds, "TRAIN", [sys.executable, str(Path(__file__).with_name("fake_train.py"))])
    monkeypatch.setattr(seeds, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(seeds, "monotonic", lambda: 1e6 if Path("ready").exists() else 0.0)  # any budget is over
    for name in sweeps.SWITCHES:
        monkeypatch.delenv(name, raising=False)
    return Sweeper(capsys)


def test_every_seed_is_a_training_and_its_figures_are_recorded(sweep):
    assert sweep({1: 0.5, 2: 1.5, 3: 1.0}, "trainer.max_steps=3") == 0
    assert [words[:4] for words in sweep.calls] == [
        ["model=gru", "trainer.max_epochs=1", "trainer.max_steps=3", f"seed={i}"] for i in (1, 2, 3)
    ]
    [series] = sweep.recorded
    assert (series["name"], series["overrides"], series["device"]) == ("fake", ["trainer.max_steps=3"], "cpu")
    assert series["settings"]["trainer.max_steps"] == 3 and series["settings"]["model.cell"] == "gru"
    assert not {"seed", "run_dir", "trainer.threads", "logger.wandb"} & series["settings"].keys()
    assert [entry["figures"] for entry in series["seeds"]] == [
        {"best_val_loss": loss, "test.solved": 25} for loss in (0.5, 1.5, 1.0)
    ]
    entry = series["seeds"][0]
    assert (entry["seed"], entry["status"], entry["steps"], entry["seconds"]) == (1, "finished", 3, 2.0)
    assert (entry["unit"], entry["threads"], entry["tokens_per_second"]) == ("characters", 1, 30)
    assert {"processor", "torch", "commit", "date", "load"} <= entry.keys() and "restarted" not in entry
    line = next(line for line in sweep.page.splitlines() if "`fake` with `trainer.max_steps=3`" in line)
    assert "| **1** ± 0.5 (0.5 to 1.5) | 2 of 3 |" in line


def test_the_rows_own_seeds_are_run(sweep, monkeypatch):
    monkeypatch.setitem(reproductions.ROWS, "fake", replace(FAKE, seeds=(7, 9)))
    assert sweep({7: 0.5, 9: 0.5}) == 0
    assert sweep.called == ["7", "9"]


def test_the_repositorys_own_records_come_with_their_page(sweep, monkeypatch, tmp_path):
    monkeypatch.setattr(records, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(reproductions_page, "PAGE", tmp_path / "docs.md")
    assert sweep({1: 0.5}, "--seeds", "1", "--out", "elsewhere") == 0
    assert not records.FOLDER.exists() and not reproductions_page.PAGE.exists()
    assert reproduce.main(["fake", "--seeds", "1"]) == 0
    assert [entry["seed"] for entry in records.load(records.FOLDER, "fake")[0]["seeds"]] == [1]
    assert reproductions_page.PAGE.read_text().startswith("# Reproductions")


def test_a_finished_seed_is_not_run_again_and_others_are_added(sweep):
    sweep({1: 0.5, 2: 0.5}, "--seeds", "2")
    assert sweep({}, "--seeds", "2") == 0
    assert sweep.called == []
    assert sweep({3: 0.5}, "--seeds", "3") == 0
    assert sweep.called == ["3"]
    [series] = sweep.recorded
    assert [entry["seed"] for entry in series["seeds"]] == [1, 2, 3]


def test_what_is_recorded_with_the_same_settings_is_not_run_again_anywhere(sweep, monkeypatch):
    sweep({1: 0.5}, "--seeds", "1")
    monkeypatch.setattr(sweeps, "code_digest", lambda: "other")
    monkeypatch.setattr(sweeps.machine, "processor", lambda: "another")
    assert sweep({2: 0.7}, "--seeds", "2", "--resume") == 0
    assert sweep.called == ["2"]
    assert sweep({1: 0.6, 2: 0.6}, "--seeds", "2", "--resume", "--dry-run") == 0
    assert [line.split()[0] for line in sweep.out.splitlines()] == ["recorded", "recorded"]
    monkeypatch.setitem(reproductions.ROWS, "fake", replace(FAKE, overrides=(*FAKE.overrides, "model.hidden_size=3")))
    assert "stale: model.hidden_size was 128" not in sweep.page  # of FAKE itself
    assert sweep({1: 0.6}, "--seeds", "1", "--resume") == 0
    assert sweep.called == ["1"]
    [series] = sweep.recorded  # in place of those with the former settings
    assert [entry["figures"]["best_val_loss"] for entry in series["seeds"]] == [0.6]


def test_all_rows_are_run_from_the_shortest_to_the_longest(sweep, monkeypatch):
    rows = [
        replace(FAKE, name="long", minutes=9, seeds=(3,)),
        replace(FAKE, name="fast", alone=True, seeds=(4,)),
        replace(FAKE, name="odd", minutes=0.5, seeds=(5,)),
        replace(FAKE, name="short", seeds=(1, 2)),
    ]
    monkeypatch.setattr(reproductions, "ROWS", {row.name: row for row in rows})
    niceness = []
    monkeypatch.setattr(reproduce.os, "nice", niceness.append)
    assert sweep({1: 0.5, 2: 0.5, 3: 0.5, 5: "mistake"}, "--all", "--resume") == 2
    assert sweep.called == ["5", "1", "2", "3"] and niceness == [19]
    assert sweep.err == "reproduce: odd: seed 5: trainer.batch_size=7 is odd.\n"
    assert records.names(Path("found")) == ["long", "short"]
    [series] = records.load(Path("found"), "short")
    assert series["environment"] == {"OMP_NUM_THREADS": "1"} and not records.variant(series)


def test_at_the_end_of_the_budget_the_run_is_stopped_with_a_checkpoint(sweep):
    assert sweep({1: "until_sigterm", 2: 0.5}, "--seeds", "2", "--budget", "90m") == 128 + signal.SIGTERM
    assert sweep.called == ["1"] and "the same command goes on" in sweep.err
    assert sweep({1: 0.7, 2: 0.5}, "--seeds", "2", "--budget", "1h") == 0
    assert sweep.called == ["1+", "2"]


def test_a_long_run_is_parked_with_the_records_and_goes_on_elsewhere(sweep, monkeypatch):
    monkeypatch.setitem(reproductions.ROWS, "fake", replace(FAKE, minutes=60))
    first = ("--seeds", "1", "--resume")
    assert sweep({1: "until_sigterm"}, *first, "--budget", "90m") == 128 + signal.SIGTERM
    assert "parked at step 3 in found/fake/seed-1" in sweep.out
    assert {str(path.relative_to("found")) for path in Path("found").rglob("*") if path.is_file()} == {
        f"fake/seed-1/{name}"
        for name in ("checkpoints/step_00000003/model", ".hydra/config.yaml", ".hydra/overrides.yaml", "segments.json")
    }
    monkeypatch.setattr(sweeps, "code_digest", lambda: "other")  # a checkout with other code, and no runs/
    assert sweep({1: 0.7}, *first) == 0
    assert sweep.called == ["1+"] and "goes on from step 3" in sweep.out
    assert not Path("found/fake").exists()
    [entry] = sweep.recorded[0]["seeds"]
    assert entry["figures"]["best_val_loss"] == 0.7 and len(entry["segments"]) == 1
    assert {"commit", "processor", "date"} <= entry["segments"][0].keys()


def test_a_run_that_was_parked_with_other_settings_is_begun_again(sweep, monkeypatch):
    monkeypatch.setitem(reproductions.ROWS, "fake", replace(FAKE, minutes=60))
    assert sweep({1: "until_sigterm"}, "--seeds", "1", "--resume", "--budget", "90m") == 128 + signal.SIGTERM
    changed = replace(FAKE, minutes=60, overrides=(*FAKE.overrides, "model.hidden_size=3"))
    monkeypatch.setitem(reproductions.ROWS, "fake", changed)
    assert sweep({1: 0.7}, "--seeds", "1", "--resume") == 0
    assert sweep.called == ["1"]


def test_a_checkpoint_that_is_too_large_is_not_parked(sweep, monkeypatch):
    monkeypatch.setitem(reproductions.ROWS, "fake", replace(FAKE, minutes=60))
    monkeypatch.setattr(parked, "MOST_BYTES", 0)
    assert sweep({1: "until_sigterm"}, "--seeds", "1", "--resume", "--budget", "90m") == 128 + signal.SIGTERM
    assert "not parked: its last and its best checkpoint have 6 bytes, more than 0" in sweep.out
    assert not any(Path("found").iterdir())


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
    losses = [series["seeds"][0]["figures"]["best_val_loss"] for series in sweep.recorded]
    assert losses == ([0.5, 0.7] if what in ("overrides", "environment") else [0.7])


def test_a_seed_that_diverges_or_dies_does_not_end_the_others(sweep):
    assert sweep({1: "diverged", 2: "died", 3: "killed", 4: 0.5}, "--seeds", "4") == 0
    [series] = sweep.recorded
    assert [entry["status"] for entry in series["seeds"]] == ["diverged", "failed", "failed", "finished"]
    told = [entry.get("message") for entry in series["seeds"]]
    assert told[0] == "the loss is not finite at step 2 (loss nan): lower optimizer.lr."
    assert "MemoryError" in told[1] and "killed by signal 9" in told[2]
    assert "| **0.5** | 1 of 4 (1 diverged, 2 failed, 1 not among the row's) |" in sweep.page
    # The one would diverge again, the others may have been in bad luck.
    assert sweep({2: 0.6, 3: 0.7}, "--seeds", "4") == 0
    assert sweep.called == ["2", "3"]
    assert [entry["status"] for entry in sweep.recorded[0]["seeds"]] == ["diverged", *["finished"] * 3]


def test_if_all_diverge_that_is_recorded(sweep):
    assert sweep({1: "diverged"}, "--seeds", "1") == 0
    assert "| no figure | 0 of 1 (1 diverged, 2 not run) |" in sweep.page


def test_a_mistake_ends_the_sweep_and_what_is_finished_is_recorded(sweep):
    assert sweep({1: 0.5, 2: "mistake", 3: 0.5}) == 2
    assert sweep.called == ["1", "2"]
    assert sweep.err == "reproduce: fake: seed 2: trainer.batch_size=7 is odd.\n"
    assert [entry["seed"] for entry in sweep.recorded[0]["seeds"]] == [1]


def test_ctrl_c_is_handed_on_once_and_the_same_command_goes_on(sweep):
    assert sweep({1: 0.5, 2: ["stopped", 0.7], 3: 0.9}) == 130
    assert sweep.called == ["1", "2"]
    assert "the same command goes on" in sweep.err
    assert [entry["seed"] for entry in sweep.recorded[0]["seeds"]] == [1]
    assert "1 of 1 (2 not run)" in sweep.page
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert sweep({2: 0.7, 3: 0.9}) == 0
    assert sweep.called == ["2+", "3"]
    assert [entry["seed"] for entry in sweep.recorded[0]["seeds"]] == [1, 2, 3]


def test_a_second_ctrl_c_waits_for_nobody(sweep):
    began = time.monotonic()
    assert sweep({1: 0.5, 2: "deaf"}) == 130
    assert time.monotonic() - began < 50  # the training would have slept for 60 seconds
    [pid] = Path("runs").rglob("seed-2/pid")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert [entry["seed"] for entry in sweep.recorded[0]["seeds"]] == [1]


def test_a_restart_takes_another_seed_by_the_validation_loss_and_is_counted(sweep, monkeypatch):
    goal = replace(SOLVED, goal=100)  # which the test misses every time
    monkeypatch.setitem(reproductions.ROWS, "fake", replace(FAKE, figures=(LOSS, goal)))
    first, second = sweeps.RESTART, 2 * sweeps.RESTART
    script = {1: 0.5, 2: 1.5, 2 + first: "diverged", 2 + second: 0.7, 3: None, 3 + first: 3.0, 3 + second: 2.5}
    assert sweep(script, "--restarts", "2", "--restart-above", "0.9") == 0
    assert sweep.called == [str(seed) for seed in script]
    [series] = sweep.recorded
    assert [len(entry.get("restarted", [])) for entry in series["seeds"]] == [0, 2, 2]
    assert [attempt["status"] for attempt in series["seeds"][1]["restarted"]] == ["finished", "diverged"]
    assert [entry["figures"]["best_val_loss"] for entry in series["seeds"]] == [0.5, 0.7, 2.5]  # the last counts
    assert "`fake` with `--restarts 2 --restart-above 0.9`" in sweep.page and "2 of 3 (4 restarts)" in sweep.page
    assert sweep({}, "--seeds", "3") == 0 and sweep.called == []  # without restarts, the same first runs
    assert len(sweep.recorded) == 2  # which have a line of their own


def test_a_seed_that_failed_or_lacks_a_metric_is_run_again(sweep, monkeypatch):
    assert sweep({1: "killed", 2: 0.5, 3: "diverged"}, "--resume") == 0
    assert sweep({1: 0.5}, "--resume") == 0
    assert sweep.called == ["1"]
    more = Figure("test.solved", "% solved", "higher", scale=100)
    monkeypatch.setitem(reproductions.ROWS, "fake", replace(FAKE, figures=(LOSS, replace(more, key="steps"))))
    assert sweep({}, "--resume") == 0  # from the summaries that are there
    assert [entry["figures"].get("steps") for entry in sweep.recorded[0]["seeds"][:2]] == [300, 300]


def test_settings_that_change_during_a_run_are_not_recorded_as_those_of_its_start(sweep, monkeypatch):
    known = [settings.resolved([*FAKE.overrides, f"model.hidden_size={size}"]) for size in (128, 3)]
    monkeypatch.setattr(sweeps.settings, "resolved", lambda overrides: known.pop(0))
    assert sweep({1: 0.5}, "--seeds", "1") == 2
    assert "the settings changed while seed 1 ran: it is not recorded" in sweep.err and sweep.recorded == []


def test_restarts_by_the_test_images_are_refused(sweep, monkeypatch):
    images = replace(FAKE, overrides=("task=irnn_mnist", "data=digits", "trainer.max_epochs=1"))
    monkeypatch.setitem(reproductions.ROWS, "fake", images)
    assert sweep({}, "--restarts", "1", "--restart-above", "0.9") == 2
    assert "--restarts would go by the test images" in sweep.err


def test_two_sweeps_share_the_seeds_of_a_row(sweep):
    assert sweep({1: 0.5}, "--seeds", "1") == 0
    [run_dir] = Path("runs").rglob("seed-1")
    with seeds.Place(run_dir.parent, 2).claim():  # by the other
        assert sweep({3: 0.7}) == 2
    assert sweep.called == ["3"] and "being written by another job" in sweep.err
    assert [entry["seed"] for entry in sweep.recorded[0]["seeds"]] == [1, 3]


def test_a_figure_that_is_not_finite_misses(sweep):
    assert sweep({1: None}, "--seeds", "1") == 0
    assert sweep.recorded[0]["seeds"][0]["figures"]["best_val_loss"] is None
    assert "| no figure | 0 of 1 (2 not run) |" in sweep.page and "not finite" in sweep.out


def test_a_figure_that_a_run_does_not_have_is_named(sweep, monkeypatch):
    monkeypatch.setitem(reproductions.ROWS, "fake", replace(FAKE, figures=(Figure("test.bleu", "", "higher"),)))
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
        ([], "which row: name one of fake"),
        (["nonsense"], "nonsense is not a reproduction"),
        (["fake", "seed=3"], "seed=3 is chosen by the row or by --seeds"),
        (["fake", "run_dir=x"], "run_dir=x is chosen"),
        (["fake", "nonsense"], "nonsense cannot be read"),
        (["fake", "--seeds", "0"], "must be a number of seeds"),
        (["fake", "--seeds", "1,1"], "must be a number of seeds"),
        (["fake", "--seeds", "a,b"], "must be a number of seeds"),
        (["fake", "--restarts", "-1"], "must be at least 0"),
        (["fake", "--restarts", "1"], "--restarts and --restart-above need each other"),
        (["fake", "--restart-above", "0.1"], "need each other"),
        (["fake", "--all"], "--all runs every row as it is: leave out fake"),
        (["fake", "--seeds", "10000000000000000000000"], "must be a number of seeds"),
        (["fake", "--restarts", "1", "--restart-above", "nan"], "'nan' must be a number"),
        (["fake", "--out", ""], "must be a folder"),
        (["fake", "--out", "/dev/null"], "must be a folder"),
        (["fake", "--budget", "2"], "'2' must be a time such as 90m or 2h"),
        (["fake", "--budget", "0h"], "must be a time"),
    ],
)
def test_a_mistake_in_the_command_is_told(sweep, capsys, arguments, sentence):
    with pytest.raises(SystemExit, match="2"):
        reproduce.main(arguments)
    assert sentence in capsys.readouterr().err


def test_a_budget_is_a_time():
    assert [reproduce.parse_budget(text) for text in ("45s", "90m", "1.5h")] == [45, 5400, 5400]


def test_a_setting_that_cannot_be_read_is_told(sweep):
    for override in ("model.nonsense=3", "trainer.max_epochs=[1"):
        assert sweep({}, override) == 2
        assert sweep.err.startswith("reproduce: fake: ") and sweep.err.count("\n") == 1 and not sweep.called


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
    assert "model=gru trainer.max_epochs=1 seed=2 run_dir=runs/reproduce/fake/" in due


def test_the_list_names_every_row(capsys):
    assert reproduce.main(["--list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said and row.needs in said for name, row in reproductions.ROWS.items())


def test_a_damaged_file_is_told_before_anything_is_run_and_left_as_it_is(sweep):
    Path("found").mkdir()
    Path("found/fake.json").write_text("[{")
    assert sweep({}) == 2
    assert "found/fake.json is not a list of series of runs" in sweep.err
    assert Path("found/fake.json").read_text() == "[{"


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_run(sweep):
    assert sweep({}, "--out", "/proc/foo") == 2
    assert "/proc/foo cannot be written to" in sweep.err and not sweep.called


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
    command = ["char_lstm_31s", "--out", "found", "--seeds", "1", *TINY, "trainer.max_steps=3000"]

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
    [series] = records.load(tmp_path / "found", "char_lstm_31s")
    [entry] = series["seeds"]
    summary = json.loads((run_dir / "summary.json").read_text())
    assert entry["figures"]["best_val_loss"] == pytest.approx(summary["best_val_loss"])
    assert entry["steps"] == 3000 and entry["threads"] == 1
    assert settings.changes(settings.of_run(run_dir), series["settings"]) == []


@pytest.mark.slow(seconds=40)
def test_a_real_run_is_parked_and_gives_the_same_elsewhere(tmp_path, monkeypatch):
    overrides = (*TINY, "trainer.max_steps=3000", "trainer.eval_every=200", "trainer.checkpoint_every=200")
    tiny = Row("tiny", "", overrides, (LOSS,), minutes=60, seeds=(1,))
    monkeypatch.setattr(reproductions, "ROWS", {"tiny": tiny})
    for folder in ("straight", "first", "second"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "straight")
    assert reproduce.main(["tiny", "--out", "found"]) == 0
    monkeypatch.chdir(tmp_path / "first")

    def interrupt():
        while not any(Path().rglob("checkpoints/best.json")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    assert reproduce.main(["tiny", "--resume", "--out", "../found"]) == 130
    kept = [path for path in (tmp_path / "found").rglob("*") if path.suffix in (".json", ".yaml")]
    assert kept and not any(str(tmp_path) in path.read_text() for path in kept)
    monkeypatch.chdir(tmp_path / "second")
    assert reproduce.main(["tiny", "--resume", "--out", "../found"]) == 0
    steps = [r["step"] for path in Path().rglob("metrics.jsonl") for r in read_records(path) if r["kind"] == "train"]
    assert min(steps) > 200 and max(steps) == 3000
    [expected], [series] = (
        records.load(tmp_path / "straight" / "found", "tiny"),
        records.load(tmp_path / "found", "tiny"),
    )
    straight, [entry] = expected["seeds"][0], series["seeds"]
    assert entry["figures"] == straight["figures"] and entry["best_step"] == straight["best_step"]
    assert len(entry["segments"]) == 1 and [path.name for path in (tmp_path / "found").iterdir()] == ["tiny.json"]


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
