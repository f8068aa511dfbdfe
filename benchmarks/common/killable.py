"""A job of two processes that can be killed, whole or in part: torchrun's agent, whose processes are forks of itself.

``python -m benchmarks.common.killable OVERRIDES`` is that agent, without the command line of torchrun. Importing torch
takes longer than all the rest of a process's start; here it is done once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common.files import ROOT
from prnn import train

PATIENCE_SECONDS = 600.0  # for the next life of a run, on a machine that is busy with something else


class Host:
    """torchrun's agent and its two processes, started with the same command however often."""

    def __init__(self, run_dir: Path, job: list[str]) -> None:
        self.run_dir, self.folder = run_dir, run_dir.parent
        self._log = run_dir.with_name(f"{run_dir.name}.log").open("a")
        self._command = [sys.executable, "-m", "benchmarks.common.killable", *job, f"run_dir={run_dir}"]
        self.starts = 0
        self.start()

    def start(self) -> None:
        """Start it, or start it again."""
        # A requeue by Slurm: the run in run_dir is this job's own.
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "SLURM_RESTART_COUNT": str(self.starts)}
        self.agent = subprocess.Popen(
            self._command, env={**environment, "OMP_NUM_THREADS": "1"}, cwd=self.folder, stdout=self._log,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.starts += 1

    def workers(self) -> dict[int, int]:
        """The living processes of this agent by their rank."""
        found = {}
        for rank in (0, 1):
            with contextlib.suppress(OSError, ValueError):  # not there yet
                pid = int((self.folder / f"{rank}.pid").read_text())
                if running(pid) and stat(pid)[1] == str(self.agent.pid):
                    found[rank] = pid
        return found

    def strike(self, victim: str, workers: dict[int, int]) -> None:
        """Kill the ``victim``, and wait until this life of the run is over."""
        if victim == "host":
            self.agent.kill()
            self.agent.wait()
        for rank, pid in workers.items():
            if victim in ("both", "host", f"rank {rank}"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not any(running(pid) for pid in workers.values()), "the end of the processes")

    def end(self) -> None:
        """Leave nothing behind, whatever happened."""
        for pid in self.workers().values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.agent.kill()
        self.agent.wait()
        self._log.close()


def stat(pid: int) -> list[str]:
    """State, parent and so on of a process, from /proc; ``OSError`` where there is none."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def running(pid: int) -> bool:
    """Whether the process is there, and not merely waiting for its parent to look at it."""
    try:
        return stat(pid)[0] not in "ZX"
    except OSError:
        return False


def be_agent(job: list[str]) -> None:
    """torchrun's agent for two processes on this host."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, run_id="resilience", rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=1000, monitor_interval=0.1, start_method="fork",
    )  # fmt: skip
    elastic_launch(config, live)(job)


def live(job: list[str]) -> None:
    """One life of one process."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):  # the agent's own handlers are not to be inherited
        signal.signal(number, signal.SIG_DFL)
    Path(f"{os.environ['RANK']}.pid").write_text(str(os.getpid()))
    sys.argv = ["prnn-train", *job]
    status = train.main()
    if status:
        sys.exit(status)


def wait_for(happened: Callable[[], Any], what: str, every: float = 0.02) -> None:
    """Look until it ``happened``; ``TimeoutError`` if it does not."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come within {PATIENCE_SECONDS:.0f} s")
        time.sleep(every)


if __name__ == "__main__":
    be_agent(sys.argv[1:])
