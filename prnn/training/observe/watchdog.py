"""Watchdog: a heartbeat file for external monitoring, and a stack dump of all threads on a hang.

Each rank reports on itself, so that the reports of all ranks together show which rank waits for which:

    RUN/heartbeat/rank_N.json   step, phase, time of the last progress, host, pid; written at most once a second,
                                and at the end, with its reason
    RUN/hang/rank_N.txt         the stacks of all threads, once per hang

It never stops the job. A lost process ends the job by the timeout of a collective.
"""

from __future__ import annotations

import errno
import faulthandler
import logging
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from prnn.config import TrainConfig
from prnn.terminal import visible
from prnn.training import disk
from prnn.training.background import Background
from prnn.training.observe import run_state
from prnn.training.observe.activity import Activity
from prnn.training.observe.run_state import UNWATCHED
from prnn.training.run_files import HANG, HEARTBEAT

BEAT_SECONDS = 1.0
_log = logging.getLogger(__name__)


def patience(cfg: TrainConfig, processes: int) -> float | None:
    """Seconds without progress that count as a hang; with several processes, before a collective times out."""
    seconds = cfg.trainer.hang_seconds
    return seconds if seconds is None or processes == 1 else min(seconds, cfg.distributed.timeout_seconds / 2)


def forget_others(run_dir: Path, processes: int) -> None:
    """Remove stale heartbeats of an earlier job with more processes."""
    for path in (run_dir / HEARTBEAT).glob("rank_*.json"):
        if path.stem.removeprefix("rank_") not in map(str, range(processes)):
            with suppress(OSError):
                path.unlink()


class Watchdog:
    """A context manager that runs the watchdog thread. ``hang_seconds`` None: heartbeat only."""

    def __init__(self, activity: Activity, run_dir: Path, rank: int, hang_seconds: float | None) -> None:
        self._activity, self._rank, self._hang_seconds = activity, rank, hang_seconds
        self._directory: disk.Held | None = None
        with suppress(OSError):  # a rank that does not share rank 0's file system
            self._directory = disk.Held(run_dir)
        self._heartbeat = run_dir / HEARTBEAT / f"rank_{rank}.json"
        self._report = run_dir / HANG / f"rank_{rank}.txt"
        self._stop = threading.Event()
        self._watching: Background[None] | None = None
        self._written: tuple[float, str] | None = None
        self._reported: float | None = None  # the last progress before the reported hang: one report per hang
        self._warned = False

    def __enter__(self) -> Watchdog:
        self._watching = Background(self._watch, "prnn watchdog")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._watching is not None
        self._stop.set()
        try:
            self._watching.result()
        except Exception as failure:  # a watchdog failure must not end training
            _log.warning("heartbeat and hang reports ended early (%s: %s)", type(failure).__name__, failure)
        if error is not None:
            self._activity.end(*run_state.ended_by(error))
        self._beat()

    def _watch(self) -> None:
        interval = BEAT_SECONDS if self._hang_seconds is None else min(BEAT_SECONDS, self._hang_seconds / 4)
        last = -BEAT_SECONDS
        while True:
            if time.monotonic() - last >= BEAT_SECONDS:
                last = time.monotonic()
                self._beat()
            self._check_hang()
            if self._stop.wait(interval):
                return

    def _beat(self) -> None:
        """Write the heartbeat if there was progress; atomically, except on a full disk."""
        activity = self._activity
        now = (activity.moved, activity.phase)
        if now == self._written:
            return
        moved = time.time() - (time.monotonic() - activity.moved)
        content = run_state.beat(self._rank, activity.step, activity.phase, moved, activity.reason)
        temporary = self._heartbeat.with_name(f".{self._heartbeat.name}.tmp")
        try:
            if self._directory is not None and self._directory.lost() is not None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))  # do not write to its replacement
            self._heartbeat.parent.mkdir(exist_ok=True)
            temporary.write_bytes(content + b"\n")
            temporary.replace(self._heartbeat)
        except OSError as error:
            self._warn(self._heartbeat, error)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                return
            try:  # in place, which still works on a full disk
                with self._heartbeat.open("r+b", buffering=0) as file:
                    file.write(content.ljust(self._heartbeat.stat().st_size - 1) + b"\n")
            except OSError:
                return
        self._written = now

    def _check_hang(self) -> None:
        """Report a hang that has not been reported yet."""
        moved, phase = self._activity.moved, self._activity.phase
        idle = time.monotonic() - moved
        if self._hang_seconds is None or idle < self._hang_seconds or phase in UNWATCHED or moved == self._reported:
            return
        self._reported = moved
        where = f"step {self._activity.step}, {phase}"
        threads = "".join(f"  0x{thread.ident or 0:016x} {thread.name}\n" for thread in threading.enumerate())
        try:
            self._report.parent.mkdir(exist_ok=True)
            with self._report.open("a", encoding="utf-8", errors="replace") as file:
                file.write(
                    f"{time.strftime('%Y-%m-%d %H:%M:%S')} rank {self._rank} on {socket.gethostname()}, process "
                    f"{os.getpid()}: no progress for {idle:.1f} s at {where}\nthreads:\n{threads}\n"
                )
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
                file.write("\n")
        except OSError as error:
            self._warn(self._report, error)
        # os.write: the training thread may hang in the middle of a buffered write to sys.stderr.
        line = f"prnn [rank {self._rank}]: no progress for {idle:.0f} s at {where}; stacks: {self._report}\n"
        with suppress(OSError):  # stderr is closed
            os.write(2, visible(line).encode())

    def _warn(self, path: Path, error: OSError) -> None:
        if not self._warned:
            _log.warning("%s cannot be written (%s); training goes on", path, error.strerror)
        self._warned = True
