"""The package of docs/own_task, installed into an environment of its own: a task of a user's in every command."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "docs" / "own_task"
SMALL = ["task=series", "model.hidden_size=8", "trainer.threads=1", "trainer.eval_every=4", "run_dir=run"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The interpreter of an environment that sees this one's packages, and has the task installed."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    there = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    (there / "these.pth").write_text(f"{sysconfig.get_path('purelib')}\n{ROOT}\n")
    copied = folder / "package"
    subprocess.run(["cp", "-r", PACKAGE, copied], check=True)  # setuptools builds beside the sources
    install = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*install, "--no-build-isolation", copied], check=True)
    return python


def run(python, folder, module, *arguments, status=0):
    """What the command prints, in a folder in which no source of the task is."""
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PRNN_CACHE")}
    done = subprocess.run(
        [python, "-m", *module.split(), *arguments], cwd=folder, env=clean, capture_output=True, text=True
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def losses(run_dir):
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(each["step"], each["loss"], each["figures"]) for each in records if each["kind"] == "val"]


@pytest.mark.slow(seconds=30)
def test_an_installed_task_trains_resumes_and_is_reported(environment, tmp_path):
    said = run(environment, tmp_path, "prnn.train", *SMALL, "trainer.max_steps=8")
    assert "values/s" in said and "done at step 8" in said
    run(environment, tmp_path, "prnn.train", "resume=run", "trainer.max_steps=12")
    found = losses(tmp_path / "run")
    assert [step for step, *_ in found] == [4, 8, 12] and found[2][1] < found[0][1]
    assert all(figures["error_of_last_value"] > 0 for *_, figures in found)
    torchrun = "torch.distributed.run --standalone --nproc-per-node=2 -m prnn.train"
    run(environment, tmp_path, torchrun, *SMALL[:-1], "run_dir=two", "trainer.max_steps=12")
    for alone, together in zip(found, losses(tmp_path / "two"), strict=True):
        assert together[1] == pytest.approx(alone[1], rel=1e-4)
    page = Path(run(environment, tmp_path, "prnn.report", "run=run", "run=two").strip().splitlines()[-1])
    assert re.search("error.of.last.value", (tmp_path / page).read_text(), re.IGNORECASE)
    assert "which does not write text" in run(environment, tmp_path, "prnn.sample", "run=run", status=2)
    assert "--help" not in (shown := run(environment, tmp_path, "prnn.train", "task=series", "--help", "task"))
    assert "task.steps=50" in shown and "an integer of at least 1 and at most 100,000" in shown
    wrong = run(environment, tmp_path, "prnn.train", *SMALL[:-1], "task.steps=0", "trainer.max_steps=1", status=2)
    assert "task.steps=0 must be at least 1" in wrong
    sweep = run(
        environment, tmp_path, "prnn.train", "--multirun", "task=series", "model.hidden_size=4,5", "trainer.max_steps=1"
    )
    assert sweep.count("done at step 1") == 2


def test_a_task_is_named_by_its_module(monkeypatch):
    from prnn import plugins, tasks

    monkeypatch.syspath_prepend(PACKAGE)
    assert tasks.find("prnn_series:TASK").unit == "values"
    assert plugins.place("prnn_series:TASK").source() == PACKAGE / "prnn_series" / "__init__.py"


def test_tasks_that_are_not_there(monkeypatch):
    from prnn import plugins, tasks
    from prnn.errors import UserError

    for name, sentence in {
        "nonesuch": r"there is no task 'nonesuch': the known tasks are adding, .*, translation; one of yours",
        "nonesuch.task": "task.name=nonesuch.task: there is no module 'nonesuch'",
        "json:loads": "loads of json must be a subclass of prnn.task.Task",
        "json:nonesuch": "the module json has no 'nonesuch'",
        "prnn.tasks.decode": "the module prnn.tasks.decode has no 'TASK'",
        "../x": "there is no task",
        "a:b:c": "there is no task",
    }.items():
        with pytest.raises(UserError, match=sentence):
            tasks.find(name)
    twice = [plugins.Place("one", "TASK"), plugins.Place("two", "TASK")]
    monkeypatch.setattr(plugins, "_registered", lambda: {"series": twice})
    with pytest.raises(UserError, match="one and two both define a task of this name: uninstall one"):
        plugins.place("series")
