"""The registry of reproductions fits the settings there are, and its page is what the records say."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from benchmarks import report
from benchmarks.reproduce import picture, records, settings
from benchmarks.reproduce.page import PAGE, current, render, shown
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


def test_the_page_is_what_the_records_say() -> None:
    """If not: python -m benchmarks.report benchmarks/results/reproductions --markdown docs/reproductions.md"""
    lines = shown(records.FOLDER)
    assert PAGE.read_text() == render(lines)
    for group in GROUPS:
        drawn = PAGE.with_name(picture.name_of(group)).exists()
        assert drawn == picture.can_be_drawn(group, current(lines, group)), group.title


def test_every_record_is_of_a_row_there_is() -> None:
    assert set(records.names(records.FOLDER)) <= ROWS.keys()


def test_every_figure_is_of_the_settings_its_row_has_today() -> None:
    """If not: python -m benchmarks.reproduce ROW --resume"""
    for line in shown(records.FOLDER):
        assert not line.changes, line.row.name


LOSS = Figure("val_loss", "loss", "lower", 1.5, (Published(1.25, "nanoGPT", "a | transformer"),))
SOLVED = Figure("test.solved", "% solved", "higher", scale=100)
BOUND = ("trainer.max_steps=3",)
ONE = Row("one", "First", BOUND, (LOSS, SOLVED), minutes=7, seeds=(1,))
TWO = Row("two", "Second", BOUND, (LOSS,), minutes=180, differs="the text")
GROUP = Group("Title", "About.", (ONE, TWO))


def series(*losses: float | None, name: str = "one", overrides: Sequence[str] = (), **changed: Any) -> dict[str, Any]:
    def entry(seed: int, loss: float | None) -> dict[str, Any]:
        return {
            "seed": seed, "status": "finished", "figures": {"val_loss": loss, "test.solved": 50.0}, "steps": 1234,
            "seconds": 754.0, "tokens_per_second": 5000, "unit": "images", "threads": 2, "processor": "P1",
            "torch": "2.13", "load": 0.5, "commit": "abc+", "date": "2026-01-02T03:04:05+00:00",
        }  # fmt: skip

    return {
        "name": name, "overrides": list(overrides), "environment": {}, "device": "cpu", "processor": None,
        "restarts": None,
        "settings": settings.resolved([*BOUND, *overrides]),
        "seeds": [entry(i, loss) for i, loss in enumerate(losses, 1)], **changed,
    }  # fmt: skip


@pytest.fixture
def page(tmp_path: Path) -> Callable[..., str]:
    """The page of these series."""

    def written(*found: dict[str, Any], groups: tuple[Group, ...] = (GROUP,)) -> str:
        by_name: dict[str, list[dict[str, Any]]] = {}
        for each in found:
            by_name.setdefault(each["name"], []).append(each)
        for name, recorded in by_name.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(recorded))
        return render(shown(tmp_path, groups), groups)

    return written


def cells(text: str) -> list[list[str]]:
    """The cells of the table below its head."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.replace(r"\|", "/").split("|")[1:-1]] for line in rows[2:]]


def test_rows_that_were_not_run_say_what_they_need(page) -> None:
    text = page()
    first, second, third = cells(text)
    assert first == [
        "`one`: First",
        "loss",
        "1.25 (nanoGPT, a / transformer)",
        "≤ 1.5",
        "not run: needs about 7 minutes of one core",
        *[""] * 5,
    ]
    assert second == ["", "% solved", "none", "", "not run", *[""] * 5]
    assert third[4] == "not run: needs about 3 hours of one core"
    assert "Where and how" not in text and "![" not in text
    assert "- `two`: the text" in text


def test_a_row_that_was_stopped_says_at_which_step(page, tmp_path) -> None:
    def stopped(seed: object, *steps: int, hidden_size: int = 128) -> None:
        run = tmp_path / f"one/seed-{seed}"
        (run / ".hydra").mkdir(parents=True)
        with initialize_config_dir(str(config.CONF), version_base="1.3"):
            cfg = compose("train", [*ONE.overrides, f"model.hidden_size={hidden_size}"])
        OmegaConf.save(cfg, run / ".hydra/config.yaml")
        for step in steps:
            (run / f"checkpoints/step_{step:08}").mkdir(parents=True)

    stopped(10, 7)
    stopped(2, 1234, 5)
    stopped(3)  # before its first checkpoint
    stopped(4, 9, hidden_size=7)  # with settings that the row no longer has
    stopped("2.old", 8)
    first, second, third = cells(page())
    where = "seed 2 at step 1,234, seed 10 at step 7"
    assert first[4] == f"not finished ({where}): needs about 7 minutes of one core"
    assert second[4] == f"not finished ({where})" and third[4].startswith("not run")
    ran = cells(page(series(1.0)))[0]
    assert ran[4] == "**1**" and where in ran[5]


def test_a_row_that_was_run_has_its_figures_and_where_they_are_from(page) -> None:
    text = page(series(1.0))
    first, second, _ = cells(text)
    assert first[4:] == ["**1**", "1 of 1", "1,234", "13 min", "5,000 images", "R1"]
    assert second[4:] == ["**50**", "1", "", "", "", "R1"]
    assert (
        "- R1: `prnn-train trainer.max_steps=3 seed=SEED`, seeds 1; P1; 2 threads; torch 2.13; load 0.5 before; commit "
        "abc+; 2026-01-02"
    ) in text
    assert "- nanoGPT: " in text and "plain torch: " not in text
    assert "![Title: published figures and ours](reproductions_title.svg)" in text


def test_several_seeds_have_a_spread_and_are_judged_one_by_one(page) -> None:
    first, *_ = cells(page(series(1.0, 2.0, None)))
    assert first[4:6] == ["**1.5** ± 0.7071 (1 to 2)", "1 of 3 (2 not among the row's)"]


def test_a_run_with_other_settings_than_todays_is_stale(page, tmp_path) -> None:
    old = series(1.0)
    old["settings"] |= {"model.hidden_size": 96}
    text = page(old)
    assert cells(text)[0][4] == "**1** (stale: model.hidden_size was 96)" and "![" not in text
    assert current(shown(tmp_path, (GROUP,)), GROUP) == {}


def test_a_gpu_and_other_settings_have_lines_of_their_own(page) -> None:
    text = page(series(1.1), series(2.0, device="G"), series(1.3, overrides=["optimizer.lr=1"]), series(1, name="two"))
    assert [(line[0], line[4], line[5], line[-1]) for line in cells(text) if line[1] == "loss"] == [
        ("`one`: First", "**1.1**", "1 of 1", "R1"),
        ("`one`: First", "**2**", "0 of 1", "R2"),
        ("`one` with `optimizer.lr=1`", "**1.3**", "1 of 1", "R3"),
        ("`two`: Second", "**1**", "1 of 1 (2 not run)", "R4"),
    ]
    assert "GPU G" in text


def test_a_trial_with_other_settings_does_not_pass_for_the_row(page) -> None:
    found = cells(page(series(1.0, overrides=["trainer.max_seconds=1"])))
    assert found[0][4].startswith("not run") and found[2][4] == "**1**"


def test_how_many_threads_there_were_is_a_matter_of_the_machine(page) -> None:
    one = series(1.0, overrides=["trainer.threads=1"], environment={"OMP_NUM_THREADS": "1"})
    assert cells(page(one))[0][0] == "`one`: First"


def test_a_goal_that_has_been_moved_is_the_one_judged_by(page) -> None:
    stricter = replace(ONE, figures=(Figure("val_loss", "loss", "lower", 0.5), Figure("new", "x", "lower")))
    first, second = cells(page(series(1.0), groups=(Group("Title", "", (stricter,)),)))
    assert first[3:6] == ["≤ 0.5", "**1**", "0 of 1"] and second[4] == "not recorded"


def test_how_a_figure_was_computed_stands_with_its_run(page) -> None:
    found = series(1.0)
    found["seeds"][0]["signatures"] = {"bleu": "case:lc|tok:13a"}
    assert "2026-01-02; BLEU case:lc|tok:13a" in page(found)


def test_the_report_writes_the_page_and_its_pictures(tmp_path, monkeypatch, capsys) -> None:
    source = tmp_path / "reproductions"
    name = next(iter(ROWS))
    source.mkdir()
    found = series(1.0, name=name, settings=settings.resolved(ROWS[name].overrides))
    found["seeds"][0]["figures"] = {figure.key: 1.0 for figure in ROWS[name].figures}
    (source / f"{name}.json").write_text(json.dumps([found]))
    monkeypatch.setattr("sys.argv", ["report", str(source), "--markdown", str(tmp_path / "page.md")])
    report.main()
    text = (tmp_path / "page.md").read_text()
    assert text == render(shown(source)) and "| R1 |" in text
    [drawn] = tmp_path.glob("*.svg")
    assert f"({drawn.name})" in text and f">{name}<" in drawn.read_text()
    monkeypatch.setattr("sys.argv", ["report", str(source)])
    report.main()
    assert capsys.readouterr().out == text + "\n"


def test_the_picture_shows_every_seed_their_mean_and_what_was_published(tmp_path) -> None:
    found = {"one": series(1.0, 2.0, 1.8)}
    assert {what: len(rows) for what, rows in picture.panels(GROUP, found).items()} == {"loss": 1, "% solved": 1}
    picture.draw(GROUP, found, tmp_path / "a.svg")
    picture.draw(GROUP, found, tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    picture.draw(GROUP, {}, tmp_path / "b.svg")
    assert not (tmp_path / "b.svg").exists()
