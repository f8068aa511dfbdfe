"""The registry of reproductions fits the settings there are, and its page is what the records say."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from benchmarks import report
from benchmarks.reproduce import page as reproductions_page
from benchmarks.reproduce import records
from benchmarks.reproduce.page import PAGE, render
from benchmarks.reproduce.reproductions import GROUPS, ROWS, SOURCES
from benchmarks.reproduce.rows import Figure, Group, Published, Row
from prnn import config, tasks

SUMMARY = {"val_loss", "best_val_loss", "val", "best_val", "test", "seconds", "steps", "tokens_per_second"}
FIGURES = [(row, figure) for row in ROWS.values() for figure in row.figures]


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_row_is_a_training_that_can_be_run(row: Row) -> None:
    with initialize_config_dir(str(config.CONF), version_base="1.3"):
        cfg = compose("train", [*row.overrides, "seed=1"])
    checked = config.check(cfg, tasks.schemas(cfg.task.name))
    trainer = checked.trainer
    assert any(bound is not None for bound in (trainer.max_steps, trainer.max_epochs, trainer.max_seconds))


def test_rows_have_names_of_their_own_and_figures_that_a_summary_can_have() -> None:
    names = Counter(row.name for group in GROUPS for row in group.rows)
    assert set(names.values()) == {1}
    for row, figure in FIGURES:
        assert figure.key.partition(".")[0] in SUMMARY, row.name
        assert all(each.source in SOURCES for each in figure.published), row.name
        assert all(each.value is not None or each.note for each in figure.published), row.name
    for row in ROWS.values():
        assert row.figures and len({figure.key for figure in row.figures}) == len(row.figures)


def test_a_figure_is_found_scaled_and_judged() -> None:
    figure = Figure("test.solved", "%", "higher", goal=95, scale=100)
    assert figure.of({"test": {"solved": 0.5}}) == 50 and figure.of({"test": {"solved": None}}) is None
    with pytest.raises(KeyError):
        figure.of({"test": {}})
    assert [figure.reached(value) for value in (95.0, 94.9, None)] == [True, False, False]
    loss = Figure("val_loss", "loss", "lower", goal=1)
    assert [loss.reached(value) for value in (1.0, 1.1, None)] == [True, False, False]
    free = Figure("val_loss", "loss", "lower")
    assert [free.reached(value) for value in (9.0, None)] == [True, False]
    row = Row("r", "", (), (loss, figure), "")
    assert row.missed({"val_loss": 0.5, "test.solved": 50}) and not row.missed({"val_loss": 0.5, "test.solved": 100})


def test_the_page_is_what_the_records_say() -> None:
    """If not: python -m benchmarks.report benchmarks/results/reproductions.json --markdown docs/reproductions.md"""
    assert PAGE.read_text() == render(records.load(records.RECORDS))


LOSS = Figure("val_loss", "loss", "lower", 1.5, (Published(1.25, "nanoGPT", "a | transformer"),))
SOLVED = Figure("test.solved", "% solved", "higher", scale=100)
GROUP = Group(
    "Title", "About.", (Row("one", "First", (), (LOSS, SOLVED), "a GPU"), Row("two", "Second", (), (LOSS,), "a day"))
)


def record(**changed: Any) -> dict[str, Any]:
    def mean(value: float) -> dict[str, float | None]:
        return {"mean": value, "min": value, "max": value, "std": None}

    loss = changed.pop("loss", 1.0)
    attempt = {"seed": 1, "status": "finished", "figures": {"val_loss": loss, "test.solved": 50.0}}
    return {
        "name": "one", "date": "2026-01-02T03:04:05+00:00", "commit": "abc+", "command": "python -m x", "overrides": [],
        "environment": {}, "machine": {"processor": "P1", "torch": "2.13", "load": 0.5, "device": "cpu"}, "threads": 2,
        "seeds_asked": 1, "restarts_allowed": 0, "steps": mean(1234), "seconds": mean(754.0), "unit": "images",
        "tokens_per_second": mean(5000),
        "seeds": [{"seed": 1, "status": "finished", "restarts": 0, "attempts": [attempt]}],
        "figures": [{"key": "val_loss", "goal": 1.5, "ours": mean(loss), "seeds": 1, "reached": int(loss <= 1.5)},
                    {"key": "test.solved", "goal": None, "ours": mean(50.0), "seeds": 1, "reached": 1}],
        **changed,
    }  # fmt: skip


def lines(*found: dict[str, Any], groups: tuple[Group, ...] = (GROUP,)) -> list[list[str]]:
    """The cells of the table below its head."""
    rows = [line for line in render(list(found), groups).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.replace(r"\|", "/").split("|")[1:-1]] for line in rows[2:]]


def test_rows_that_were_not_run_say_what_they_need() -> None:
    first, second, third = lines()
    assert first == [
        "`one`: First",
        "loss",
        "1.25 (nanoGPT, a / transformer)",
        "≤ 1.5",
        "not run: needs a GPU",
        *[""] * 5,
    ]
    assert second == ["", "% solved", "none", "", "not run", *[""] * 5]
    assert third[4] == "not run: needs a day"
    assert "Where and how" not in render([], (GROUP,))


def test_a_row_that_was_run_has_its_figures_and_where_they_are_from() -> None:
    first, second, _ = lines(record())
    assert first[4:] == ["**1**", "1 of 1", "1,234", "13 min", "5,000 images", "R1"]
    assert second[4:] == ["**50**", "1", "", "", "", "R1"]
    page = render([record()], (GROUP,))
    assert "- R1: `python -m x`, seeds 1; P1; 2 threads; torch 2.13; load 0.5 before; commit abc+, 2026-01-02" in page
    assert "- nanoGPT: " in page and "plain torch: " not in page


def test_the_latest_of_each_machine_and_setting_is_shown() -> None:
    gpu = {"processor": "P1", "torch": "2.13", "device": "G"}
    found = lines(
        record(loss=1.1),
        record(loss=2.0, machine=gpu),
        record(loss=1.3, overrides=["a=1"], environment={"PRNN_BACKEND": "torch"}),
        record(loss=1.2),
    )
    assert [(line[0], line[4], line[5], line[-1]) for line in found if line[1] == "loss"] == [
        ("`one`: First", "**1.2**", "1 of 1", "R1"),
        ("`one`: First", "**2**", "0 of 1", "R2"),
        ("`one` with `a=1 PRNN_BACKEND=torch`", "**1.3**", "1 of 1", "R3"),
        ("`two`: Second", "not run: needs a day", "", ""),
    ]
    assert "GPU G" in render([record(machine=gpu)], (GROUP,))


def test_a_trial_with_other_settings_does_not_pass_for_the_row() -> None:
    found = lines(record(overrides=["trainer.max_seconds=1"]))
    assert found[0][4] == "not run: needs a GPU" and found[2][4] == "**1**"


def test_how_many_threads_there_were_is_a_matter_of_the_machine() -> None:
    one = record(overrides=["trainer.threads=1"], environment={"OMP_NUM_THREADS": "1"}, threads=1)
    assert [line[0] for line in lines(record(), one) if line[1] == "loss"] == ["`one`: First"] * 2 + ["`two`: Second"]


def test_a_goal_that_has_been_moved_is_the_one_judged_by() -> None:
    stricter = Group(
        "Title", "", (Row("one", "", (), (Figure("val_loss", "loss", "lower", 0.5), Figure("new", "x", "lower")), ""),)
    )
    first, second = lines(record(), groups=(stricter,))
    assert first[3:6] == ["≤ 0.5", "**1**", "0 of 1"] and second[4] == "not recorded"


def test_a_record_whose_row_is_gone_is_named() -> None:
    assert "not rows any more: three." in render([record(name="three")], (GROUP,))


def test_the_report_writes_the_page(tmp_path, monkeypatch) -> None:
    source, page = tmp_path / "r.json", tmp_path / "page.md"
    source.write_text(json.dumps([record(name=next(iter(ROWS)))]))
    monkeypatch.setattr("sys.argv", ["report", str(source), "--markdown", str(page)])
    report.main()
    assert page.read_text() == render(records.load(source)) and "| R1 |" in page.read_text()
    reproductions_page.write(source, tmp_path / "again.md")
    assert (tmp_path / "again.md").read_text() == page.read_text()
