"""The command prnn-runs."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prnn import runs
from prnn.runs import main
from prnn.training import run_dir
from tests.manage.conftest import Make, make  # noqa: F401  (a fixture)

ROOT = Path(__file__).resolve().parents[1]
A, B = "char_lm/2026-11-23_21-40-05", "adding/2026-11-24_09-00-00"


@pytest.fixture
def two(make: Make) -> Path:  # noqa: F811
    """Two runs: one done, one stopped three hours ago."""
    summary = {"best_val_loss": 1.5, "tokens_per_second": 12345.6, "unit": "characters", "versions": {"torch": "2.10"}}
    text = {"kind": "sample", "step": 10, "text": "To be\x1b[2J"}
    val = {"kind": "val", "step": 10, "loss": 1.5, "figures": {}}
    make(A, checkpoints=(5, 10), best=(5, 1.5), summary=summary, overrides=("model=gru",), records=(text, val))
    make(B, "stopped", "SIGTERM", age=3 * 3600, steps=2000, checkpoints=(7,), overrides=("task=adding",))
    Path("runs/latest").symlink_to(A)
    return Path("runs")


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(list(arguments))
    said = capsys.readouterr()
    return status, said.out, said.err


def test_runs_are_listed_one_to_a_line(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capsys)
    head, first, second = out.splitlines()
    assert (status, err) == (0, "") and head.split()[:3] == ["name", "task", "state"]
    assert first.startswith(f"{A}  char_lm  done (max_steps)") and "1.5000" in first and "12,346 characters/s" in first
    assert second.startswith(f"{B}   adding   stopped (SIGTERM)") and second.endswith("3 h")
    assert "2,000" in second and "200 sequences/s" in second
    assert run_dir.find(first.split()[0]) == (two / A).resolve()  # as the line names it


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["task=adding"], [B]), (["state=done,running"], [A]), (["older=2h"], [B]), (["older=200s", "state=done"], []),
        (["sort=steps"], [B, A]), (["sort=steps", "reverse=true"], [A, B]), (["limit=1"], [A]), (["run=adding"], [B]),
        (["run=latest,adding"], [A, B]), (["run=21-40", "run=runs/adding"], [A, B]),
    ],
)  # fmt: skip
def test_runs_are_chosen_and_sorted(
    two: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], names: list[str]
) -> None:
    status, out, _ = call(capsys, "ls", "format=json", *arguments)
    assert status == 0 and [each["name"] for each in json.loads(out)] == names
    assert [
        row["name"] for row in csv.DictReader(io.StringIO(call(capsys, "ls", "format=csv", *arguments)[1]))
    ] == names


def test_runs_of_another_folder_are_named_so_that_they_are_found(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two.rename("other")
    assert call(capsys, "dir=other")[1].splitlines()[1].startswith(f"other/{A}  ")
    assert "run                    other/" in call(capsys, "show", "dir=other")[1]
    assert call(capsys)[::2] == (2, "prnn: there is no folder runs: give the folder of your runs, as dir=PATH.\n")


def test_all_of_one_run_is_shown(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capsys, "show", "run=latest")
    assert (status, err) == (0, "")
    assert "settings:\nmodel=gru\n" in out and "torch" in out and "To be" in out
    assert "   5  " in out and "ago  best\n" in out and "ago  last\n" in out
    commands = out.partition("commands:\n")[2].splitlines()
    assert commands == [
        f"prnn-train resume={A} trainer.max_steps=20", f"prnn-sample run={A}", f"prnn-report run={A}",
    ]  # fmt: skip
    assert f"prnn-train resume={B}\nprnn-report run={B}\n" in call(capsys, "show", "run=adding")[1]


def test_a_run_that_goes_on_is_shown_with_its_heartbeat(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    beat = two / A / "heartbeat/rank_0.json"
    beat.write_text(json.dumps(json.loads(beat.read_text()) | {"phase": "forward", "time": time.time()}))
    lock = run_dir.Lock(two / A)
    os.utime(two / A / ".lock", (1, 1))
    out = call(capsys, "show")[1]
    lock.release()
    assert "running\n" in out and "step 10, forward, " in out and out.endswith(f"prnn-runs tail run={A}\n")


def test_runs_are_compared_side_by_side(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "compare", "run=adding,latest")
    assert status == 0 and out.splitlines()[0].split() == [B, A]
    figures, _, settings = out.partition("settings that differ:")
    assert "stopped (SIGTERM)" in figures and "2,000" in figures
    assert [line.split() for line in settings.splitlines()[2:]] == [
        ["task.name", "adding", "char_lm"], ["trainer.max_steps", "2000", "10"],
    ]  # fmt: skip


def test_a_log_is_shown_with_the_end(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (two / A / "train.log").write_text("one\ntwo\n")
    assert call(capsys, "tail", "lines=1") == (0, "two\n", f"prnn: {A}: done (max_steps)\n")


def test_nothing_is_removed_unless_somebody_agrees(
    two: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (two / A / "checkpoints/best.json").unlink()
    before = sorted(two.rglob("*"))
    status, out, err = call(capsys, "prune")
    assert status == 2 and A in out and "1 checkpoint" in out and B not in out
    assert err.startswith("prnn: nothing was removed, as nobody can be asked here: yes=true removes 1.")
    for answer, said in (("\n", "nothing was removed"), ("n\n", "nothing was removed"), ("y\n", "freed 1.")):
        terminal = io.StringIO(answer)
        monkeypatch.setattr(terminal, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stdin", terminal)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        if answer == "y\n":
            assert sorted(two.rglob("*")) == before
        status, out, err = call(capsys, "prune")
        assert status == 0 and "[y/N] " in out and said in out.splitlines()[-1]
    assert sorted(set(before) - set(two.rglob("*")))[0] == two / A / "checkpoints/step_00000005"
    assert call(capsys, "prune", "yes=true") == (0, "nothing to remove\n", "")


def test_whole_runs_are_removed_on_request(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "prune", "whole_runs=true", "older=1h", "yes=true")
    assert status == 0 and B in out and A not in out and not (two / "adding").exists() and (two / A).exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["lss"], "'lss' must be one of ls, show, compare, tail, prune; did you mean ls?"),
        (["ls", "latest"], "'latest' is not KEY=VALUE, such as run=latest; --help lists the settings."),
        (["rum=x"], "rum is not a setting of prnn-runs; did you mean run?"),
        (["ls", "keep=2"], "keep is not for prnn-runs ls: it is for prune."),
        (["limit=2", "limit=3"], "limit is given twice: only run may be given more than once."),
        (["task="], "task= is empty: give it a value, or leave it out."),
        (["state=dead"], "state=dead must be one of running, stalled, stopped, done, failed, killed, unknown, empty."),
        (["sort=loss,age"], "sort=loss,age must be one of age, loss, name, size, speed, steps."),
        (["reverse=perhaps"], "reverse=perhaps must be true or false."),
        (["limit=0"], "limit=0 must be an integer of at least 1."),
        (["limit=²"], "limit=² must be an integer or null."),
        (["older=7"], "older=7 must be a number with a unit: s, min, h, d or w, such as 12h or 7d."),
        (["show", "run=latest,adding"], "run=latest,adding are several runs: prnn-runs show takes one."),
        (["compare"], "run must be given: several runs, as run=A,B, or the folder of a sweep."),
        (["compare", "run=latest"], "compare needs several runs: give run=A,B, or the folder of a sweep."),
        (["prune", "whole_runs=true"],
         "whole_runs=true removes all files of runs: choose them with run=, task=, state= or older=."),
        (["prune", "whole_runs=true", "run=latest", "keep=2"], "whole_runs=true keeps no checkpoint: leave keep out."),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_one_sentence(
    two: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert call(capsys, *arguments) == (2, "", f"prnn: {sentence}\n")


def test_help_names_every_setting_and_command(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "show", "--help")
    assert status == 0 and out == runs.help_text() + "\n"
    settings = {each.name for each in dataclasses.fields(runs.Settings)}
    assert {each for keys in runs._OF_VERBS.values() for each in keys} == settings
    assert set(runs._VERBS) == set(runs._OF_VERBS)


def test_as_a_command_without_torch(two: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from prnn.runs import main; sys.exit(main(sys.argv[1:]))"
    for verb in ("ls", "show", "tail", "prune"):
        done = subprocess.run(
            [sys.executable, "-c", code, verb], env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
