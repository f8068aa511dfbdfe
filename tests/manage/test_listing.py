"""The key figures of runs, and their order."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from prnn.errors import UserError
from prnn.manage import listing, sweep
from prnn.reporting import runs, tables
from prnn.training.observe import record_reader, run_state
from tests.manage.conftest import Make, checkpoint, trained_at


def entry(path: Path) -> listing.Entry:
    return listing.entry(path, path.name)


def val(step: int, loss: float | None) -> dict:
    return {"kind": "val", "step": step, "loss": loss, "figures": {}}


def test_a_finished_run_is_told_from_its_summary(make: Make) -> None:
    found = {"best_val_loss": 1.5, "tokens_per_second": 123.4, "unit": "words", "seconds": 9.0}
    told = entry(make("t/a", summary=found, best=(5, 1.25)))
    assert (told.loss, told.speed, told.unit, told.steps, told.seconds, told.task) == (
        1.5, 123.4, "words", 10, 9.0, "char_lm"
    )  # fmt: skip
    assert 100 <= told.age < 110 and str(told.state) == "done (max_steps)"


def test_a_resumed_run_has_outgrown_its_summary(make: Make) -> None:
    path = make(
        "t/a",
        "stopped",
        "SIGTERM",
        steps=30,
        best=(25, 1.25),
        summary={"steps": 10, "best_val_loss": 1.5, "unit": "words"},
    )
    told = entry(path)
    assert (told.loss, told.speed, told.steps, told.unit, told.seconds) == (1.25, 200.0, 30, "words", 15.0)


def test_a_stopped_run_has_the_steps_after_its_last_record(make: Make) -> None:
    path = make("t/a", "stopped", "SIGINT", steps=10)
    for phase, reason, steps in (("failed", "", 10), ("stopped", "SIGINT twice, without a checkpoint", 10),
                                 ("stopped", "SIGINT", 16)):  # fmt: skip
        if steps == 16:
            checkpoint(path, 16)
        (path / "heartbeat/rank_0.json").write_bytes(run_state.beat(0, 16, phase, time.time(), reason))
        assert entry(path).steps == steps == tables.overview(runs.load(path))["steps"].value


def test_a_run_without_checkpoints_is_told_from_its_record(make: Make) -> None:
    vals = (val(2, 2.5), val(4, 1.75), val(6, None), {"kind": "sample", "step": 6, "text": '"val"'})
    assert entry(make("t/a", records=vals)).loss == 1.75
    told = entry(make("t/b", steps=0, overrides=("task=adding",)))
    assert (told.loss, told.speed, told.steps, told.task) == (None, None, 0, "adding")


def test_the_unit_of_a_run_without_a_summary_is_its_texts(make: Make) -> None:
    units = [entry(make(f"t/{level}", overrides=(f"data.level={level}",))).unit for level in ("char", "byte", "word")]
    assert units == ["characters", "bytes", "words"]


def test_the_last_record_is_found_from_the_end_of_the_file(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_reader, "_TAIL_BYTES", 64)  # less than a record
    path = make("t/a", steps=0, records=(trained_at(1), trained_at(2), *(val(step, 2.0) for step in range(40))))
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    assert record_reader.last_record(path / "metrics.jsonl", "train")["step"] == 2
    assert record_reader.last_record(path / "metrics.jsonl", "test") == {}
    assert record_reader.last_record(path, "train") == {}


def test_the_size_counts_files_and_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "run/inside").mkdir(parents=True)
    (tmp_path / "big").write_bytes(b"x" * 10_000)
    (tmp_path / "run/a").write_bytes(b"x" * 10)
    (tmp_path / "run/inside/b").write_bytes(b"x" * 5)
    (tmp_path / "run/c").symlink_to("../big")
    (tmp_path / "run/loop").symlink_to(".")
    assert listing.size(tmp_path / "run") == 15 + len("../big") + len(".")
    assert listing.size(tmp_path / "run/loop") == len(".") and listing.size(tmp_path / "nowhere") == 0


def test_what_is_no_file_is_not_waited_for(make: Make) -> None:
    path = make("t/a")
    for name in (".lock", ".hydra/config.yaml", "metrics.jsonl", "summary.json", "heartbeat/rank_0.json"):
        (path / name).unlink(missing_ok=True)
        os.mkfifo(path / name)
    told = entry(path)
    assert (told.task, told.steps, told.loss, told.state.name) == ("–", 0, None, "empty")


def test_runs_are_sorted_and_what_is_not_known_comes_last(make: Make) -> None:
    make("t/a", age=300, steps=5, best=(1, 2.0))
    make("t/b", age=100, steps=0)
    make("t/c", age=200, steps=9, best=(1, 1.0))
    found = listing.entries(Path("runs"))

    def names(by: str, reverse: bool = False) -> str:
        return "".join(each.name[-1] for each in listing.ordered(found, by, reverse))

    assert [names(by) for by in ("age", "loss", "steps", "name", "speed")] == ["bca", "cab", "cab", "abc", "acb"]
    assert names("loss", reverse=True) == "acb"


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder .*/nowhere: give the folder of your runs, as dir=PATH"):
        listing.entries(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file cannot be read .Not a directory.: give the folder of the runs"):
        listing.entries(tmp_path / "file")


def test_a_sweep_shows_what_was_swept_and_marks_the_best(make: Make) -> None:
    for job, (lr, loss) in enumerate(((1e-2, 2.0), (1e-3, 1.5), (1e-1, None))):
        best = None if loss is None else (5, loss)
        state = ("finished", "max_steps") if loss else ("failed", "the loss is not finite")
        make(f"multirun/x/{job}", *state, best=best, overrides=("model=gru", f"optimizer.lr={lr}"))
    Path("runs/multirun/x/2").rename("runs/multirun/x/10")
    head, *rows, last = sweep.summary(Path("runs/multirun/x"))
    assert head.split() == ["job", "overrides", "state", "best", "loss", "steps", "time"]
    assert [row.split() for row in rows] == [
        ["0", "optimizer.lr=0.01", "done", "(max_steps)", "2.0000", "10", "5.0", "s"],
        ["*", "1", "optimizer.lr=0.001", "done", "(max_steps)", "1.5000", "10", "5.0", "s"],
        ["10", "optimizer.lr=0.1", "failed", "(the", "loss", "is", "not", "finite)", "–", "10", "5.0", "s"],
    ]
    assert last == "best: runs/multirun/x/1, validation loss 1.5000"


def test_losses_of_different_tasks_are_not_compared(make: Make) -> None:
    make("multirun/x/0", best=(5, 1.0), overrides=("task=adding",))
    make("multirun/x/1", best=(5, 2.0), overrides=("task=decision",))
    assert not [line for line in sweep.summary(Path("runs/multirun/x")) if "*" in line or "best:" in line]
    assert sweep.summary(Path("runs/multirun/nowhere")) == []
