"""One trial: ``prnn-train`` in a process of its own, whose record is followed while it runs."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from prnn import command_line, parent_death
from prnn.training.observe.record_reader import Records, number
from prnn.training.run_files import METRICS, TRIAL_LOG

COMMAND = (sys.executable, "-m", "prnn.train")
STOPPED = "stopped"  # the failure of a trial whose worker was stopped
RUNGS = 10  # a trial is compared with others at each tenth of its length
_POLL_SECONDS, _STOP_SECONDS = 0.25, 60.0


@dataclass
class Result:
    """How a trial ended: the lowest validation loss, and a sentence where it failed."""

    loss: float | None
    pruned_at: float | None = None  # the share of its length after which it was pruned
    failure: str | None = None
    status: int = 0


@dataclass
class Trial:
    """A trial that runs; ``report`` is called with a rung and the lowest validation loss so far, and says whether the
    trial is to be pruned.
    """

    overrides: list[str]
    run_dir: Path
    report: Callable[[int, float], bool]
    stop: threading.Event
    _best: float | None = field(default=None, init=False)
    _rung: int = field(default=0, init=False)
    _share: float = field(default=0.0, init=False)

    def run(self) -> Result:
        """Train to the end, or until it is pruned or stopped."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        log = self.run_dir / TRIAL_LOG
        command = [*COMMAND, *self.overrides, command_line.override("run_dir", str(self.run_dir))]
        with log.open("wb") as output:
            command = parent_death.command(command, signal.SIGTERM)  # a trial of a killed worker saves, and ends
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
            try:
                pruned = self._follow(process)
            finally:
                _end(process)
        self._read()
        if self.stop.is_set() and process.returncode != 0:
            return Result(self._best, failure=STOPPED, status=process.returncode)
        if pruned:
            return Result(self._best, pruned_at=self._share)
        if process.returncode != 0:
            return Result(self._best, failure=_last_line(log), status=process.returncode)
        if self._best is None:
            return Result(None, failure="it has no validation loss: see trainer.eval_every")
        return Result(self._best)

    def _follow(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait for the end of the process; True where it is to be pruned instead."""
        size = -1
        while process.poll() is None and not self.stop.wait(_POLL_SECONDS):
            path = self.run_dir / METRICS
            now = path.stat().st_size if path.exists() else -1
            if now != size:
                size = now
                if self._read():
                    return True
        return False

    def _read(self) -> bool:
        """Take in the record; whether the trial is to be pruned."""
        best, rungs = None, []
        for record in Records(self.run_dir / METRICS):
            if record["kind"] == "train":
                self._share = number(record.get("share")) or 0.0
            elif record["kind"] == "val" and (loss := number(record.get("loss"))) is not None:
                best = loss if best is None else min(best, loss)
                rungs.append((int(self._share * RUNGS), best))
        self._best = best
        for rung, loss in rungs:
            for each in range(self._rung + 1, rung + 1):  # a rung without a validation has the one before
                self._rung = each
                if self.report(each, loss) and each < RUNGS:
                    return True
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let a process that still runs write its checkpoint and end."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last_line(log: Path) -> str:
    """The last line that a trial has printed."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing").removeprefix("prnn: ")
