"""Run directories as they are found: whole, half, damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from prnn.errors import UserError
from prnn.reporting import tables
from prnn.reporting.runs import flat, labels, load, load_all
from prnn.training import run_dir
from prnn.training.observe import run_state
from prnn.training.observe.record_reader import number
from tests.reporting.conftest import Write, trained_at


def test_a_torn_line_and_lines_that_are_no_records_are_left_out(write: Write) -> None:
    path = write("a", [trained_at(1), 7, None, {"kind": "train"}, {"step": 2}, trained_at(2)], torn='{"kind": "tr')
    assert [record["step"] for record in load(path).records] == [1, 2]


def test_notes_that_are_missing_or_damaged_are_empty(write: Write) -> None:
    for run in (load(write("a", [])), load(write("b", [], summary=[1], config="][ not: yaml"))):
        assert (run.summary, run.config, run.count, run.last_step) == ({}, {}, 0, 0)
        assert not run.finished


def test_the_training_records_say_where_steps_are_in_tokens_and_seconds(write: Write) -> None:
    vals = [{"kind": "val", "step": step, "loss": 2.0} for step in (0, 5)]
    run = load(write("a", [trained_at(10), trained_at(20, seconds=None), trained_at(20, tokens=1500), *vals]))
    assert run.positions() == {
        "tokens_steps": [0, 10, 20], "tokens": [0, 1000, 1500], "seconds_steps": [0, 10, 20], "seconds": [0, 5, 10],
    }  # fmt: skip
    assert set(map(len, load(write("b", vals)).positions().values())) == {0}  # no training record tells
    found = load(write("c", [trained_at(step) for step in range(1, 2001)])).positions()
    assert len(found["tokens"]) < 310 and found["tokens_steps"][-1] == 2000
    assert found["tokens"] == [100 * step for step in found["tokens_steps"]]


def test_what_is_no_number_is_a_gap(write: Write) -> None:
    run = load(write("a", [trained_at(1, loss=None), trained_at(2, loss=float("nan")), trained_at(3, loss="x")]))
    assert run.points("train", "loss") == [(1, None), (2, None), (3, None)]
    assert [number(each) for each in (True, 10**400, float("-inf"), 3)] == [None, None, None, 3]


def test_a_resumed_run_has_outgrown_its_summary(write: Write) -> None:
    assert load(write("a", [trained_at(9)], summary={"steps": 9})).finished
    assert not load(write("b", [trained_at(10)], summary={"steps": 9})).finished


def test_a_run_has_ended_by_its_state(write: Write) -> None:
    path = write("a", [trained_at(9)])
    lock = run_dir.Lock(path)
    assert not load(path).ended
    lock.release()
    run_state.note_failure(path, UserError("the disk is full."))
    assert load(path).ended and tables.overview(load(path))["state"].text == "failed (the disk is full)"


def test_a_folder_of_runs_stands_for_all_of_them_and_no_run_comes_twice(write: Write, tmp_path: Path) -> None:
    for job in (10, 2, 0):
        write(f"sweep/{job}", [trained_at(1)])
    runs = load_all([str(tmp_path / "sweep"), str(tmp_path / "sweep" / "2")])
    assert [run.path.name for run in runs] == ["0", "2", "10"]


def test_a_run_that_has_recorded_nothing_yet_is_one(write: Write, tmp_path: Path) -> None:
    for job in (0, 1):
        (write(f"sweep/{job}", [], config="seed: 1\n") / "metrics.jsonl").unlink()
    assert [run.count for run in load_all([str(tmp_path / "sweep" / "1"), str(tmp_path / "sweep")])] == [0, 0]


def test_the_unit_of_a_run_without_a_summary_is_that_of_its_task(write: Write) -> None:
    configs = {"task: {name: char_lm}\ndata: {level: word}\n": "words", "task: {name: adding}\n": "sequences",
               "task: {name: theirs}\ndata: {level: word}\n": "tokens", "task: 7\n": "tokens"}  # fmt: skip
    runs = [load(write(str(index), [], config=config)) for index, config in enumerate(configs)]
    assert [run.unit for run in runs] == list(configs.values())


def test_runs_of_the_same_name_get_longer_labels() -> None:
    assert labels([Path("/r/task/a"), Path("/r/task/b")]) == ["task/a", "task/b"]
    assert labels([Path("/r/x/task/a"), Path("/r/y/task/a")]) == ["x/task/a", "y/task/a"]
    assert labels([Path("/a"), Path("/")]) == ["a", ""]


def test_what_is_no_run_is_told_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="not a run directory, nor a folder of some"):
        load_all([str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there is no run yet"):
        load_all(["latest"])


def test_settings_are_flat_and_say_nothing_of_where_the_run_lies(write: Write) -> None:
    run = load(write("a", [], config="model: {cell: gru, extra: {}}\nrun_dir: x\nresume: null\n"))
    assert run.settings() == {"model.cell": "gru", "model.extra": {}}
    assert flat({"a": {"b": {"c": [1]}}}) == {"a.b.c": [1]}
    assert run.overrides == ["model=gru"]
