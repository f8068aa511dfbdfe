"""Damage, a full disk and a wrong size never cost a good checkpoint, and are told in one sentence."""

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from prnn.errors import UserError
from prnn.training import checkpoint, disk
from prnn.training.checkpoint import whole


def make(run_dir, step, value=None):
    weights = {"w": torch.full((4,), float(step if value is None else value))}
    return checkpoint.save(run_dir, step, weights, {"step": step, "x": torch.arange(3)}, {"config": {}, "task": {}})


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_round_trip(tmp_path):
    tied = torch.arange(6.0).reshape(2, 3)
    model_state = {"a": tied, "b": tied, "t": tied.T, "half": tied.bfloat16()}
    state = {"optimizer": {"state": {0: {"m": tied}}}, "rng": (3, (1, 2), None), "carried": [None, (tied, tied)]}
    path = checkpoint.save(tmp_path, 7, model_state, state, {"config": {"lr": 0.1}, "task": {"vocabulary": "äb"}})
    loaded = checkpoint.read(tmp_path)
    assert (loaded.path, loaded.step, loaded.manifest["task"]) == (path, 7, {"vocabulary": "äb"})
    for name, tensor in model_state.items():
        assert torch.equal(loaded.model_state[name], tensor)
        assert loaded.model_state[name].dtype == tensor.dtype
    assert torch.equal(loaded.state["optimizer"]["state"][0]["m"], tied)
    assert loaded.state["rng"] == (3, (1, 2), None)
    assert not list(checkpoint.folder(tmp_path).glob(".*"))


def test_every_bit_of_the_manifest_counts(tmp_path):
    path = make(tmp_path, 5) / checkpoint.MANIFEST
    text = path.read_text()
    path.write_text(text.replace('"step": 5', '"step": 4'))
    with pytest.raises(checkpoint.Damaged, match="checksum"):
        checkpoint.open_checkpoint(path.parent)


def test_all_damaged_or_none_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint"):
        checkpoint.read(tmp_path)
    for step in (5, 10):
        (make(tmp_path, step) / checkpoint.WEIGHTS).write_bytes(b"")
    with pytest.raises(UserError, match="every checkpoint in .* is damaged"):
        checkpoint.read(tmp_path)


def test_best_is_read_and_kept_and_replaced_by_the_last_when_damaged(tmp_path):
    for step in (5, 10, 15, 20):
        path = make(tmp_path, step)
        if step == 5:
            checkpoint.mark_best(tmp_path, path, 1.0)
        checkpoint.prune(tmp_path, keep=2)
    assert [p.name for p in checkpoint.listing(tmp_path)] == ["step_00000005", "step_00000015", "step_00000020"]
    assert checkpoint.read(tmp_path, "best").step == 5
    flip(checkpoint.listing(tmp_path)[0] / checkpoint.WEIGHTS, 40)
    assert checkpoint.read(tmp_path, "best").step == 20


@pytest.mark.parametrize("gone", ["record", "directory", "half of the record"])
def test_another_checkpoint_than_the_best_is_not_used_in_silence(tmp_path, caplog, gone):
    for step in (5, 10):
        checkpoint.mark_best(tmp_path, make(tmp_path, step), 1.0 / step)
    make(tmp_path, 15)
    assert checkpoint.read(tmp_path, "best").step == 10
    assert not caplog.messages
    record = checkpoint.folder(tmp_path) / checkpoint.BEST
    if gone == "record":
        record.unlink()
    elif gone == "directory":
        shutil.rmtree(checkpoint.folder(tmp_path) / "step_00000010")
    else:
        record.write_bytes(record.read_bytes()[:9])
    assert checkpoint.read(tmp_path, "best").step == 15
    [message] = caplog.messages
    assert ("step_00000010, is missing" if gone == "directory" else "best.json is missing or") in message
    assert message.endswith("using step_00000015 instead")


@pytest.mark.parametrize("step", [10, 5], ids=["another step", "the same step"])
@pytest.mark.parametrize("failing", ["write", "fsync", "first rename", "second rename"])
def test_a_full_disk_keeps_what_is_there(tmp_path, monkeypatch, failing, step):
    make(tmp_path, 5)
    rename, renamed = Path.rename, []

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    def full_for_new_ones(path, target):  # what is put aside can be renamed
        renamed.append(path.name)
        return full() if path.name.endswith(f"{step:08d}.tmp") else rename(path, target)

    target = {
        "write": (whole, "write_synced", full),
        "fsync": (disk.os, "fsync", full),
        "first rename": (Path, "rename", full),
        "second rename": (Path, "rename", full_for_new_ones),
    }
    with monkeypatch.context() as patch:
        patch.setattr(*target[failing])
        with pytest.raises(checkpoint.SaveFailed, match=f"step {step} .*No space left on device"):
            make(tmp_path, step, value=-1)
    assert [p.name for p in checkpoint.folder(tmp_path).iterdir()] == ["step_00000005"]
    assert checkpoint.read(tmp_path).step == 5
    assert checkpoint.read(tmp_path).model_state["w"][0] == 5
    assert bool(renamed) == (failing == "second rename")


def test_a_run_that_holds_no_checkpoint_is_told_from_one_whose_checkpoints_are_not_there(tmp_path):
    assert checkpoint.holds_none(tmp_path)
    folder = checkpoint.folder(tmp_path)
    folder.symlink_to(tmp_path / "unmounted")
    assert not checkpoint.holds_none(tmp_path)
    folder.unlink()
    folder.mkdir()
    (folder / ".step_00000005.tmp").mkdir()
    assert checkpoint.holds_none(tmp_path)
    (folder / ".step_00000005.old.tmp").mkdir()  # a whole one
    assert not checkpoint.holds_none(tmp_path)


def test_the_same_step_again_replaces_the_checkpoint(tmp_path):
    make(tmp_path, 5)
    leftover = checkpoint.folder(tmp_path) / ".step_00000005.old.tmp"  # of a crash before it was removed
    leftover.mkdir()
    (leftover / checkpoint.WEIGHTS).write_bytes(b"old")
    make(tmp_path, 5, value=6)
    assert [p.name for p in checkpoint.folder(tmp_path).iterdir()] == ["step_00000005"]
    assert checkpoint.read(tmp_path).model_state["w"][0] == 6


def test_a_checkpoint_left_aside_by_a_crash_is_read_and_put_back(tmp_path):
    make(tmp_path, 5)
    path = make(tmp_path, 10)
    checkpoint.mark_best(tmp_path, path, 1.0)
    path.rename(path.with_name(".step_00000010.old.tmp"))
    assert [checkpoint.step_of(p) for p in checkpoint.listing(tmp_path)] == [5, 10]
    assert checkpoint.read(tmp_path).step == checkpoint.read(tmp_path, "best").step == 10
    checkpoint.prune(tmp_path, keep=2)
    assert [p.name for p in checkpoint.listing(tmp_path)] == ["step_00000005", "step_00000010"]
    assert checkpoint.read(tmp_path).path == path


def test_a_crash_while_saving_leaves_rubbish_that_is_not_read_and_is_cleared(tmp_path):
    make(tmp_path, 5)
    leftover = checkpoint.folder(tmp_path) / ".step_00000010.tmp"
    leftover.mkdir()
    (leftover / checkpoint.WEIGHTS).write_bytes(b"half")
    assert checkpoint.read(tmp_path).step == 5
    checkpoint.prune(tmp_path, keep=2)
    assert not leftover.exists()


def test_another_model_size_is_told_by_its_setting(tmp_path):
    old = {"model": {"hidden_size": 128, "cell": "gru"}, "task": {}, "data": {}}
    new = {"model": {"hidden_size": 256, "cell": "gru"}, "task": {}, "data": {}}
    checkpoint.save(tmp_path, 5, nn.Linear(2, 3).state_dict(), {}, {"config": json.loads(json.dumps(old))})
    with pytest.raises(UserError, match=r"model\.hidden_size=128 \(this job asks for 256\)"):
        checkpoint.load_weights(nn.Linear(2, 4), checkpoint.read(tmp_path), new)


def test_damaged_checkpoints_after_a_resume_do_not_pass_for_the_newest(tmp_path):
    for step in (5, 10):
        make(tmp_path, step)
    checkpoint.set_aside(tmp_path, 5)
    assert [p.name for p in checkpoint.listing(tmp_path)] == ["step_00000005"]
    assert (checkpoint.folder(tmp_path) / "damaged_step_00000010").is_dir()
