"""The records of reproductions: entries of seeds, the settings they were run with, and writes at the same time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.common import files
from benchmarks.reproduce import records, settings
from prnn.errors import UserError


def test_a_failed_run_replaces_nothing_that_was_finished(tmp_path):
    known, other = (settings.resolved([f"trainer.max_steps={steps}"]) for steps in (3, 4))
    series = {"name": "n", "overrides": [], "environment": {}, "device": "cpu", "processor": None, "restarts": None}
    records.add(tmp_path, {**series, "settings": known, "seeds": []}, {"seed": 1, "status": "finished"})
    for now in (known, other):
        records.add(tmp_path, {**series, "settings": now, "seeds": []}, {"seed": 1, "status": "failed"})
        assert [entry["status"] for entry in records.load(tmp_path, "n")[0]["seeds"]] == ["finished"]


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
    series = {
        "name": "n",
        "overrides": [],
        "environment": {},
        "device": "cpu",
        "processor": None,
        "restarts": None,
        "settings": settings.resolved(["trainer.max_steps=3"]),
    }

    def write(worker):
        for i in range(10):
            records.add(tmp_path, series, {"seed": 10 * worker + i, "status": "finished"})

    with ThreadPoolExecutor(4) as pool:  # the lock is on an open file: threads are as good as processes
        list(pool.map(write, range(4)))
    assert [entry["seed"] for entry in records.load(tmp_path, "n")[0]["seeds"]] == list(range(40))
    assert [path.name for path in tmp_path.iterdir()] == ["n.json"]


def test_the_settings_are_those_that_a_result_depends_on():
    plain = settings.resolved(["trainer.max_steps=3"])
    neutral = ["trainer.threads=1", "trainer.log_every=7", "seed=5", "logger.project=x"]
    assert settings.changes(settings.resolved(["trainer.max_steps=3", *neutral]), plain) == []
    other = settings.resolved(["trainer.max_steps=4", "optimizer.betas=[0.9,0.99]", "task.bptt=7"])
    assert settings.changes(other, plain) == [
        "optimizer.betas was [0.9,0.99]", "task.bptt was 7", "trainer.max_steps was 4",
    ]  # fmt: skip


def test_a_setting_that_did_not_exist_counts_as_its_default():
    today = settings.resolved(["trainer.max_steps=3"])
    assert settings.changes({k: v for k, v in today.items() if k != "model.bias_hh"}, today) == []
    without = {k: v for k, v in today.items() if k != "model.hidden_size"}
    changed = settings.resolved(["trainer.max_steps=3", "model.hidden_size=7"])
    assert settings.changes(without, changed) == ["model.hidden_size was not there"]
    assert settings.changes({**today, "model.gone": 1}, today) == ["model.gone was 1"]


def test_records_of_something_else_are_refused(tmp_path):
    (tmp_path / "x.json").write_text('{"name": 1}')
    with pytest.raises(UserError, match="not a list of series of runs"):
        records.load(tmp_path, "x")
    assert records.load(tmp_path, "none") == []
