"""The state of a run, from its lock and rank 0's heartbeat. Nothing else decides it; docs/observability.md lists them.

Rank 0 holds the lock as long as its process lives, and says goodbye in the last write of its heartbeat. A process that
is gone without one was killed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prnn.errors import UserError
from prnn.training import disk, run_dir
from prnn.training.observe.record_reader import number, read_object
from prnn.training.run_files import BEAT, CHECKPOINTS, HANG, HEARTBEAT, LOCK, METRICS, SUMMARY
from prnn.training.run_names import age

UNWATCHED = ("sample", "test")  # rank 0 alone runs task code of any length; the other ranks poll it every second
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"  # the last phases
STATES = ("running", "stalled", "stopped", "done", "failed", "killed", "unknown", "empty")
STALLED_SECONDS = 300.0  # without progress; trainer.hang_seconds may be less, and there is a hang report then
# Of another host, whose processes are not seen: the age of its last heartbeat after which it has been killed.
_FOREIGN_SECONDS, _FOREIGN_UNWATCHED_SECONDS = 3600.0, 86400.0
_NAMES = {FINISHED: "done", STOPPED: "stopped", FAILED: "failed"}
_MOST_REASON = 200


@dataclass(frozen=True)
class State:
    """``name`` is one of ``STATES``; ``detail`` says why, or is empty."""

    name: str
    detail: str = ""

    @property
    def active(self) -> bool:
        """Whether a process may be writing to the run."""
        return self.name in ("running", "stalled")

    def __str__(self) -> str:
        return f"{self.name} ({self.detail})" if self.detail else self.name


def read(path: Path, now: float | None = None) -> State:
    """The state of the run in ``path`` at the time ``now``, in seconds since 1970."""
    now = time.time() if now is None else now
    last, locked = heartbeat(path), run_dir.locked(path)
    if locked or _lives(last, locked, now):
        return _active(path, last, now)
    if last:
        name = _NAMES.get(last["phase"])
        return State(name, last["reason"]) if name else State("killed", f"during {last['phase']}")
    summary = read_object(path / SUMMARY)  # of an older version, or copied without the heartbeat
    if summary:
        return State("done", str(summary.get("stopped_by") or ""))
    written = any(_holds_something(path / name) for name in (METRICS, CHECKPOINTS))
    return State("unknown", "no heartbeat") if written else State("empty")


def heartbeat(path: Path) -> dict[str, Any]:
    """The last heartbeat of rank 0, with all its fields; empty if there is none, or it is damaged."""
    found = read_object(path / BEAT)
    texts = {name: found.get(name, "") for name in ("phase", "host", "reason")}
    numbers = {name: number(found.get(name)) for name in ("time", "step", "pid")}
    if not all(isinstance(each, str) for each in texts.values()) or None in numbers.values():
        return {}
    return {**texts, **numbers}


def _lives(last: dict[str, Any], locked: bool | None, now: float) -> bool:
    """Whether the process of a heartbeat seems to live, where the lock is not held, or not known to be."""
    if not last or last["phase"] in _NAMES:
        return False
    if last["host"] != socket.gethostname():  # whose locks may not be seen here
        return now - last["time"] < (_FOREIGN_UNWATCHED_SECONDS if last["phase"] in UNWATCHED else _FOREIGN_SECONDS)
    if locked is False:
        return False
    try:
        ticks = int(Path(f"/proc/{int(last['pid'])}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return False
    started = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")
    return started <= last["time"] + 1  # later: another process with the same number


def _active(path: Path, last: dict[str, Any], now: float) -> State:
    started = _modified(path / LOCK)
    ended = last.get("phase") in _NAMES
    if not last or last["time"] < started - (0 if ended else 1):  # of the job before
        return State("running", "starting")
    if ended:
        return State("running", "ending")
    idle = now - last["time"]
    reported = _modified(path / HANG / "rank_0.txt") > last["time"]
    if last["phase"] not in UNWATCHED and (reported or idle >= STALLED_SECONDS):
        return State("stalled", f"no progress for {age(idle)} during {last['phase']}")
    return State("running")


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _holds_something(path: Path) -> bool:
    try:
        return any(path.iterdir()) if path.is_dir() else path.stat().st_size > 0
    except OSError:
        return False


def beat(rank: int, step: int, phase: str, moved: float, reason: str = "") -> bytes:
    """The content of a heartbeat file; ``moved`` is the time of the last progress, in seconds since 1970."""
    content = {
        "rank": rank, "step": step, "phase": phase, "time": round(moved, 3), "host": socket.gethostname(),
        "pid": os.getpid(), **({"reason": reason} if reason else {}),
    }  # fmt: skip
    return json.dumps(content).encode()


def ended_by(error: BaseException) -> tuple[str, str]:
    """The last phase, and its reason, of a job that ``error`` has ended."""
    if isinstance(error, KeyboardInterrupt):
        return STOPPED, f"{signal.SIGINT.name} twice, without a checkpoint"
    text = " ".join(str(error).split())
    reason = text.rstrip(".") if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
    return FAILED, reason if len(reason) <= _MOST_REASON else f"{reason[: _MOST_REASON - 3]}..."


def note_failure(path: Path, error: BaseException) -> None:
    """Let the run in ``path`` be one that failed before its first heartbeat."""
    phase, reason = ended_by(error)
    with suppress(OSError):
        (path / HEARTBEAT).mkdir(exist_ok=True)
        disk.replace(path / BEAT, beat(0, 0, phase, time.time(), reason) + b"\n")
