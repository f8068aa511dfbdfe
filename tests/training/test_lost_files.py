"""Files that go while a run writes to them, or were never on the disk: nothing is lost without a word."""

import errno
import os
import shutil
import threading

import pytest
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from prnn.errors import UserError
from prnn.training import checkpoint, disk
from prnn.training.background import Background
from prnn.training.checkpoint import directory
from prnn.training.checkpoint.sharded import Writer
from prnn.training.distributed import World
from prnn.training.observe import watchdog
from prnn.training.observe.record_reader import read_records
from prnn.training.observe.record_writer import Record, gap
from prnn.training.run_dir import Lock
from prnn.training.run_files import LOCK, METRICS
from prnn.training.step import Stepper
from tests.training.test_loop import assert_same_bits, train

SETTINGS = {"dropout": 0.3, "eval_every": 0}


@pytest.fixture
def before_step(monkeypatch):
    """``before_step(n, action)``: do something once, just before optimizer step n."""

    def plan(number, action):
        run, due = Stepper.run, [action]

        def acting(self, step, *args, **kwargs):
            if step == number and due:
                due.pop()()
            return run(self, step, *args, **kwargs)

        monkeypatch.setattr(Stepper, "run", acting)

    return plan


@pytest.mark.parametrize("form", ["file", "sharded"])
def test_a_deleted_run_directory_ends_training_and_is_not_made_anew(tmp_path, before_step, capsys, form):
    run_dir, away = tmp_path / "run", tmp_path / "away"
    # Out of the way of the heartbeat first, which would write into what is being deleted.
    before_step(7, lambda: (run_dir.rename(away), shutil.rmtree(away)))
    with pytest.raises(UserError, match=r"run is not where it was: it was deleted.*training has stopped"):
        train(run_dir, checkpoint_format=form, **SETTINGS)
    # At the next record, long before a checkpoint.
    assert capsys.readouterr().out.count(f"the run directory {run_dir} is not where it was") == 1
    assert not run_dir.exists()


@pytest.mark.parametrize("form", ["file", "sharded"])
@pytest.mark.parametrize("replaced", [False, True])
def test_a_renamed_run_directory_gets_a_checkpoint_and_the_whole_record(tmp_path, before_step, form, replaced):
    run_dir, moved = tmp_path / "run", tmp_path / "moved"

    def rename():
        run_dir.rename(moved)
        if replaced:  # as by a network file system that comes back empty
            run_dir.mkdir()

    before_step(7, rename)
    with pytest.raises(UserError, match=f"is now {moved}: training has stopped at step 10, with a checkpoint there"):
        train(run_dir, checkpoint_format=form, **SETTINGS)
    assert not run_dir.exists() or not list(run_dir.glob("checkpoints/*"))
    assert [record["step"] for record in read_records(moved / METRICS)] == list(range(1, 11))
    train(moved, resume=True, checkpoint_format=form, **SETTINGS)
    train(tmp_path / "straight", checkpoint_format=form, **SETTINGS)
    assert_same_bits(tmp_path / "straight", moved)


def test_a_run_directory_renamed_at_the_end_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "prnn.training.observe.run_logger.RunLogger.finish", lambda *_: (tmp_path / "run").rename(tmp_path / "moved")
    )
    with pytest.raises(UserError, match="was renamed"):
        train(tmp_path / "run", **SETTINGS)


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_record_that_is_deleted_or_replaced_is_put_back(tmp_path, before_step, capsys, how):
    def remove():
        (tmp_path / METRICS).unlink()
        if how == "replaced":
            (tmp_path / METRICS).write_text("mine\n")

    before_step(7, remove)
    train(tmp_path, **SETTINGS)
    assert [r["step"] for r in read_records(tmp_path / METRICS) if r["kind"] == "train"] == list(range(1, 21))
    assert f"is rewritten: it was {how}" in capsys.readouterr().out
    if how == "replaced":
        assert (tmp_path / f"{METRICS}.other").read_text() == "mine\n"


def test_a_record_that_is_truncated_is_told_and_goes_on(tmp_path, before_step, capsys):
    def cut():
        size = len(b"".join((tmp_path / METRICS).read_bytes().splitlines(keepends=True)[:3]))
        os.truncate(tmp_path / METRICS, size + 5)  # in the middle of a line

    before_step(7, cut)
    train(tmp_path, **SETTINGS)
    assert [r["step"] for r in read_records(tmp_path / METRICS) if r["kind"] == "train"] == [1, 2, 3, *range(7, 21)]
    assert b"\0" not in (tmp_path / METRICS).read_bytes()
    assert capsys.readouterr().out.count("metrics.jsonl was truncated: 3 of its records are gone") == 1
    train(tmp_path, resume=True, max_steps=22, **SETTINGS)
    assert "gap" not in capsys.readouterr().out


def test_a_record_truncated_while_a_line_was_written_in_part_has_whole_lines_alone(tmp_path, monkeypatch):
    record = Record(tmp_path)
    record.write({"kind": "val", "step": 1})
    write = os.pwrite

    def full(handle, content, place):
        if len(content) > 9:
            return write(handle, content[:9], place)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    record.write({"kind": "val", "step": 22})
    monkeypatch.undo()
    os.truncate(tmp_path / METRICS, 0)  # to make space
    record.write({"kind": "val", "step": 3})
    mark = record.mark()
    record.close()
    assert (tmp_path / METRICS).read_text() == '{"kind": "val", "step": 3}\n'
    assert mark["records"] == 1 and gap(tmp_path, mark, 3) is None


def test_a_record_that_was_edited_is_read_as_far_as_it_can_be(tmp_path, capsys):
    train(tmp_path, max_steps=5, **SETTINGS)
    content = (tmp_path / METRICS).read_bytes()
    for edited, told in (
        (content[:-1], ""),  # without the end of its last line
        (content.replace(b"\n", b"\r\n"), "has a gap, or was edited: up to step 5 it holds"),
        (content * 2, "damaged lines of"),  # each record twice
    ):
        (tmp_path / METRICS).write_bytes(edited)
        capsys.readouterr()
        train(tmp_path, resume=True, max_steps=5, **SETTINGS)
        said = capsys.readouterr().out
        assert told in said and ("gap" in said) == ("gap" in told)
        records = [(r["kind"], r["step"]) for r in read_records(tmp_path / METRICS)]
        assert len(records) == len(set(records)) == content.count(b"\n")
        (tmp_path / METRICS).write_bytes(content)


def test_the_record_is_on_the_disk_before_a_checkpoint_that_refers_to_it(tmp_path, monkeypatch):
    """What was synced when: each checkpoint gets its name after an fsync of all records up to its step."""
    synced, named, fsync, place = {}, [], os.fsync, directory._put_in_place

    def noted(handle):
        fsync(handle)
        if (path := tmp_path / METRICS).exists() and os.path.samestat(os.fstat(handle), path.stat()):
            synced["records"] = len(read_records(path))

    def naming(temporary, final):
        named.append((checkpoint.step_of(final), synced.get("records", 0)))
        place(temporary, final)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(directory, "_put_in_place", naming)
    train(tmp_path, **{**SETTINGS, "checkpoint_every": 5})
    assert [step for step, _ in named] == [5, 10, 15, 20, 20]  # before the last validation, and after
    assert all(records >= step for step, records in named)


@pytest.mark.parametrize("damage", ["empty", "missing", "hole", "end", "none"])
def test_a_gap_in_the_record_is_told_at_resume(tmp_path, capsys, damage):
    train(tmp_path, max_steps=10, **SETTINGS)
    path = tmp_path / METRICS
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    if damage == "missing":
        path.unlink()
    elif damage != "none":
        path.write_bytes(
            {
                "empty": b"",
                "hole": b"".join(lines[:3]) + b"\0" * len(lines[3]) + b"".join(lines[4:]),
                "end": b"".join(lines[:-4]),
            }[damage]
        )
    capsys.readouterr()
    train(tmp_path, resume=True, **SETTINGS)
    told = [
        line
        for line in capsys.readouterr().out.splitlines()
        if "has a gap, or was edited: up to step 10 it holds" in line
    ]
    assert len(told) == (damage != "none")
    assert len(told) == (tmp_path / "train.log").read_text().count("has a gap")
    capsys.readouterr()
    train(tmp_path, resume=True, max_steps=22, **SETTINGS)
    assert "has a gap" not in capsys.readouterr().out  # told once: the next checkpoint knows the record as it is


def full(*_, **__):
    raise CheckpointException("write", {0: (OSError(errno.ENOSPC, "No space left on device"), None)})


def test_torchs_own_exception_is_told_where_it_is_no_exception(tmp_path, monkeypatch, capsys):
    """A CheckpointException is a BaseException: it ended the thread, and the wait took the checkpoint for written."""
    save = dcp.save
    monkeypatch.setattr(dcp, "save", lambda tensors, storage_writer, **kwargs: (
        save(tensors, storage_writer=storage_writer, **kwargs) if "00000005" in str(storage_writer.path) else full()
    ))  # fmt: skip
    with pytest.raises(UserError, match=r"step 20 could not be written .*\(No space left on device\)"):
        train(tmp_path, checkpoint_format="sharded", **SETTINGS)
    assert capsys.readouterr().out.count("Training goes on.") == 2
    assert [path.name for path in checkpoint.folder(tmp_path).glob("*step*")] == ["step_00000005"]


def test_a_checkpoint_that_hangs_is_told_where_the_wait_ends():
    writer, go = Writer(World(), 10.0), threading.Event()
    writer._pending = 7, Background(lambda: go.wait(60) and None, "stuck")
    with pytest.raises(UserError, match="step 7 was not written within 0.01 s"):
        writer.wait(0.01)
    go.set()


@pytest.mark.parametrize("error", [SystemExit(3), CheckpointException("x", {}), ValueError("y")])
def test_a_background_function_hands_on_whatever_ends_it(error):
    def fail():
        raise error

    with pytest.raises(type(error)):
        Background(fail, "test").result(10)


def test_a_watchdog_that_ends_early_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(watchdog.Watchdog, "_check_hang", lambda self: 1 / 0)
    train(tmp_path, max_steps=3, **SETTINGS)
    assert "heartbeat and hang reports ended early (ZeroDivisionError" in capsys.readouterr().out


def test_a_lock_is_not_taken_from_the_job_that_has_this_path_now(tmp_path):
    first = Lock(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    second = Lock(tmp_path / "run")
    first.release()
    assert (tmp_path / "run" / LOCK).exists()
    second.release()
    assert not (tmp_path / "run" / LOCK).exists()


def test_directories_and_files_are_synced_with_their_names(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(os.fstat(handle).st_ino), fsync(handle)))
    disk.make_directory(tmp_path / "a" / "b")
    disk.replace(tmp_path / "a" / "b" / "file", b"content")
    for each in (tmp_path, tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "file"):
        assert each.stat().st_ino in synced
