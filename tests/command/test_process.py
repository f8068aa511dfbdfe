"""The command as a process: Ctrl-C, a reader that goes away, torchrun."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prnn.training import checkpoint
from prnn.training.observe.record_reader import read_records
from tests.command.small import SMALL

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow(seconds=15)


def start(folder, *command):
    """A command in a process group of its own, with its output in a file."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with (folder / "said.txt").open("w") as said:
        return subprocess.Popen(
            [sys.executable, "-m", *command], cwd=folder, env=env, stdout=said, stderr=said, start_new_session=True
        )


def wait_for(folder, text, seconds=60):
    end = time.monotonic() + seconds
    while text not in (folder / "said.txt").read_text():
        assert time.monotonic() < end, (folder / "said.txt").read_text()
        time.sleep(0.05)


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question. " * 100)
    more = ['run_dir="runs/lr=0.1,h=$(16) it\'s"', "trainer.max_steps=100000", "trainer.checkpoint_every=0"]
    process = start(tmp_path, "prnn.train", *SMALL, *more)
    wait_for(tmp_path, "step 3 ")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    said = (tmp_path / "said.txt").read_text()
    assert "Traceback" not in said
    [run] = (tmp_path / "runs").glob("lr*")
    step = checkpoint.read(run).step
    told = f"prnn: stopped at step {step}, with a checkpoint; continue with: "
    [line] = [line.removeprefix(told) for line in said.splitlines() if line.startswith(told)]
    assert line.startswith(f"{sys.executable} -m prnn.train ")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    pasted = subprocess.run(["bash", "-c", f"{line} trainer.max_steps={step + 1}"], cwd=tmp_path, env=env, timeout=100)
    assert pasted.returncode == 0
    assert checkpoint.read(run).step == step + 1


@pytest.mark.parametrize(("progress", "both"), [("auto", False), ("on", True)], ids=["stdout", "stdout and stderr"])
def test_training_goes_on_when_nobody_reads_any_more(call, tmp_path, progress, both):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1" if both else ""}
    command = [sys.executable, "-m", "prnn.train", *SMALL, f"trainer.progress={progress}"]
    with (tmp_path / "said.txt").open("w") as said:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT if both else said
        )
        process.stdout.close()
    assert process.wait(60) == 0
    assert (tmp_path / "said.txt").read_text() == ""
    assert checkpoint.read(Path("runs/latest")).step == 6


@pytest.mark.parametrize("progress", ["off", "on"])
def test_a_full_disk_under_the_terminal_s_log_costs_neither_training_nor_its_checkpoint(call, tmp_path, progress):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    more = ["trainer.max_steps=1000000", "trainer.checkpoint_every=0", "run_dir=run", f"trainer.progress={progress}"]
    with Path("/dev/full").open("w") as full:
        process = subprocess.Popen(
            [sys.executable, "-m", "prnn.train", *SMALL, *more], cwd=tmp_path, env=env, stdout=full, stderr=full
        )
    try:
        end = time.monotonic() + 60
        while len(read_records(tmp_path / "run" / "metrics.jsonl")) < 3:
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    finally:
        process.kill()  # a million steps, where the test failed
    assert checkpoint.read(tmp_path / "run").step >= 3
    assert "Traceback" not in (tmp_path / "run" / "train.log").read_text()


def test_torchrun_makes_one_run_directory(tmp_path):
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question. " * 100)
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "prnn.train"]
    process = start(tmp_path, *torchrun, *SMALL)
    assert process.wait(100) == 0, (tmp_path / "said.txt").read_text()
    assert len(list((tmp_path / "runs" / "char_lm").iterdir())) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"text.txt", "said.txt", "runs"}
    assert (tmp_path / "said.txt").read_text().count("done at step 6") == 1
    assert checkpoint.read(tmp_path / "runs" / "latest").manifest["processes"] == 2
