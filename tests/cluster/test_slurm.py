"""Slurm itself, on this machine: our sbatch file, and Hydra's submitit launcher, disturbed and requeued."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster.slurm import Slurm, cluster, missing

ROOT = Path(__file__).resolve().parents[2]
STEPS = 1500  # some seconds, in which to disturb a run
SMALL = [
    "task=adding", "data.length=20", "data.epoch_sequences=2000", "data.val_sequences=40", "model.hidden_size=8",
    f"trainer.max_steps={STEPS}", "trainer.batch_size=4", "trainer.checkpoint_every=50", "trainer.eval_every=0",
    "trainer.log_every=100", "trainer.progress=off", "trainer.device=cpu", "trainer.threads=1",
]  # fmt: skip
REASON = missing()
pytestmark = [pytest.mark.slow(seconds=200), pytest.mark.skipif(REASON is not None, reason=str(REASON))]


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PROCESSES": "2"}
    with cluster(tmp_path, env) as running:
        yield running


def weights(run: Path) -> bytes:
    return (run / "checkpoints" / f"step_{STEPS:08d}" / "model.safetensors").read_bytes()


def wait_for_training(slurm: Slurm, run: Path, known: int = 0) -> None:
    """Wait until the run has a checkpoint of a step after ``known``."""

    def further() -> bool:
        assert "FAILED" not in slurm.call("squeue", "-h", "--array", "--states=all", "-o", "%T"), slurm.logs()
        return newest(run) > known

    slurm.wait_for(further, f"a checkpoint in {run.name}", 600)


def newest(run: Path) -> int:
    return max((int(path.name[5:]) for path in run.glob("checkpoints/step_*") if path.name[5:].isdecimal()), default=0)


def wait_for_state(slurm: Slurm, job: str, state: str, seconds: float = 600) -> None:
    slurm.wait_for(lambda: slurm.show(job)["JobState"] == state, f"{job} {state}", seconds)


def wait_for_restart(slurm: Slurm, job: str, count: int) -> None:
    slurm.wait_for(lambda: slurm.show(job)["Restarts"] == str(count), f"restart {count} of {job}", 300)


def test_an_array_of_two_one_of_them_signalled_preempted_and_requeued(slurm: Slurm) -> None:
    (slurm.root / "sweep.txt").write_text("\"logger.name='a [b] $HOME'\" seed=1\nlogger.tags=[x,'y z'] seed=1\n")
    array = slurm.call(
        "env", "SWEEP=sweep.txt", "sbatch", "--parsable", "--array=1-2", "--gpus-per-node=0", "--cpus-per-task=2",
        "--time=10", str(ROOT / "launchers" / "slurm.sbatch"), *SMALL, cwd=slurm.root,
    )  # fmt: skip
    disturbed, straight = (slurm.root / "runs" / "slurm" / f"{array}_{task}" for task in (1, 2))

    wait_for_training(slurm, disturbed)
    slurm.call("scancel", "--batch", "--signal=USR1", disturbed.name)  # as Slurm does before the time limit
    wait_for_restart(slurm, disturbed.name, 1)
    first = newest(disturbed)
    assert 0 < first < STEPS, slurm.logs()

    wait_for_training(slurm, disturbed, first)
    slurm.call("sbatch", "--partition=high", "--exclusive", "--wrap=true", cwd=slurm.root)  # a real preemption
    wait_for_restart(slurm, disturbed.name, 2)
    assert first < newest(disturbed) < STEPS, slurm.logs()

    for run in (straight, disturbed):
        wait_for_state(slurm, run.name, "COMPLETED")
    assert slurm.show(straight.name)["Restarts"] == "0"
    assert weights(disturbed) == weights(straight)
    names = [yaml.safe_load((run / ".hydra" / "config.yaml").read_text())["logger"] for run in (disturbed, straight)]
    assert names[0]["name"] == "a [b] $HOME" and names[1]["tags"] == ["x", "y z"]
    assert len(list(disturbed.glob("logs/localhost/*/attempt_0/[01]/stdout.log"))) == 6  # 2 processes, 3 starts

    job = slurm.call("sbatch", "--parsable", "--gpus-per-node=0", "--cpus-per-task=2",
                     str(ROOT / "launchers" / "slurm.sbatch"), *SMALL, cwd=slurm.root)  # fmt: skip
    slurm.wait_for(lambda: "localhost" in slurm.call("squeue", "-h", "--steps", "-j", job), "the job's step", 60)
    slurm.call("scancel", job)
    wait_for_state(slurm, job, "CANCELLED", 60)
    assert slurm.show(job)["Restarts"] == "0"


@pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="needs hydra-submitit-launcher")
def test_multirun_with_submitit_one_job_preempted_and_requeued(slurm: Slurm) -> None:
    launcher = [
        "hydra/launcher=submitit_slurm", "hydra.launcher.partition=low", "hydra.launcher.cpus_per_task=2",
        "hydra.launcher.timeout_min=60", "hydra.launcher.signal_delay_s=30",
    ]  # fmt: skip
    command = [sys.executable, "-m", "prnn.train", "--multirun", *launcher, "run_dir=sweep", "logger.name=a,b", *SMALL]
    with (slurm.root / "launcher.out").open("wb") as out:
        launching = subprocess.Popen(command, env=slurm.env, cwd=slurm.root, stdout=out, stderr=out)
    disturbed, straight = (slurm.root / "sweep" / name for name in "01")

    wait_for_training(slurm, disturbed)
    job = slurm.call("squeue", "-h", "--array", "-o", "%F_%K", "--states=RUNNING").split()[0]
    assert job.endswith("_0")
    slurm.call("scancel", "--signal=USR2", job)  # submitit's signal
    wait_for_restart(slurm, job, 1)
    assert 0 < newest(disturbed) < STEPS, slurm.logs()

    assert launching.wait(600) == 0, slurm.logs()
    assert weights(disturbed) == weights(straight)
    for run, name in ((disturbed, "a"), (straight, "b")):
        assert yaml.safe_load((run / ".hydra" / "config.yaml").read_text())["logger"]["name"] == name
