"""Sharded checkpoints: the same bits as the other format's, written in the background, and never a damaged one read."""

import errno
import hashlib
import io
import json
import signal
import threading

import pytest
import torch
import torch.distributed.checkpoint as dcp

from prnn.errors import UserError
from prnn.training import checkpoint
from prnn.training.checkpoint import sharded
from prnn.training.checkpoint.directory import checksum
from prnn.training.distributed import World
from tests.training.test_loop import assert_same_bits, train

SETTINGS = {"dropout": 0.3, "checkpoint_format": "sharded"}
FILES = ["shard-00001-model-00001-of-00001.safetensors", "rank_00000.pt", checkpoint.STATE, checkpoint.MANIFEST]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("straight")
    train(run_dir, **SETTINGS)
    return run_dir


def begun(run_dir, step, value, then=lambda path: None):
    """A writer that has begun to write a checkpoint of one tensor, and the tensor."""
    writer = sharded.Writer(World(), 10.0)
    tensor = torch.full((4,), float(value))
    own = {"optimizer": {}}
    common = {"step": step, "optimizer": {"state": {}}}, {"config": {}, "task": {}, "processes": 1}
    writer.save(run_dir, step, {"model.w": tensor}, own, common, then)
    return writer, tensor


def make(run_dir, step, value=None):
    begun(run_dir, step, step if value is None else value)[0].wait()
    return checkpoint.listing(run_dir)[-1]


@pytest.mark.parametrize("number", [None, signal.SIGTERM])
def test_it_resumes_to_the_bit_as_the_other_format_does(straight, tmp_path, number):
    stop = {"max_steps": 10} if number is None else {"signal_at": 9, "signal": int(number)}
    train(tmp_path / "cut", **SETTINGS, **stop)
    assert checkpoint.read(tmp_path / "cut").step == 10
    train(tmp_path / "cut", resume=True, **SETTINGS)
    assert sorted(path.name for path in checkpoint.listing(tmp_path / "cut")[-1].iterdir()) == sorted(FILES)
    records = (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    kept = [line for line in records if '"step": 10' not in line or '"sample"' not in line]
    (tmp_path / "cut" / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    assert_same_bits(straight, tmp_path / "cut")
    train(tmp_path / "file", **{**SETTINGS, "checkpoint_format": "file"})
    assert_same_bits(straight, tmp_path / "file")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "empty"])
def test_a_damaged_file_is_told_and_the_last_good_checkpoint_used(tmp_path, caplog, name, damage):
    make(tmp_path, 5)
    victim = make(tmp_path, 10) / name
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes({"truncated": content[:-9], "flipped": content, "empty": b""}[damage])
    loaded = checkpoint.read(tmp_path)
    assert (loaded.step, loaded.model_state["w"].tolist()) == (5, [5.0] * 4)
    [message] = [record.message for record in caplog.records if record.name.startswith("prnn")]
    assert name in message and "using step_00000005" in message


@pytest.mark.parametrize("name", [checkpoint.STATE, "rank_00000.pt"])
def test_code_is_not_run_even_where_the_checksums_are_right(tmp_path, name):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    make(tmp_path, 5)
    path = make(tmp_path, 10)
    buffer = io.BytesIO()
    torch.save({"evil": Evil()}, buffer)
    forge(path, name, buffer.getvalue())
    assert checkpoint.read(tmp_path).step == 5
    assert not (tmp_path / "owned").exists()


def forge(path, name, content):
    (path / name).write_bytes(content)
    manifest = json.loads((path / checkpoint.MANIFEST).read_text())
    manifest.pop("checksum")
    manifest["sha256"][name] = hashlib.sha256(content).hexdigest()
    (path / checkpoint.MANIFEST).write_text(json.dumps({**manifest, "checksum": checksum(manifest)}))


def test_a_manifest_that_points_elsewhere_is_damaged(tmp_path):
    path = make(tmp_path, 5)
    (tmp_path / "elsewhere").write_bytes(b"")
    forge(path, "../../elsewhere", b"")
    with pytest.raises(checkpoint.Damaged, match="names a file outside the checkpoint"):
        checkpoint.open_checkpoint(path)


def test_what_is_written_is_what_was_there_when_the_save_began(tmp_path, monkeypatch):
    go, save = threading.Event(), dcp.save
    monkeypatch.setattr(dcp, "save", lambda *args, **kwargs: (go.wait(20), save(*args, **kwargs)))
    finished = []
    writer, tensor = begun(tmp_path, 5, 1.0, finished.append)
    tensor.fill_(2.0)  # the next step
    assert not checkpoint.listing(tmp_path)
    assert not finished
    go.set()
    writer.wait()
    assert checkpoint.read(tmp_path).model_state["w"].tolist() == [1.0] * 4
    assert finished == checkpoint.listing(tmp_path)


def failing(monkeypatch, *steps):
    save = dcp.save

    def full(tensors, storage_writer, **kwargs):
        if any(f"{step:08d}" in str(storage_writer.path) for step in steps):
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(tensors, storage_writer=storage_writer, **kwargs)

    monkeypatch.setattr(dcp, "save", full)


def test_a_full_disk_costs_a_periodic_checkpoint_and_fails_at_the_end(tmp_path, monkeypatch, capsys):
    failing(monkeypatch, 10, 20)
    with pytest.raises(UserError, match="step 20 could not be written .*No space left"):
        train(tmp_path, eval_every=0, **SETTINGS)
    assert "checkpoint of step 10 could not be written" in capsys.readouterr().out
    left = sorted(path.name for path in checkpoint.folder(tmp_path).glob("*step*"))
    assert left == ["step_00000005", "step_00000015"]


def test_a_full_disk_at_the_first_checkpoint_stops(tmp_path, monkeypatch):
    failing(monkeypatch, 5)
    with pytest.raises(UserError, match="step 5 could not be written"):
        train(tmp_path, eval_every=0, **SETTINGS)
    assert not list(checkpoint.folder(tmp_path).iterdir())


def test_a_share_that_is_on_another_machines_disk_is_missed(tmp_path):
    with pytest.raises(checkpoint.SaveFailed, match="a file system that all processes share"):
        sharded._check_shared(tmp_path, {"shard-00002.safetensors": ("0", 10)})


def test_shares_are_about_equal_and_everything_is_in_one():
    sizes = {"a": 10, "b": 7, "c": 4, "d": 3, "e": 1}
    lists = sharded.share_out(sizes, 3)
    assert sorted(name for each in lists for name in each) == sorted(sizes)
    assert [sum(sizes[name] for name in each) for each in lists] == [10, 8, 7]
    assert sharded.share_out({"a": 1}, 3) == [["a"], [], []]
