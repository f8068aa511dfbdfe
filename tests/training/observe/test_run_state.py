"""The state of a run from its lock and its heartbeat."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from prnn.errors import UserError
from prnn.training import run_dir
from prnn.training.observe import run_state


def beat(path: Path, phase: str, age: float = 1.0, **more: Any) -> None:
    """Write a heartbeat of rank 0, ``age`` seconds old, of this process."""
    (path / "heartbeat").mkdir(parents=True, exist_ok=True)
    content = json.loads(run_state.beat(0, 7, phase, time.time() - age)) | more
    (path / "heartbeat" / "rank_0.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("phase", "reason", "state"),
    [
        ("finished", "max_steps", "done (max_steps)"), ("stopped", "SIGTERM", "stopped (SIGTERM)"),
        ("failed", "the loss is not finite", "failed (the loss is not finite)"),
        ("finished", "", "done"),  # of an older version
    ],
)  # fmt: skip
def test_a_goodbye_is_believed_unless_another_job_has_begun(
    tmp_path: Path, phase: str, reason: str, state: str
) -> None:
    beat(tmp_path, phase, reason=reason)
    assert str(run_state.read(tmp_path)) == state
    lock = run_dir.Lock(tmp_path)
    assert str(run_state.read(tmp_path)) == "running (starting)"
    lock.release()
    assert str(run_state.read(tmp_path)) == state


def test_a_run_with_a_lock_is_running_or_stalled(tmp_path: Path) -> None:
    lock = run_dir.Lock(tmp_path)
    assert str(run_state.read(tmp_path)) == "running (starting)"
    beat(tmp_path, "forward", 100)  # of the job before, which was killed
    assert str(run_state.read(tmp_path)) == "running (starting)"
    os.utime(tmp_path / ".lock", (time.time() - 5000,) * 2)
    assert str(run_state.read(tmp_path)) == "running"
    assert str(run_state.read(tmp_path, time.time() + 900)) == "stalled (no progress for 16 min during forward)"
    (tmp_path / "hang").mkdir()
    (tmp_path / "hang" / "rank_0.txt").touch()
    assert run_state.read(tmp_path).name == "stalled"  # trainer.hang_seconds has decided
    beat(tmp_path, "test", 5000)
    assert str(run_state.read(tmp_path)) == "running"  # however long it takes
    beat(tmp_path, "forward", -5000)
    assert str(run_state.read(tmp_path)) == "running"  # the clock of another machine
    lock.release()


def test_a_process_that_is_gone_without_a_goodbye_was_killed(tmp_path: Path) -> None:
    code = f"from pathlib import Path; from prnn.training import run_dir; l = run_dir.Lock(Path({str(tmp_path)!r})); "
    gone = subprocess.Popen([sys.executable, "-c", f"{code} import os; os.kill(os.getpid(), 9)"])
    gone.wait()
    beat(tmp_path, "backward", pid=os.getpid())  # the number is another process's now: the lock tells
    assert (tmp_path / ".lock").exists() and str(run_state.read(tmp_path)) == "killed (during backward)"
    (tmp_path / ".lock").unlink()
    assert run_state.read(tmp_path).name == "running"  # by its process, where there is no lock
    beat(tmp_path, "backward", age=10**7)
    assert run_state.read(tmp_path).name == "killed"  # the process with that number is younger
    beat(tmp_path, "backward", pid=gone.pid)
    assert run_state.read(tmp_path).name == "killed"


def test_of_another_host_the_age_alone_tells(tmp_path: Path) -> None:
    host = f"not-{socket.gethostname()}"
    beat(tmp_path, "forward", 200, host=host)
    assert run_state.read(tmp_path).name == "running"
    for phase, age, name in (
        ("forward", 400, "stalled"), ("forward", 4000, "killed"), ("test", 4000, "running"), ("test", 10**5, "killed"),
    ):  # fmt: skip
        beat(tmp_path, phase, age, host=host)
        assert run_state.read(tmp_path).name == name, (phase, age)


def test_a_job_that_has_said_goodbye_and_holds_its_lock_is_ending(tmp_path: Path) -> None:
    lock = run_dir.Lock(tmp_path)
    beat(tmp_path, "finished", -5)
    assert str(run_state.read(tmp_path)) == "running (ending)"
    lock.release()
    assert run_state.read(tmp_path).name == "done"


def test_without_a_heartbeat_the_files_tell(tmp_path: Path) -> None:
    assert str(run_state.read(tmp_path)) == "empty"
    assert str(run_state.read(tmp_path / "nowhere")) == "empty"
    (tmp_path / "metrics.jsonl").touch()
    assert str(run_state.read(tmp_path)) == "empty"
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    assert str(run_state.read(tmp_path)) == "unknown (no heartbeat)"
    (tmp_path / "summary.json").write_text('{"stopped_by": "patience"}')
    assert str(run_state.read(tmp_path)) == "done (patience)"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"phase": 3}', '{"phase": "forward", "time": "now"}', "\xff"])
def test_a_damaged_heartbeat_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "heartbeat").mkdir()
    (tmp_path / "heartbeat" / "rank_0.json").write_text(content, encoding="latin-1")
    assert run_state.heartbeat(tmp_path) == {} and run_state.read(tmp_path).name == "empty"


def test_what_ended_a_job_is_a_phase_and_a_reason(tmp_path: Path) -> None:
    assert run_state.ended_by(UserError("no\nspace.")) == ("failed", "no space")
    assert run_state.ended_by(ValueError("x" * 300)) == ("failed", f"ValueError: {'x' * 185}...")
    assert run_state.ended_by(KeyboardInterrupt()) == ("stopped", "SIGINT twice, without a checkpoint")
    run_state.note_failure(tmp_path, UserError("refused."))
    assert str(run_state.read(tmp_path)) == "failed (refused)"
    run_state.note_failure(tmp_path / "nowhere", UserError("refused."))  # no error of its own


def test_a_look_at_the_lock_keeps_no_job_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    run_dir.Lock(tmp_path).release()
    (tmp_path / ".lock").touch()
    assert run_dir.locked(tmp_path) is False
    with (tmp_path / ".lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        monkeypatch.setattr(time, "sleep", lambda seconds: fcntl.flock(looking, fcntl.LOCK_UN))
        lock = run_dir.Lock(tmp_path)
    assert run_dir.locked(tmp_path) is True
    lock.release()
    assert run_dir.locked(tmp_path) is None
