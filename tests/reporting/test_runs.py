"""Run directories as they are found: whole, half, damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from prnn.errors import UserError
from prnn.reporting.runs import flat, labels, load, load_all
from prnn.training.observe.record_reader import number
from tests.reporting.conftest import Write, trained_at


def test_a_torn_line_and_lines_that_are_no_records_are_left_out(write: Write) -> None:
    path = write("a", [trained_at(1), 7, None, {"kind": "train"}, {"step": 2}, trained_at(2)], torn='{"kind": "tr')
    assert [record["step"] for record in load(path).records] == [1, 2]


def test_notes_that_are_missing_or_damaged_are_empty(write: Write) -> None:
    for run in (load(write("a", [])), load(write("b", [], summary=[1], config="][ not: yaml"))):
        assert (run.summary, run.config, run.count, run.last_step) == ({}, {}, 0, 0)
        assert not run.finished


def test_validations_get_their_tokens_and_seconds_from_the_training_records(write: Write) -> None:
    vals = [{"kind": "val", "step": step, "loss": 2.0, "figures": {"f.x": 1.0}} for step in (0, 5, 20, 22)]
    run = load(write("a", [trained_at(10), trained_at(20, tokens=1500), *vals]))
    assert run.points("val", "loss", "tokens") == [(0, 2.0), (500, 2.0), (1500, 2.0), (1600, 2.0)]
    assert run.points("val", "figures.f.x", "seconds") == [(0, 1.0), (2.5, 1.0), (10, 1.0), (11, 1.0)]
    assert load(write("b", vals)).points("val", "loss", "tokens") == []  # no training record tells


def test_what_is_no_number_is_a_gap(write: Write) -> None:
    run = load(write("a", [trained_at(1, loss=None), trained_at(2, loss=float("nan")), trained_at(3, loss="x")]))
    assert run.points("train", "loss") == [(1, None), (2, None), (3, None)]
    assert [number(each) for each in (True, 10**400, float("-inf"), 3)] == [None, None, None, 3]


def test_a_resumed_run_has_outgrown_its_summary(write: Write) -> None:
    assert load(write("a", [trained_at(9)], summary={"steps": 9})).finished
    assert not load(write("b", [trained_at(10)], summary={"steps": 9})).finished


def test_a_folder_of_runs_stands_for_all_of_them_and_no_run_comes_twice(write: Write, tmp_path: Path) -> None:
    for job in (10, 2, 0):
        write(f"sweep/{job}", [trained_at(1)])
    runs = load_all([str(tmp_path / "sweep"), str(tmp_path / "sweep" / "2")])
    assert [run.path.name for run in runs] == ["0", "2", "10"]


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
