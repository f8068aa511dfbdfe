"""launchers/: what each starts, that overrides reach it unchanged, and what the scripts do when something ends.

Against stand-ins for torchrun and Slurm's commands; Slurm itself runs in tests/cluster.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

LAUNCHERS = Path(__file__).resolve().parents[1] / "launchers"
# What a shell would split, expand, glob or take away.
OVERRIDES = ["a=1", "b='x  y'", 'c="[1, 2]"', "d=[*,$HOME,`id`]", "e={k:v}", "f=\\$x", "~g", "+h=a=b", "i='it''s'"]


@pytest.mark.parametrize("name", ["torchrun.sh", "slurm.sbatch"])
def test_script_parses_and_can_be_run(name: str) -> None:
    subprocess.run(["bash", "-n", LAUNCHERS / name], check=True)
    assert os.access(LAUNCHERS / name, os.X_OK)


def test_every_launcher_is_in_the_readme() -> None:
    readme = (LAUNCHERS / "README.md").read_text()
    assert all(f"`{path.name}`" in readme for path in LAUNCHERS.iterdir() if path.name != "README.md")


@pytest.fixture
def fake_tools(tmp_path: Path) -> Path:
    """Stand-ins on the PATH for what a cluster has. torchrun notes its words, NUL after each, in ``words``.

    HOLD: torchrun goes on until a signal; FAIL: what it says of itself before it ends with STATUS, the first time.
    """
    tools = {
        "scontrol": 'echo "scontrol $*" >> calls; case "$1 $2" in "show hostnames") printf "node0\\nnode1\\n";; '
        '"show job") echo "JobId=7 JobState=${STATE-RUNNING} PreemptTime=${PREEMPTED-None}";; esac',
        "srun": 'shift; exec "$@"',
        "torchrun": 'printf "%s\\0" "$@" > words; env > environment; echo torchrun >> calls\n'
        'if [[ -n ${FAIL-} && ! -e failed ]]; then touch failed; eval "$FAIL"; fi\n'
        "[[ -n ${HOLD-} ]] || exit ${STATUS-0}\n"
        'for name in TERM USR1; do trap "sleep 0.2; echo saved $name >> calls; exit 1" $name; done\n'
        "touch up; while :; do sleep 0.05; done",
        "python3": "echo 0",
    }
    for name, body in tools.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def start(command: list[Any], tools: Path, **env: str) -> subprocess.Popen[str]:
    path = f"{tools}:{os.environ['PATH']}"
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[0-1]", "SLURMD_NODENAME": "node0"}
    environ = {**os.environ, **slurm, "REJOIN_SECONDS": "0", **env, "PATH": path}
    return subprocess.Popen(command, cwd=tools, env=environ, stderr=subprocess.PIPE, text=True)


def run(command: list[Any], tools: Path, **env: str) -> int:
    return start(command, tools, **env).wait(30)


def words(tools: Path) -> list[str]:
    return (tools / "words").read_text().split("\0")[:-1]


def calls(tools: Path) -> list[str]:
    return (tools / "calls").read_text().splitlines()


def environment(tools: Path) -> list[str]:
    return (tools / "environment").read_text().splitlines()


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_torchrun_on_one_node(fake_tools: Path) -> None:
    assert run([LAUNCHERS / "torchrun.sh", *OVERRIDES], fake_tools, PROCESSES="3", RUN="a b") == 0
    assert {"--rdzv-endpoint=localhost:0", "--nnodes=1", "--nproc-per-node=3"} <= set(words(fake_tools))
    assert words(fake_tools)[-len(OVERRIDES) - 2 :] == ["-m", "prnn.train", *OVERRIDES]
    assert any(word.startswith("--log-dir=a b/logs/") for word in words(fake_tools))
    assert "PRNN_RUN_DIR=a b" in environment(fake_tools)


@pytest.mark.parametrize("nodes", ["4", "2:4"])
def test_torchrun_on_many_nodes(fake_tools: Path, nodes: str) -> None:
    where = {"NODES": nodes, "HEAD": "h:29400", "RUN": "shared"}
    assert run([LAUNCHERS / "torchrun.sh", "a=1"], fake_tools, **where) == 0
    assert {f"--nnodes={nodes}", "--rdzv-endpoint=h:29400", "--max-restarts=3"} <= set(words(fake_tools))
    for name in ("HEAD", "RUN"):  # the nodes could not agree on one
        assert run([LAUNCHERS / "torchrun.sh", "a=1"], fake_tools, **{**where, name: ""}) != 0


@pytest.mark.parametrize(
    ("fail", "status", "times"),
    [
        ("kill -9 $$", 0, 2),  # torchrun itself died
        ("echo lost > $TORCHELASTIC_ERROR_FILE; exit 1", 0, 2),  # the rendezvous was lost
        ("exit 1", 1, 1),  # the training failed more than RESTARTS times: once more will not help
    ],
)
def test_torchrun_is_started_again_when_it_was_torchrun_that_failed(
    fake_tools: Path, fail: str, status: int, times: int
) -> None:
    assert run([LAUNCHERS / "torchrun.sh", "a=1"], fake_tools, FAIL=fail) == status
    assert calls(fake_tools) == ["torchrun"] * times


def test_torchrun_is_started_again_only_so_often(fake_tools: Path) -> None:
    job = start([LAUNCHERS / "torchrun.sh"], fake_tools, REJOINS="2", FAIL="rm failed; kill -9 $$")
    assert job.wait(30) == 1
    assert calls(fake_tools) == ["torchrun"] * 3


def test_what_a_killed_torchrun_leaves_behind_is_ended_first(fake_tools: Path) -> None:
    fail = "setsid sleep 300 & echo $! > orphan; sleep 0.3; kill -9 $$"
    assert run([LAUNCHERS / "torchrun.sh", "a=1"], fake_tools, FAIL=fail) == 0
    orphan = int((fake_tools / "orphan").read_text())
    status = Path(f"/proc/{orphan}/status")
    wait_for(lambda: not status.exists() or "State:\tZ" in status.read_text())


@pytest.mark.parametrize(("number", "saved"), [("TERM", "TERM"), ("USR1", "USR1"), ("INT", "TERM")])
def test_torchrun_waits_for_the_checkpoint_after_a_signal(fake_tools: Path, number: str, saved: str) -> None:
    job = start([LAUNCHERS / "torchrun.sh", "a=1"], fake_tools, HOLD="1")
    wait_for((fake_tools / "up").exists)
    job.send_signal(getattr(signal, f"SIG{number}"))
    assert job.wait(30) == 128 + getattr(signal, f"SIG{number}")
    assert calls(fake_tools) == ["torchrun", f"saved {saved}"]


@pytest.mark.parametrize("status", [0, 3])
def test_slurm_job_ends_with_the_status_of_training(fake_tools: Path, status: int) -> None:
    assert run([LAUNCHERS / "slurm.sbatch", *OVERRIDES], fake_tools, STATUS=str(status)) == status
    assert "--rdzv-endpoint=node0:20007" in words(fake_tools) and words(fake_tools)[-len(OVERRIDES) :] == OVERRIDES
    assert "PRNN_RUN_DIR=runs/slurm/7" in environment(fake_tools)
    assert not any("requeue" in call for call in calls(fake_tools))


@pytest.mark.parametrize("number", ["USR1", "TERM"])
def test_slurm_job_is_requeued_after_its_checkpoint(fake_tools: Path, number: str) -> None:
    job = start([LAUNCHERS / "slurm.sbatch", "a=1"], fake_tools, HOLD="1")
    wait_for((fake_tools / "up").exists)
    job.send_signal(getattr(signal, f"SIG{number}"))
    assert job.wait(30) == 0
    assert calls(fake_tools)[-3:] == [f"saved {number}", "scontrol show job --oneliner 7", "scontrol requeue 7"]


def test_slurm_job_is_requeued_when_only_its_processes_were_told(fake_tools: Path) -> None:
    preempted = {"STATUS": "1", "PREEMPTED": "2026-11-26T04:01:49"}
    assert run([LAUNCHERS / "slurm.sbatch", "a=1"], fake_tools, **preempted) == 0
    assert calls(fake_tools)[-1] == "scontrol requeue 7"


def test_cancelled_slurm_job_stays_away(fake_tools: Path) -> None:
    job = start([LAUNCHERS / "slurm.sbatch", "a=1"], fake_tools, HOLD="1", STATE="COMPLETING")
    wait_for((fake_tools / "up").exists)
    job.send_signal(signal.SIGTERM)
    job.wait(30)
    assert not any("requeue" in call for call in calls(fake_tools))


def test_slurm_array_takes_a_line_of_overrides_each(fake_tools: Path) -> None:
    (fake_tools / "sweep").write_text("a=1\n\"b='x y'\" c=[1,2] 'd=\"$HOME\"'\n\n")
    array = {"SWEEP": "sweep", "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2"}
    assert run([LAUNCHERS / "slurm.sbatch", "all=1"], fake_tools, **array) == 0
    assert words(fake_tools)[-4:] == ["all=1", "b='x y'", "c=[1,2]", 'd="$HOME"']
    assert "PRNN_RUN_DIR=runs/slurm/5_2" in environment(fake_tools)
    job = start([LAUNCHERS / "slurm.sbatch"], fake_tools, **{**array, "SLURM_ARRAY_TASK_ID": "3"})
    assert "SWEEP=sweep has no overrides in line 3" in job.communicate(timeout=30)[1] and job.returncode == 2


def container_script(container: dict[str, Any]) -> list[str]:
    assert container["command"][:2] == ["bash", "-c"]
    return container["command"]


def test_kubernetes_job_and_service_fit_each_other(fake_tools: Path) -> None:
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
    assert env["PRNN_RUN_DIR"].startswith(container["volumeMounts"][0]["mountPath"])
    assert all("=" in override for override in container["args"])
    assert run([*container_script(container), *OVERRIDES], fake_tools, **env) == 0
    assert f"--rdzv-endpoint={job['metadata']['name']}-0.{pod['subdomain']}:29400" in words(fake_tools)
    assert words(fake_tools)[-len(OVERRIDES) - 1 :] == ["prnn.train", *OVERRIDES]


def test_kubeflow_job_and_runtime_fit_each_other(fake_tools: Path) -> None:
    runtime, job = yaml.safe_load_all((LAUNCHERS / "kubeflow.yaml").read_text())
    assert {runtime["apiVersion"], job["apiVersion"]} == {"trainer.kubeflow.org/v1alpha1"}
    reference = {"apiGroup": "trainer.kubeflow.org", "kind": runtime["kind"], "name": runtime["metadata"]["name"]}
    assert (runtime["kind"], job["kind"]) == ("TrainingRuntime", "TrainJob") and job["spec"]["runtimeRef"] == reference
    (node,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    assert node["template"]["metadata"]["labels"]["trainer.kubeflow.org/trainjob-ancestor-step"] == "trainer"
    pod = node["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert node["name"] == container["name"] == "node"  # the names under which the operator looks for them
    assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
    trainer = job["spec"]["trainer"]
    assert trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] >= 1  # without GPUs the operator counts CPUs
    assert runtime["spec"]["mlPolicy"]["torch"] == {}  # what could stand there, Trainer 2.2 no longer knows
    env = {each["name"]: each["value"] for each in trainer["env"]}
    assert env["PRNN_RUN_DIR"].startswith(container["volumeMounts"][0]["mountPath"])
    assert all("=" in override for override in trainer["args"])
    operator = {"PET_MASTER_ADDR": "prnn-first-node-0-0.prnn-first", "PET_MASTER_PORT": "29400"}
    assert run([*container_script(container), *OVERRIDES], fake_tools, **env, **operator) == 0
    assert "--rdzv-endpoint=prnn-first-node-0-0.prnn-first:29400" in words(fake_tools)
    assert words(fake_tools)[-len(OVERRIDES) - 1 :] == ["prnn.train", *OVERRIDES]


def test_kubernetes_knows_every_field() -> None:
    schemas = pytest.importorskip("kubernetes_validate")
    for document in yaml.safe_load_all((LAUNCHERS / "kubernetes.yaml").read_text()):
        schemas.validate(document, schemas.latest_version(), strict=True)


def test_kubeflow_knows_every_field() -> None:
    models = pytest.importorskip("kubeflow_trainer_api.models")
    for document in yaml.safe_load_all((LAUNCHERS / "kubeflow.yaml").read_text()):
        model = getattr(models, f"TrainerV1alpha1{document['kind']}")
        assert model.from_dict(document).to_dict() == document  # it leaves out what it does not know


def test_skypilot_task(fake_tools: Path) -> None:
    task = yaml.safe_load((LAUNCHERS / "skypilot.yaml").read_text())
    assert task["num_nodes"] >= 1 and task["resources"]["accelerators"]
    subprocess.run(["bash", "-n"], input=task["setup"], text=True, check=True)
    (fake_tools / "prnn" / "bin").mkdir(parents=True)
    (fake_tools / "prnn" / "bin" / "torchrun").symlink_to(fake_tools / "torchrun")
    env = dict.fromkeys(("SKYPILOT_NUM_NODES", "SKYPILOT_NUM_GPUS_PER_NODE"), "2")
    env |= {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_TASK_ID": "t-1", "HOME": str(fake_tools)}
    for overrides in (task["envs"]["OVERRIDES"], "\n".join(OVERRIDES)):  # of the file, and of the command line
        assert run(["bash", "-c", task["run"]], fake_tools, **env, OVERRIDES=overrides) == 0
        assert words(fake_tools)[words(fake_tools).index("prnn.train") + 1 :] == overrides.splitlines()
    assert "--rdzv-endpoint=10.0.0.1:29400" in words(fake_tools)
    assert "PRNN_RUN_DIR=/runs/t-1" in environment(fake_tools)
