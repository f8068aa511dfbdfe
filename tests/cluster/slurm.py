"""A Slurm cluster of one node, from Debian's packages, for as long as a test takes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")

# auth/none and cred/none need no munged; cred_expire is also how long Slurm lets a requeued job wait (at least 5 s).
CONF = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
NodeName=localhost NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=300
PartitionName=high Nodes=ALL PriorityTier=2
"""


def missing() -> str | None:
    """Why there can be no cluster here; None if there can."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    absent = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if absent:
        return f"needs Debian's slurmctld, slurmd and slurm-client ({', '.join(absent)} not found)"
    return None if os.geteuid() == 0 else "slurmd needs root"


class Slurm:
    """The cluster: ``env`` is what its commands, and whatever is to be run on it, need."""

    def __init__(self, root: Path, env: dict[str, str]) -> None:
        self.root = root
        self.env = {**env, "SLURM_CONF": str(root / "slurm.conf"), "PATH": f"{env['PATH']}:/usr/sbin"}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        ports = []
        for _ in range(2):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                ports.append(probe.getsockname()[1])
        for name in ("state", "spool"):
            (self.root / name).mkdir()
        (self.root / "slurm.conf").write_text(CONF.format(ports=ports, root=self.root))
        for command in (["slurmctld", "-D", "-c"], ["slurmd", "-D", "-N", "localhost"]):
            with (self.root / f"{command[0]}.out").open("wb") as out:
                daemon = subprocess.Popen(command, env=self.env, cwd=self.root, stdout=out, stderr=out)
            self._daemons.append(daemon)
        self.wait_for(lambda: "idle" in self.call("sinfo", "-h", "-o", "%T", check=False), "a node", 60)

    def call(self, *command: str, check: bool = True, cwd: Path | None = None) -> str:
        """Standard output of one of Slurm's commands, which wait long for a controller that is not there."""
        try:
            done = subprocess.run(
                command, env=self.env, cwd=cwd, capture_output=True, text=True, timeout=30 if check else 3
            )
        except subprocess.TimeoutExpired:
            if check:
                raise
            return ""
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def show(self, job: str) -> dict[str, str]:
        """What ``scontrol show job`` says of a job (an array's task: ``ID_TASK``)."""
        words = self.call("scontrol", "show", "job", "--oneliner", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, happened: Callable[[], object], what: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not happened():
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {seconds:.0f} s for {what}\n{self.logs()}")
            time.sleep(0.1)

    def logs(self) -> str:
        """The ends of all logs, for the message of a failed test."""
        patterns = ("slurmctld.log", "slurmd.log", "slurm-*", "launcher.out", "sweep/.submitit/*/*log.*")
        files = [path for pattern in patterns for path in sorted(self.root.glob(pattern))]
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in files)

    def stop(self) -> None:
        """End the daemons and whatever they started, known by ``SLURM_CONF``."""
        for daemon in self._daemons:
            daemon.terminate()
        mark = f"SLURM_CONF={self.env['SLURM_CONF']}".encode()
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):  # gone by now
                if mark in path.read_bytes().split(b"\0"):
                    os.kill(int(path.parent.name), signal.SIGKILL)
        for daemon in self._daemons:
            daemon.wait(10)


@contextmanager
def cluster(root: Path, env: dict[str, str]) -> Iterator[Slurm]:
    """A running cluster, whose files lie in ``root``; everything is ended on the way out."""
    slurm = Slurm(root, env)
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.stop()
