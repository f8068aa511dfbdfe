"""Two hosts, a torchrun on each. One is cut off and brought back: training recovers by itself, and ends with the bits
of a run that nobody disturbed. Or one joins later and dies: every step takes the batch that it would have taken.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from prnn.training import checkpoint
from tests import warm
from tests.cluster.hosts import Host, two_hosts, why_not
from tests.training.test_loop import assert_same_bits, losses

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 12  # of a collective; the processes of two hosts may also start so far apart
JOB = [
    "task=char_lm", "task.bptt=8", "task.sample_length=20", "task.eval_tokens=400", "model.hidden_size=16",
    "model.dropout=0.2", "trainer.batch_size=4", "trainer.threads=1", "trainer.device=cpu", "trainer.log_every=1",
    "trainer.checkpoint_every=20", "trainer.eval_every=200", "trainer.max_steps=600",
    f"distributed.timeout_seconds={TIMEOUT_SECONDS}",
]  # fmt: skip
# Batches that differ, and weights that hardly do: a step's loss tells which batch it was.
ELASTIC = [
    *JOB, "task.bptt=50", "model.hidden_size=64", "model.dropout=0", "optimizer.lr=1e-6", "trainer.eval_every=0",
    "trainer.max_steps=1000000",
]  # fmt: skip
# A lost host is given up after 2 x 3 s without a sign of life; the store is asked for 10 s.
RENDEZVOUS = "keep_alive_interval=2,keep_alive_max_attempt=3,read_timeout=10,join_timeout=120,last_call_timeout=5"
# torchrun itself ends when it cannot reach the others, and is started again, as launchers/torchrun.sh does.
AGAIN = 'for attempt in $(seq 0 20); do "$@" && exit 0; sleep 1; done; exit 1'


# Otherwise torchrun keeps one store for all lives of a job, and a process may read in it where the former life of
# another one listened, and fail: https://github.com/pytorch/pytorch/issues/135712
OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def start(host: Host, head: Host, run_dir: Path, nodes: str, module: str, job: list[str]) -> subprocess.Popen[bytes]:
    conf = f"{RENDEZVOUS},is_host={int(host == head)}"
    torchrun = [
        sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}", "--nproc-per-node=1", "--max-restarts=20",
        "--rdzv-backend=c10d", f"--rdzv-endpoint={head.address}:29400", "--rdzv-id=two", f"--rdzv-conf={conf}",
        f"--local-addr={host.address}", "-m", module, *job,
    ]  # fmt: skip
    with (run_dir.parent / f"{host.address}.log").open("wb") as log:
        return subprocess.Popen(
            host.command("bash", "-c", AGAIN, "again", *torchrun), cwd=run_dir.parent, stdout=log,
            stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, **OWN_STORE, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": host.interface,
                 "PRNN_RUN_DIR": str(run_dir)},
        )  # fmt: skip


def run_undisturbed(run_dir: Path, job: list[str]) -> None:
    """The same job on two processes of this host."""
    commands = [([*job, f"run_dir={run_dir}"], rank) for rank in warm.ranks(2)]
    statuses, output = warm.run("prnn.train", commands, 400, run_dir.parent)
    assert statuses == [0, 0], output


def wait_for(
    happened: Callable[[], object], job: list[subprocess.Popen[bytes]], run_dir: Path, seconds: float = 400
) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline and all(process.poll() is None for process in job), said(run_dir.parent)
        time.sleep(0.01)


def said(folder: Path) -> str:
    """What all jobs said."""
    return "\n".join(log.read_text(errors="replace")[-5000:] for log in folder.glob("*.log"))


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    """torchrun's processes have sessions of their own; they end with their host."""
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.slow(seconds=100)
def test_a_host_cut_off_and_brought_back_costs_no_bit(tmp_path):
    if (missing := why_not()) is not None:
        pytest.skip(f"two hosts: {missing}")
    run_dir = tmp_path / "cut"
    with two_hosts() as hosts:
        job = [start(host, hosts[0], run_dir, "2", "prnn.train", JOB) for host in hosts]
        logs = [tmp_path / f"{host.address}.log" for host in hosts]
        try:
            wait_for(lambda: checkpoint.listing(run_dir), job, run_dir)
            hosts[1].unplug()
            wait_for(
                lambda: all(b"another process of this job was lost" in log.read_bytes() for log in logs), job, run_dir
            )
            assert checkpoint.read(run_dir).step < 600
            hosts[1].plug_in()
            statuses = [process.wait(400) for process in job]
        finally:
            end(job)
    assert statuses == [0, 0], said(tmp_path)
    run_undisturbed(tmp_path / "straight", JOB)
    assert "continuing from" in logs[0].read_text() + logs[1].read_text()
    assert_same_bits(tmp_path / "straight", run_dir)


@pytest.mark.slow(seconds=120)
def test_a_host_that_joins_later_and_one_that_dies_change_no_batch(tmp_path):
    if (missing := why_not()) is not None:
        pytest.skip(f"two hosts: {missing}")
    run_dir, job = tmp_path / "elastic", []
    with two_hosts() as (first, second):
        logs = [tmp_path / f"{host.address}.log" for host in (first, second)]
        try:
            job = [start(first, first, run_dir, "1:2", "tests.cluster.unhurried", ELASTIC)]
            wait_for(lambda: checkpoint.listing(run_dir), job, run_dir)
            job.append(start(second, first, run_dir, "1:2", "tests.cluster.unhurried", ELASTIC))
            wait_for(
                lambda: any(b"written by 1 process, this job has 2" in log.read_bytes() for log in logs), job, run_dir
            )
            together = checkpoint.listing(run_dir)[-1].name
            wait_for(lambda: checkpoint.listing(run_dir)[-1].name > together, job, run_dir)
            second.die()
            wait_for(lambda: b"written by 2 processes, this job has 1" in logs[0].read_bytes(), job[:1], run_dir)
            before = checkpoint.listing(run_dir)[-1].name
            wait_for(lambda: checkpoint.listing(run_dir)[-1].name > before, job[:1], run_dir)
            first.die()
            steps = checkpoint.read(run_dir).step
        finally:
            end(job)
    run_undisturbed(tmp_path / "straight", [*ELASTIC, f"trainer.max_steps={steps}"])
    mine, theirs = dict(losses(run_dir)), dict(losses(tmp_path / "straight"))
    mine = {step: loss for step, loss in mine.items() if step <= steps}
    assert list(mine) == list(range(1, steps + 1))
    assert mine == pytest.approx(theirs, rel=1e-5)
    nextdoor = [step for step in range(1, steps) if mine[step] == pytest.approx(theirs[step + 1], rel=1e-5)]
    assert len(nextdoor) < 0.1 * steps  # another batch has another loss
