"""launchers/: every script parses, every YAML says what its launcher reads, and Slurm's signal ends in a requeue."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

LAUNCHERS = Path(__file__).resolve().parents[1] / "launchers"


@pytest.mark.parametrize("name", ["torchrun.sh", "slurm.sbatch"])
def test_script_parses_and_can_be_run(name: str) -> None:
    subprocess.run(["bash", "-n", LAUNCHERS / name], check=True)
    assert os.access(LAUNCHERS / name, os.X_OK)


def test_every_launcher_is_in_the_readme() -> None:
    readme = (LAUNCHERS / "README.md").read_text()
    assert all(f"`{path.name}`" in readme for path in LAUNCHERS.iterdir() if path.name != "README.md")


def test_kubernetes_job_and_service_fit_each_other() -> None:
    service, job = yaml.safe_load_all((LAUNCHERS / "kubernetes.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    env = {each["name"]: each["value"] for each in container["env"]}
    assert (service["kind"], job["kind"], job["spec"]["completionMode"]) == ("Service", "Job", "Indexed")
    assert service["spec"]["clusterIP"] == "None" and service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["selector"]["job-name"] == job["metadata"]["name"]
    assert int(env["NODES"]) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert int(env["PROCESSES"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
    script = container["args"][0]
    assert f"{job['metadata']['name']}-0.{pod['subdomain']}" in script
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_skypilot_task() -> None:
    task = yaml.safe_load((LAUNCHERS / "skypilot.yaml").read_text())
    assert task["num_nodes"] >= 1 and task["resources"]["accelerators"]
    for step in ("setup", "run"):
        subprocess.run(["bash", "-n"], input=task[step], text=True, check=True)


@pytest.fixture
def fake_tools(tmp_path: Path) -> Path:
    """Stand-ins on the PATH for what a cluster has; each notes its call in ``calls``."""
    tools = {
        "scontrol": 'echo "scontrol $*" >> calls; [[ $1 != show ]] || printf "node0\\nnode1\\n"',
        "srun": 'shift; exec "$@"',
        "torchrun": 'echo "torchrun $*" >> calls; [[ -n ${HOLD-} ]] || exit ${STATUS-0}\n'
        "trap 'sleep 0.2; echo saved >> calls; exit 1' USR1; touch up; while :; do sleep 0.05; done",
        "python3": "echo 0",
    }
    for name, body in tools.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def start(script: str, arguments: list[str], tools: Path, **env: str) -> subprocess.Popen[bytes]:
    path = f"{tools}:{os.environ['PATH']}"
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[0-1]"}
    return subprocess.Popen(
        [LAUNCHERS / script, *arguments], cwd=tools, env={**os.environ, **slurm, **env, "PATH": path}
    )


def calls(tools: Path) -> list[str]:
    return (tools / "calls").read_text().splitlines()


def test_torchrun_on_one_node(fake_tools: Path) -> None:
    assert start("torchrun.sh", ["a=1", "b='x y'"], fake_tools, PROCESSES="3").wait(20) == 0
    (call,) = calls(fake_tools)
    assert "--standalone" in call and "--nproc-per-node=3" in call and call.endswith("-m prnn.train a=1 b='x y'")


def test_torchrun_on_many_nodes(fake_tools: Path) -> None:
    assert start("torchrun.sh", ["a=1"], fake_tools, NODES="4", HEAD="h:29400").wait(20) == 0
    (call,) = calls(fake_tools)
    assert "--nnodes=4" in call and "--rdzv-endpoint=h:29400" in call and "--standalone" not in call
    assert start("torchrun.sh", ["a=1"], fake_tools, NODES="4", HEAD="").wait(20) != 0


@pytest.mark.parametrize("status", [0, 3])
def test_slurm_job_ends_with_the_status_of_training(fake_tools: Path, status: int) -> None:
    assert start("slurm.sbatch", ["a=1"], fake_tools, STATUS=str(status)).wait(20) == status
    assert "--rdzv-endpoint=node0:29400" in calls(fake_tools)[1]
    assert not any("requeue" in call for call in calls(fake_tools))


def test_slurm_job_is_requeued_after_its_checkpoint(fake_tools: Path) -> None:
    job = start("slurm.sbatch", ["a=1"], fake_tools, HOLD="1")
    deadline = time.monotonic() + 20
    while not (fake_tools / "up").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(20) == 0
    assert calls(fake_tools)[-2:] == ["saved", "scontrol requeue 7"]
