"""A few of the moments of ``benchmarks.faults``: disks that are full, read-only or lost."""

import contextlib

import pytest

from benchmarks import faults
from prnn.errors import UserError
from prnn.training import loop
from prnn.training.observe import record_writer


@pytest.fixture
def folder(tmp_path, monkeypatch):
    if (reason := faults.cannot_run(tmp_path)) is not None:
        pytest.skip(reason)
    # Steps that take longer: on a busy machine a moment passes before it is noticed.
    monkeypatch.setattr(faults, "SETTINGS", [*faults.SETTINGS, "task.bptt=64"])
    return tmp_path


# The first one after a checkpoint is written and an older one removed, with steps to spare on a busy machine.
MOMENTS = [
    faults.Moment("tmpfs", "full", "sharded", 1, "training", 26, 0.0, 60_000),
    faults.Moment("tmpfs", "full for a while", "file", 2, "saving", 12, 0.5, 4096),
    faults.Moment("ext4", "read-only", "file", 1, "saving", 15, 0.5, 0),
    faults.Moment("ext4", "crash", "sharded", 2, "training", 25, 0.5, 0),
]


@pytest.mark.slow(seconds=60)
def test_no_fault_of_a_disk_is_silent_or_final(folder):
    result = faults.measure(MOMENTS, folder, print)
    assert result["faults"] == []
    assert result["resumed"] == len(MOMENTS)
    statuses = [each["status"] for each in result["each"]]
    assert statuses[0] == statuses[2] == 2 and statuses[3] == -9


@pytest.mark.slow(seconds=20)
def test_planted_faults_are_found(folder, monkeypatch):
    save = loop._Trainer._save

    def silent(trainer, final=False):
        with contextlib.suppress(UserError):
            save(trainer, final)

    monkeypatch.setattr(loop._Trainer, "_save", silent)
    assert faults.measure(MOMENTS[:1], folder, print)["faults"] == ["moment 1: status 0 without the last checkpoint"]


@pytest.mark.slow(seconds=20)
def test_a_planted_gap_is_found(folder, monkeypatch):
    monkeypatch.setattr(record_writer.Record, "mark", lambda record: None)  # neither synced nor known to the checkpoint
    found = faults.measure(MOMENTS[3:], folder, print)["faults"]
    assert "moment 1: not the same: metrics.jsonl" in found


def test_moments_are_those_of_the_seed():
    assert faults.draw(20, 1) == faults.draw(20, 1) != faults.draw(20, 2)


def test_what_must_not_stand_in_a_log_is_found():
    assert faults._forbidden("step 1\nTraceback (most recent call last)\n") == ["the log has 'Traceback'"]
    assert not faults._forbidden("prnn: the checkpoint of step 3 could not be written")
