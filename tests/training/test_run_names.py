"""The runs under a folder, and the run that a part of a name stands for."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from prnn.errors import UserError
from prnn.training import run_dir, run_names

A, B = "char_lm/2026-11-23_21-40-05", "char_lm/2026-11-23_21-40-05-2"
C, SWEEP = "adding/2026-11-24_09-00-00", "multirun/2026-11-25_10-00-00"


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``runs/`` of the current folder: three runs, a sweep of two jobs, an odd name, an empty run, what is none."""
    monkeypatch.chdir(tmp_path)
    for name in (A, B, C, f"{SWEEP}/0", f"{SWEEP}/1", "mine [*]"):
        path = Path("runs", name)
        path.mkdir(parents=True)
        (path / "metrics.jsonl").touch()
    (Path("runs") / "char_lm/2026-11-26_11-00-00").mkdir()  # of a job that was killed at once
    (Path("runs") / "char_lm/notes/deep").mkdir(parents=True)
    (Path("runs") / "latest").symlink_to(A)
    return Path("runs")


def test_all_runs_are_found_once(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "disk/2026-11-27_12-00-00").mkdir(parents=True)
    (runs / "elsewhere").symlink_to(tmp_path / "disk")  # leads out of runs/, unlike latest
    assert set(run_names.discover(runs)) == {
        A, B, C, f"{SWEEP}/0", f"{SWEEP}/1", "mine [*]", "char_lm/2026-11-26_11-00-00", "elsewhere/2026-11-27_12-00-00",
    }  # fmt: skip
    assert run_names.discover(tmp_path / "nowhere") == {}
    (tmp_path / "disk/2026-11-27_12-00-00/metrics.jsonl").touch()
    (runs / "latest").unlink()
    (runs / "latest").symlink_to(tmp_path / "disk/2026-11-27_12-00-00")  # of a run with run_dir=
    assert "latest" not in run_names.discover(runs) and run_dir.find("latest").parent == tmp_path / "disk"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("latest", A), ("runs/latest", A), (A, A), (f"runs/{A}", A), (f"runs/{A}/", A), ("2026-11-23_21-40-05", A),
        (B, B), ("40-05-2", B), ("adding", C), ("11-24", C), (f"{SWEEP}/1", f"{SWEEP}/1"), ("00-00/0", f"{SWEEP}/0"),
        ("[*]", "mine [*]"), ("runs/adding/2026", C), ("11-26_", "char_lm/2026-11-26_11-00-00"),
    ],
)  # fmt: skip
def test_a_name_or_a_part_of_it_stands_for_one_run(runs: Path, name: str, found: str) -> None:
    assert run_dir.find(name) == (runs / found).resolve()


@pytest.mark.parametrize("name", ["/adding", "../adding", "ADDING", "2027", "20*", "notes/", "char_lm/notes", ""])
def test_another_name_stands_for_none(runs: Path, name: str) -> None:
    assert run_names.matching(name, runs) is None
    if name:
        with pytest.raises(UserError, match=r"there is no run '.*': give .*, a part of its name, or latest\.$"):
            run_dir.find(name)


def test_an_existing_path_wins(runs: Path, tmp_path: Path) -> None:
    Path("adding").mkdir()
    assert run_dir.find("adding") == tmp_path / "adding"
    assert run_dir.short_name(runs / C, Path.cwd()) == C
    Path(C).mkdir(parents=True)
    assert run_dir.short_name(runs / C, Path.cwd()) == f"runs/{C}"


def test_several_are_refused_with_their_ages_the_newest_first(runs: Path) -> None:
    for number, name in enumerate((C, A, B, f"{SWEEP}/1", f"{SWEEP}/0")):
        os.utime(runs / name / "metrics.jsonl", (time.time() - 7300 * number - 1,) * 2)
    with pytest.raises(UserError) as caught:
        run_dir.find("11-2")
    assert str(caught.value).startswith("'11-2' stands for 6 runs, ")
    assert f"{C} (1 s ago), {A} (2 h ago), {B} (4 h ago), {SWEEP}/1 (6 h ago) and 1 more: give more" in str(
        caught.value
    )


def test_a_folder_of_runs_is_one_where_several_are_meant(runs: Path) -> None:
    assert run_dir.find(SWEEP, folders=True) == (runs / SWEEP).resolve()
    assert run_dir.find("char_lm", folders=True) == (runs / "char_lm").resolve()
    with pytest.raises(UserError, match="stands for 3 runs"):
        run_dir.find("char_lm")


def test_ages() -> None:
    assert [run_names.age(seconds) for seconds in (-5, 59.9, 60, 7199, 86400)] == ["0 s", "59 s", "1 min", "1 h", "1 d"]
    assert sorted(["10", "2", "b", "a"], key=run_names.natural) == ["a", "b", "2", "10"]


def test_a_list_of_names_has_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a,b").mkdir()
    assert run_dir.split("a,b") == ["a,b"] and run_dir.split("c, d") == ["c", "d"]
    assert len(run_dir.split(",".join(["2026-11-23_21-40-05"] * 20))) == 20  # longer than a name may be
    for names in ("", ",", "a,,b", "a,"):
        with pytest.raises(UserError, match="has an empty name: give a run"):
            run_dir.split(names)


def test_a_whole_name_wins_over_the_end_of_another(tmp_path: Path) -> None:
    for name in ("a/2026", "backup/a/2026"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "metrics.jsonl").touch()
    assert run_names.matching("a/2026", tmp_path) == tmp_path / "a/2026"


def test_notes_that_never_end_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / ".hydra/overrides.yaml"
    path.parent.mkdir()
    for make in (lambda: os.mkfifo(path), lambda: path.write_text("a: &a [1]\nb: [*a, *a]\n")):
        make()
        with pytest.raises(UserError, match="overrides.yaml"):
            run_dir.overrides(tmp_path)
        path.unlink()
