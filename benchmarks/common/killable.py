"""A two-process job for fault injection: torchrun's agent, with workers that are forks of it and can be killed.

``python -m benchmarks.common.killable OVERRIDES`` is the agent, without torchrun's command line. Importing torch
dominates a process's startup time; here it is imported once.
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

TIMEOUT_SECONDS = 600.0  # timeout of a restart, for a busy machine


class Host:
    """torchrun's agent and its two processes; every start uses the same command."""

    def __init__(self, run_dir: Path, job: list[str]) -> None:
        self.run_dir, self.folder = run_dir, run_dir.parent
        self._log = run_dir.with_name(f"{run_dir.name}.log").open("a")
        self._command = [sys.executable, "-m", "benchmarks.common.killable", *job, f"run_dir={run_dir}"]
        self.starts = 0
        self.start()

    def start(self) -> None:
        """Start or restart the agent."""
        # As after a requeue by Slurm: the run in run_dir belongs to this job.
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "SLURM_RESTART_COUNT": str(self.starts)}
        self.agent = subprocess.Popen(
            self._command, env={**environment, "OMP_NUM_THREADS": "1"}, cwd=self.folder, stdout=self._log,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.starts += 1

    def workers(self) -> dict[int, int]:
        """The pids of this agent's running processes, by rank."""
        pids = {}
        for rank in (0, 1):
            with contextlib.suppress(OSError, ValueError):  # not started yet
                pid = int((self.folder / f"{rank}.pid").read_text())
                if running(pid) and stat(pid)[1] == str(self.agent.pid):
                    pids[rank] = pid
        return pids

    def kill(self, victim: str, workers: dict[int, int]) -> None:
        """Kill the ``victim``, and wait until all ``workers`` have ended."""
        if victim == "host":
            self.agent.kill()
            self.agent.wait()
        for rank, pid in workers.items():
            if victim in ("both", "host", f"rank {rank}"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not any(running(pid) for pid in workers.values()), "the end of the processes")

    def end(self) -> None:
        """Kill all processes."""
        for pid in self.workers().values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.agent.kill()
        self.agent.wait()
        self._log.close()


def stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; ``OSError`` if there is no such process."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def running(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return stat(pid)[0] not in "ZX"
    except OSError:
        return False


def run_agent(job: list[str]) -> None:
    """torchrun's agent for two processes on this host."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, run_id="resilience", rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=1000, monitor_interval=0.1, start_method="fork",
    )  # fmt: skip
    elastic_launch(config, run_worker)(job)


def run_worker(job: list[str]) -> None:
    """The entry point of a worker process."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):  # do not inherit the agent's handlers
        signal.signal(number, signal.SIG_DFL)
    Path(f"{os.environ['RANK']}.pid").write_text(str(os.getpid()))
    sys.argv = ["prnn-train", *job]
    status = train.main()
    if status:
        sys.exit(status)


def wait_for(happened: Callable[[], Any], what: str, every: float = 0.02) -> None:
    """Poll until ``happened`` returns true; raises ``TimeoutError`` otherwise."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError(f"timed out waiting for {what} after {TIMEOUT_SECONDS:.0f} s")
        time.sleep(every)


if __name__ == "__main__":
    run_agent(sys.argv[1:])
