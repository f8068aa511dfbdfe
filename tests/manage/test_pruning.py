"""What prune removes, and what it never does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from prnn.errors import UserError
from prnn.manage import listing, pruning
from prnn.training import run_dir
from prnn.training.checkpoint.directory import checksum, is_intact
from prnn.training.observe import run_state
from tests.manage.conftest import Make


def plan(keep: int = 1, whole_runs: bool = False) -> pruning.Plan:
    return pruning.plan(listing.entries(Path("runs")), keep, whole_runs, Path("runs"))


def carry_out(made: pruning.Plan, keep: int = 1) -> int:
    return sum(pruning.remove(each, keep) for each in made.removals)


def steps(path: Path) -> list[str]:
    return sorted(each.name for each in (path / "checkpoints").iterdir() if each.name != "best.json")


def test_the_best_and_the_last_checkpoint_stay(make: Make) -> None:
    path = make("t/a", checkpoints=(1, 2, 3, 4), best=(2, 1.5))
    (path / "profile").mkdir()
    (path / "profile" / "rank_0_steps_1-2.json.gz").write_bytes(b"x" * 50)
    (path / ".metrics.jsonl.tmp").write_bytes(b"x" * 7)
    (path / "checkpoints" / ".step_00000005.tmp").mkdir()
    (path / "checkpoints" / "damaged_step_00000006").mkdir()
    made = plan()
    [removal] = made.removals
    assert str(removal) == "3 checkpoints, 1 trace, 2 temporary files"
    before = listing.size(path)
    assert carry_out(made) == made.bytes == before - listing.size(path) > 2057
    assert steps(path) == ["step_00000002", "step_00000004"] and not (path / ".lock").exists()
    assert (path / "metrics.jsonl").exists() and plan().removals == []


def test_more_checkpoints_are_kept_on_request(make: Make) -> None:
    path = make("t/a", checkpoints=(1, 2, 3, 4), best=(1, 1.5))
    carry_out(plan(keep=2), keep=2)
    assert steps(path) == ["step_00000001", "step_00000003", "step_00000004"]


def test_the_last_checkpoint_that_stays_is_intact(make: Make) -> None:
    path = make("t/a", checkpoints=(1, 2, 3, 4))
    for step in (3, 4):
        (path / f"checkpoints/step_{step:08d}/state.pt").write_bytes(b"y" * 1000)
    carry_out(plan())
    assert steps(path) == ["step_00000002", "step_00000004"]
    (path / "checkpoints/step_00000002/manifest.json").write_text("{}")
    made = plan()
    assert made.removals == [] and "t/a stay: all of them are damaged" in made.notes[0]


def test_no_checkpoint_goes_where_the_best_is_not_known(make: Make) -> None:
    path = make("t/a", checkpoints=(1, 2, 3))
    (path / "checkpoints/best.json").write_text("{")
    made = plan()
    assert made.removals == [] and "best.json is damaged" in made.notes[0]


@pytest.mark.parametrize("how", ["lock", "heartbeat"])
def test_a_run_that_is_being_written_is_left_alone(make: Make, how: str) -> None:
    path = make("t/a", checkpoints=(1, 2, 3))
    made, whole = plan(), plan(whole_runs=True)
    lock = None
    if how == "lock":
        lock = run_dir.Lock(path)
    else:
        beat = json.loads((path / "heartbeat/rank_0.json").read_text()) | {"phase": "forward", "host": "another"}
        (path / "heartbeat/rank_0.json").write_text(json.dumps(beat))
    for late in (made, whole):  # a job that starts between plan and removal
        with pytest.raises(UserError, match="t/a is left alone: it has changed meanwhile"):
            carry_out(late)
    for now in (plan(), plan(whole_runs=True)):
        assert now.removals == [] and "t/a is left alone: it is running" in now.notes[0]
    assert len(steps(path)) == 3
    if lock is not None:
        lock.release()


def test_a_job_that_begins_between_the_look_and_the_lock_is_seen(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make("t/a", checkpoints=(1, 2, 3))
    made, take = plan(), run_dir.Lock

    def lock(where: Path) -> run_dir.Lock:
        (path / "heartbeat/rank_0.json").write_bytes(run_state.beat(0, 3, "forward", 1.0))
        return take(where)

    monkeypatch.setattr(run_dir, "Lock", lock)
    with pytest.raises(UserError, match="a job has begun to write to it"):
        carry_out(made)
    monkeypatch.setattr(run_dir, "Lock", take)
    assert len(steps(path)) == 3 and run_dir.locked(path) is None


def test_only_what_was_announced_is_removed(make: Make) -> None:
    path = make("t/a", checkpoints=(1, 2, 3))
    made = plan()
    shutil.copytree(path / "checkpoints/step_00000003", path / "checkpoints/step_00000004")
    (path / "checkpoints/best.json").write_text('{"name": "step_00000001", "loss": 1}')
    carry_out(made)
    assert steps(path) == ["step_00000001", "step_00000003", "step_00000004"]


def test_no_link_is_followed_out_of_a_run(make: Make, tmp_path: Path) -> None:
    path, other = make("t/a", checkpoints=(1, 2, 3)), tmp_path / "other"
    shutil.move(path / "checkpoints", other)
    (path / "checkpoints").symlink_to(other)
    (other / "traces").mkdir()
    (other / "traces" / "x.json.gz").touch()
    (path / "profile").symlink_to(other / "traces")
    (other / ".x.tmp").touch()
    (path / ".y.tmp").symlink_to(other / ".x.tmp")
    made = plan()
    assert made.removals == [] and "is a link to another place" in made.notes[0]
    carry_out(plan(whole_runs=True))
    assert not path.exists() and len(list(other.iterdir())) == 5


def test_whole_runs_go_and_latest_is_the_last_of_the_others(make: Make, tmp_path: Path) -> None:
    make("t/2026-11-23_21-40-05")
    make("u/2026-11-25_21-40-05")
    make("multirun/2026-11-24_10-00-00/0")
    Path("runs/multirun/2026-11-24_10-00-00/multirun.yaml").touch()
    Path("runs/latest").symlink_to("u/2026-11-25_21-40-05")
    Path("runs/away").symlink_to(tmp_path / "away")
    shutil.copytree("runs/t/2026-11-23_21-40-05", tmp_path / "away")
    gone = pruning.plan(listing.named(["u/2026", "away"], Path("runs")), 1, True, Path("runs"))
    carry_out(gone)
    pruning.tidy(Path("runs"), gone.removals)
    assert Path("runs/latest").readlink() == Path("multirun/2026-11-24_10-00-00/0") and not Path("runs/u").exists()
    rest = plan(whole_runs=True)
    carry_out(rest)
    pruning.tidy(Path("runs"), rest.removals)
    assert sorted(path.name for path in Path("runs").iterdir()) == ["away", "latest"]  # a link to another place


def test_half_a_checkpoint_is_not_taken_for_a_whole_one(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make("t/a", checkpoints=(1, 2))

    def fail(where: Path) -> None:
        raise OSError(30, "Read-only file system", str(where))

    monkeypatch.setattr(shutil, "rmtree", fail)
    with pytest.raises(UserError, match="cannot be removed .Read-only file system.: remove it by hand"):
        carry_out(plan())
    assert steps(path) == [".step_00000001.tmp", "step_00000002"]


def test_another_program_s_folder_is_left_alone(make: Make, tmp_path: Path) -> None:
    make("t/a")
    for name in ("checkpoints/x", "thesis.tex"):
        path = tmp_path / "runs/thesis" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    made = plan(whole_runs=True)
    assert [each.entry.name for each in made.removals] == ["t/a"]
    assert made.notes == ["thesis is left alone: it may be another program's folder"]


def test_no_whole_run_outside_the_folder_is_removed(make: Make, tmp_path: Path) -> None:
    shutil.move(make("t/a"), tmp_path / "elsewhere")
    Path("runs/t/a").symlink_to(tmp_path / "elsewhere")
    for found in (listing.named(["t/a"], Path("runs")), listing.named([str(tmp_path / "elsewhere")], Path("runs"))):
        made = pruning.plan(found, 1, True, Path("runs"))
        assert made.removals == [] and "outside runs" in made.notes[0]


def test_a_run_that_cannot_be_locked_leaves_the_others(make: Make) -> None:
    path = make("t/a", checkpoints=(1, 2))
    made = plan()
    (path / ".lock").mkdir()
    with pytest.raises(UserError, match="cannot be removed"):
        carry_out(made)


def test_a_checkpoint_without_its_files_is_not_intact(make: Make) -> None:
    path = make("t/a", checkpoints=(1, 2))
    manifest = {"format": 1, "step": 2, "sha256": {}}
    newest = path / "checkpoints/step_00000002"
    (newest / "manifest.json").write_text(json.dumps(manifest | {"checksum": checksum(manifest)}))
    assert not is_intact(newest) and is_intact(path / "checkpoints/step_00000001")
