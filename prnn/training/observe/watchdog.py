"""A heartbeat for tools that watch a job from outside, and a report of the stacks when progress stops.

Each process has a watchdog, so that the reports of all ranks lie side by side and show which rank waits for which:

    RUN/heartbeat/rank_N.json   step, phase, time of the last movement, host, pid; written at most once a second
    RUN/hang/rank_N.txt         the stacks of all threads, once for each hang

It watches; it ends nothing. A lost process ends the job by the timeout of a collective.
"""

from __future__ import annotations

import errno
import faulthandler
import json
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
from prnn.training.observe.activity import Activity

HEARTBEAT, HANG = "heartbeat", "hang"
BEAT_SECONDS = 1.0
UNWATCHED = ("sample", "test")  # rank 0 alone, inside the task, however long; the others meet it every second
_log = logging.getLogger(__name__)


def patience(cfg: TrainConfig, processes: int) -> float | None:
    """Seconds without movement that are a hang; among processes, before a collective gives up and all is over."""
    seconds = cfg.trainer.hang_seconds
    return seconds if seconds is None or processes == 1 else min(seconds, cfg.distributed.timeout_seconds / 2)


def forget_others(run_dir: Path, processes: int) -> None:
    """Remove the heartbeats of an earlier job with more processes, which will not beat again."""
    for path in (run_dir / HEARTBEAT).glob("rank_*.json"):
        if path.stem.removeprefix("rank_") not in map(str, range(processes)):
            with suppress(OSError):
                path.unlink()


class Watchdog:
    """A context with a thread in it; the thread is joined at the end. ``hang_seconds`` None: the heartbeat alone."""

    def __init__(self, activity: Activity, run_dir: Path, rank: int, hang_seconds: float | None) -> None:
        self._activity, self._rank, self._hang_seconds = activity, rank, hang_seconds
        self._directory: disk.Held | None = None
        with suppress(OSError):  # of a process that does not share rank 0's disk
            self._directory = disk.Held(run_dir)
        self._heartbeat = run_dir / HEARTBEAT / f"rank_{rank}.json"
        self._report = run_dir / HANG / f"rank_{rank}.txt"
        self._stop = threading.Event()
        self._watching: Background[None] | None = None
        self._written: tuple[float, str] | None = None
        self._reported: float | None = None  # the movement after which there was none: a hang is reported once
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
        except Exception as failure:  # it watches; training does not end for it
            _log.warning("heartbeat and hang reports ended early (%s: %s)", type(failure).__name__, failure)
        if kind is not None:
            self._activity.enter("failed")
        self._beat()

    def _watch(self) -> None:
        interval = BEAT_SECONDS if self._hang_seconds is None else min(BEAT_SECONDS, self._hang_seconds / 4)
        last = -BEAT_SECONDS
        while True:
            if time.monotonic() - last >= BEAT_SECONDS:
                last = time.monotonic()
                self._beat()
            self._look()
            if self._stop.wait(interval):
                return

    def _beat(self) -> None:
        """Write the heartbeat, if there was any movement; whole or not at all, but on a full disk."""
        activity = self._activity
        now = (activity.moved, activity.phase)
        if now == self._written:
            return
        beat = {
            "rank": self._rank,
            "step": activity.step,
            "phase": activity.phase,
            "time": round(time.time() - (time.monotonic() - activity.moved), 3),
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        temporary = self._heartbeat.with_name(f".{self._heartbeat.name}.tmp")
        content = json.dumps(beat).encode()
        try:
            if self._directory is not None and self._directory.lost() is not None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))  # not into what has taken its place
            self._heartbeat.parent.mkdir(exist_ok=True)
            temporary.write_bytes(content + b"\n")
            temporary.replace(self._heartbeat)
        except OSError as error:
            self._warn(self._heartbeat, error)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                return
            try:  # in place, which a full disk still takes
                with self._heartbeat.open("r+b", buffering=0) as file:
                    file.write(content.ljust(self._heartbeat.stat().st_size - 1) + b"\n")
            except OSError:
                return
        self._written = now

    def _look(self) -> None:
        """Report a hang, if there is one that has not been reported."""
        moved, phase = self._activity.moved, self._activity.phase
        still = time.monotonic() - moved
        if self._hang_seconds is None or still < self._hang_seconds or phase in UNWATCHED or moved == self._reported:
            return
        self._reported = moved
        where = f"step {self._activity.step}, {phase}"
        threads = "".join(f"  0x{thread.ident or 0:016x} {thread.name}\n" for thread in threading.enumerate())
        try:
            self._report.parent.mkdir(exist_ok=True)
            with self._report.open("a", encoding="utf-8", errors="replace") as file:
                file.write(
                    f"{time.strftime('%Y-%m-%d %H:%M:%S')} rank {self._rank} on {socket.gethostname()}, process "
                    f"{os.getpid()}: nothing has moved for {still:.1f} s at {where}\nthreads:\n{threads}\n"
                )
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
                file.write("\n")
        except OSError as error:
            self._warn(self._report, error)
        # os.write: the training thread may hang in the middle of a buffered write to sys.stderr.
        line = f"prnn [rank {self._rank}]: nothing has moved for {still:.0f} s at {where}; stacks: {self._report}\n"
        with suppress(OSError):  # nobody reads it
            os.write(2, visible(line).encode())

    def _warn(self, path: Path, error: OSError) -> None:
        if not self._warned:
            _log.warning("%s cannot be written (%s); training goes on", path, error.strerror)
        self._warned = True
