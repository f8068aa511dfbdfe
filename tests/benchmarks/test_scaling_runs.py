"""The trainings of the scaling study: how they are started, checked and compared. They are stand-ins, and not timed."""

from __future__ import annotations

import json
import stat
import subprocess
import sys

import pytest

from benchmarks.scaling import __main__ as scaling
from benchmarks.scaling import allreduce
from benchmarks.scaling import runs as scaling_runs
from prnn.data import mnist
from prnn.errors import UserError

FAKE = """#!{python}
import json, pathlib, sys
words = dict(w.split("=", 1) for w in sys.argv[1:] if "=" in w)
if "trainer.batch_size" in words and words["trainer.batch_size"] == "13":
    print("prnn: trainer.batch_size=13 is odd.\\nChildFailedError")
    sys.exit(1)
run = pathlib.Path(words["run_dir"])
run.mkdir()
n = int(words["--nproc-per-node"])
records = [dict(kind="train", step=s, loss=2.0 + LOSS * (n > 1), grad_norm=1.0, tokens_per_second=100.0 * n ** 0.5 + s,
    step_ms=5.0, exposed_comm=0.1 if n > 1 else None) for s in range(1, 6)]
records.insert(2, dict(kind="ranks", step=2))
(run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\\n" for r in records))
(run / "summary.json").write_text(json.dumps(dict(parameters=7)))
(run / "words.json").write_text(json.dumps(sys.argv[1:]))
"""


@pytest.fixture
def runner(tmp_path, monkeypatch):
    """A runner whose python is a script that writes records; ``.differ(x)`` makes several processes' losses differ."""
    monkeypatch.delenv("PRNN_DATA", raising=False)
    fake, python = tmp_path / "python", sys.executable

    def differ(by: float) -> None:
        fake.write_text(FAKE.replace("{python}", python).replace("LOSS", repr(by)))
        fake.chmod(fake.stat().st_mode | stat.S_IXUSR)

    differ(0.0)
    monkeypatch.setattr(scaling_runs.sys, "executable", str(fake))
    (tmp_path / "runs").mkdir()
    found = scaling_runs.Runner(tmp_path / "runs")
    found.differ = differ
    return found


def test_without_mnist_there_are_images_all_the_same(runner, monkeypatch):
    assert runner.images == "noise in place of MNIST" and runner.corpus == "shakespeare"
    monkeypatch.setenv("PRNN_DATA", str(runner.folder / "data"))
    train, test = mnist.load("scaling", "file:///nowhere")
    assert (len(train), len(test), train.side) == (scaling_runs.IMAGES, scaling_runs.TEST_IMAGES, 28)
    assert set(train.labels) == set(range(10))


def test_with_mnist_they_are_its_first(data_dir, tmp_path, monkeypatch):
    expected = mnist.load("mnist", "file:///nowhere")[0]
    assert scaling_runs.write_images(tmp_path) == "the first images of MNIST"
    monkeypatch.setenv("PRNN_DATA", str(tmp_path))
    found = mnist.load("scaling", "file:///nowhere")[0]
    assert (found.pixels == expected.pixels[: len(found)]).all() and (
        found.labels == expected.labels[: len(found)]
    ).all()


def test_a_training_is_what_a_user_would_start(runner):
    (records,) = runner.train("char_lm", 2, 50, ["trainer.max_steps=5"])
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5]  # of the kind train alone
    (run,) = (path for path in runner.folder.iterdir() if (path / "words.json").exists())
    words = json.loads((run / "words.json").read_text())
    assert words[:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    assert {"prnn.train", "task=char_lm", "data=shakespeare", "trainer.threads=1"} <= set(words)
    assert runner.parameters == {"char_lm": 7}
    assert len(runner.train("irnn_mnist", 1, 32, [], copies=2)) == 2


def test_a_training_that_fails_says_why(runner):
    with pytest.raises(UserError, match=r"char_lm by 1 processes .* status 1: prnn: trainer.batch_size=13 is odd"):
        runner.train("char_lm", 1, 13, [])


def test_other_losses_are_not_timed(runner):
    assert scaling_runs.check(runner, "char_lm", [2, 3]) == {"loss": 0.0, "grad_norm": 0.0}
    runner.differ(1e-5)
    assert scaling_runs.check(runner, "char_lm", [2])["loss"] == pytest.approx(5e-6)
    runner.differ(1e-3)
    with pytest.raises(UserError, match="nothing was timed"):
        scaling_runs.check(runner, "char_lm", [2])


def test_the_last_windows_count_and_side_by_side_add_up(runner):
    found = scaling_runs.measure(runner, "char_lm", [4], repeats=2, per_run=2)
    assert list(found) == ["1", "weak 4", "strong 4", "side by side 4"]
    rates = {name: [row["tokens_per_second"] for row in rows] for name, rows in found.items()}
    assert rates["1"] == [104.0, 105.0] * 2 and rates["side by side 4"] == [416.0, 420.0] * 2
    assert rates["weak 4"] == [204.0, 205.0] * 2
    rows = {row["scaling"]: row for row in scaling_runs.efficiency(found, [4])}
    assert rows["side by side"]["efficiency"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    assert rows["weak"]["efficiency"] == {"median": 0.489, "min": 0.488, "max": 0.49}
    assert rows["weak"]["exposed_ms"] == 0.5 and rows["1"]["exposed_ms"] is None and rows["1"]["windows"] == 4


def test_efficiency_is_judged_window_by_window():
    def rows(*rates):
        return [{"tokens_per_second": r, "step_ms": 1.0, "exposed_comm": None} for r in rates]

    # The machine is half as quick in the second window: for both, so that it does not show.
    found = {"1": rows(100, 50), "weak 2": rows(180, 90), "strong 2": rows(100, 50), "side by side 2": rows(200, 100)}
    weak, strong, beside = (row["efficiency"] for row in scaling_runs.efficiency(found, [2])[1:])
    assert weak == {"median": 0.9, "min": 0.9, "max": 0.9}
    assert (strong["median"], beside["median"]) == (0.5, 1.0)


def test_the_whole_study_is_a_record(runner, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scaling_runs, "Runner", lambda folder: runner)
    found = [
        {"processes": n, "bytes": s, "milliseconds": {"median": 0.1 + s / 1e6}, "oversubscribed": False}
        for n in scaling.AMONG for s in allreduce.SIZES
    ]  # fmt: skip
    monkeypatch.setattr(allreduce, "measure", lambda n: [row for row in found if row["processes"] == n])
    options = scaling.parse(["--processes", "1,2", "--tasks", "char_lm", "--repeats", "4", "--windows", "2"])
    record = scaling.measured(options)
    (task,) = record["tasks"]
    assert task["gradient_bytes"] == 28 and task["met"] is False  # the stand-in's rate grows with the square root
    assert [row["processes"] for row in task["projection"]][-1] == 1024 and len(record["points"]) == len(found)
    assert "char_lm     weak          2 processes: efficiency 0.69" in capsys.readouterr().out


@pytest.mark.slow
def test_all_reduces_of_two_processes_are_right_and_in_order():
    rows = allreduce.measure(2, [1024, 4096])
    assert [(row["processes"], row["bytes"]) for row in rows] == [(2, 1024), (2, 4096)]
    assert all(0 < row["milliseconds"]["min"] <= row["milliseconds"]["median"] for row in rows)


def test_an_all_reduce_that_fails_says_why(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nRuntimeError: no route\n")
    monkeypatch.setattr(allreduce.subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(UserError, match="among 3 processes failed: RuntimeError: no route"):
        allreduce.measure(3, [1024])
