"""One training run of a sweep, in a separate process; its state is derived from its run directory.

A run with a ``summary.json`` is finished, one whose log reports a non-finite loss has diverged (and would again), one
with a checkpoint is resumed, and any other starts from scratch.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from benchmarks.common.files import ROOT
from prnn.errors import UserError
from prnn.training import checkpoint
from prnn.training.interrupts import Interrupts
from prnn.training.run_dir import Lock, locked
from prnn.training.run_files import SUMMARY

FINISHED, DIVERGED, FAILED = "finished", "diverged", "failed"
NOT_FINITE = "is not finite at step"  # as prnn.training.step.Diverged says it
MISTAKE = 2  # prnn-train's exit status for what would be refused at every seed
TRAIN = [sys.executable, "-m", "prnn.train"]
SEED = "seed-"  # followed by its number, the name of a run directory
POLL_SECONDS = 0.2  # the longest delay before a signal is forwarded


class Stopped(Exception):
    """The run was stopped, by a signal or the end of the time; it can be resumed from its checkpoint."""


class Busy(UserError):
    """Another job is at the run."""


class Limits:
    """What ends a sweep early: a signal, or the end of its time, after ``seconds``."""

    def __init__(self, interrupts: Interrupts, seconds: float | None = None) -> None:
        self.interrupts = interrupts
        self._end = None if seconds is None else monotonic() + seconds

    def signals(self) -> set[int]:
        """Those received; at the end of the time also SIGTERM."""
        over = self._end is not None and monotonic() >= self._end
        return self.interrupts.received | ({signal.SIGTERM} if over else set())

    def reached(self) -> bool:
        return bool(self.signals())


@dataclass
class Run:
    """How a run ended."""

    seed: int
    status: str  # FINISHED, DIVERGED or FAILED
    summary: dict[str, Any] | None = None  # of a finished run
    message: str | None = None  # of another


@dataclass(frozen=True)
class Place:
    """The run directory of one seed, and its log next to it."""

    folder: Path
    seed: int

    @property
    def run_dir(self) -> Path:
        return self.folder / f"{SEED}{self.seed}"

    @property
    def log(self) -> Path:
        return self.folder / f"seed-{self.seed}.log"

    def outcome(self) -> Run | None:
        """The outcome of an earlier run, if it has ended."""
        try:
            return Run(self.seed, FINISHED, json.loads((self.run_dir / SUMMARY).read_text()))
        except (OSError, ValueError):  # a summary cut short by a full disk is written again from the checkpoint
            pass
        complaint = next((line for line in self.lines() if NOT_FINITE in line), None)
        return Run(self.seed, DIVERGED, message=complaint) if complaint and self.run_dir.exists() else None

    def lines(self) -> list[str]:
        """The error message in the run's log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return [line.strip().removeprefix("prnn: ") for line in text.splitlines() if line.strip()] or [""]

    def clear(self) -> None:
        """Remove the files of a run that failed before its first checkpoint. Raises ``UserError`` if it is running."""
        lock = Lock(self.run_dir)
        shutil.rmtree(self.run_dir, ignore_errors=True)
        self.log.unlink(missing_ok=True)
        lock.release()

    @contextlib.contextmanager
    def claim(self) -> Iterator[None]:
        """Keep other sweeps from the seed, from before its run until it is recorded. Raises ``Busy``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"seed-{self.seed}.lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                taken = bool(locked(self.run_dir))  # by a training whose sweep was killed
            except BlockingIOError:
                taken = True
            except OSError:  # a file system without locks
                taken = False
            if taken:
                raise Busy(f"{self.run_dir} is being written by another job: wait for its end, or stop it.")
            yield

    def arguments(self, overrides: Sequence[str]) -> list[str]:
        """The arguments of ``python -m prnn.train``: to start, or to resume from a checkpoint."""
        if checkpoint.listing(self.run_dir):
            return [f"resume={self.run_dir}"]
        return [*overrides, f"seed={self.seed}", f"run_dir={self.run_dir}"]


def run(place: Place, overrides: Sequence[str], limits: Limits) -> Run:
    """Train until the run ends. Raises ``Stopped``, and ``UserError`` for an error that would affect every seed."""
    arguments = place.arguments(overrides)
    place.folder.mkdir(parents=True, exist_ok=True)
    if not arguments[0].startswith("resume="):
        place.clear()
    status = call([*TRAIN, *arguments], place.log, limits)
    done = place.outcome()
    if done is not None:
        return done
    if limits.reached() or status > 128:
        raise Stopped
    if status == MISTAKE:
        raise UserError(f"seed {place.seed}: {place.lines()[-1]}")
    how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
    return Run(place.seed, FAILED, message=f"{how}: {place.lines()[-1]}")


def call(command: Sequence[str], log: Path, limits: Limits) -> int:
    """Run ``command`` to its end, with its output appended to ``log``; returns its exit status.

    It runs in its own session: Ctrl-C in the terminal reaches only this process, which forwards it once, as it sends
    one at the end of the time.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with log.open("a") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
        forwarded: set[int] = set()
        try:
            while True:
                try:
                    return process.wait(POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    for number in limits.signals() - forwarded:
                        process.send_signal(number)
                        forwarded.add(number)
        finally:  # a second Ctrl-C, or an error here
            if process.poll() is None:
                process.kill()
                process.wait()
