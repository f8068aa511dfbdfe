"""The W&B logger: with a stand-in of the package, and with the package and a server of the tests' own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prnn import report
from prnn.config import LoggerConfig
from prnn.training import checkpoint, fit
from prnn.training.distributed import World
from prnn.training.observe import loggers
from prnn.training.run_dir import sweep
from tests.training.toy_task import ToyTask, toy_config

# With a stand-in


class Package:
    """W&B, as far as the logger uses it."""

    def __init__(self, offline: bool = True, starting_step: int = 0) -> None:
        self.run = SimpleNamespace(log=self.log, finish=lambda exit_code: None, offline=offline)
        self.run.starting_step = starting_step
        self.logged: dict[int, dict[str, Any]] = {}  # by step
        self.given: dict[str, Any] = {}

    def install(self, patch: pytest.MonkeyPatch) -> Package:
        module = SimpleNamespace(
            Image=lambda path: ("image", Path(path).name),
            Table=lambda columns, data: {"columns": columns, "data": [*data]},
            Settings=lambda **given: given,
            errors=SimpleNamespace(CommError=ConnectionError),
            teardown=lambda: None,
            init=self.init,
        )
        patch.setitem(sys.modules, "wandb", module)
        return self

    def init(self, **given: Any) -> Any:
        self.given = given
        (Path(given["dir"]) / "wandb").mkdir(exist_ok=True)
        return self.run

    def log(self, shown: dict[str, Any], step: int) -> None:
        self.logged.setdefault(step, {}).update(shown)


def opened(run_dir: Path, earlier: Any = (), **settings: Any) -> loggers.WandbLogger:
    run_dir.mkdir(parents=True, exist_ok=True)
    return loggers.WandbLogger(LoggerConfig(wandb_mode="offline", **settings), run_dir, {}, "abc", earlier)


def test_a_sweep_s_job_and_a_trial_have_their_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, trial, other = tmp_path / "2026-11-30" / "0", tmp_path / "study" / "0003", tmp_path / "char_lm" / "a"
    for path in (job, trial, other):
        path.mkdir(parents=True)
    (job.parent / "multirun.yaml").touch()
    (trial / "trial.log").touch()
    assert (sweep(job), sweep(trial), sweep(other)) == (("2026-11-30", "sweep"), ("study", "trial"), None)
    package = Package().install(monkeypatch)
    for path, settings, group, job_type in (
        (job, {}, "2026-11-30", "sweep"), (trial, {}, "study", "trial"), (other, {}, None, None),
        (job, {"group": "mine"}, "mine", None),
    ):  # fmt: skip
        opened(path, **settings)
        assert (package.given["group"], package.given["job_type"]) == (group, job_type)


def test_the_samples_are_a_table_that_goes_on_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "TABLE_ROWS", 3)
    samples: list[Any] = [{"kind": "sample", "step": step, "text": f"text {step}"} for step in range(1, 6)]
    package = Package().install(monkeypatch)
    first = opened(tmp_path)
    for record in samples[:2]:
        first.log(record)
    package = Package().install(monkeypatch)
    second = opened(tmp_path, earlier=[{"kind": "train", "step": 1, "loss": 1.0}, samples[0]])
    for record in samples[1:]:  # goes on from step 1, and step 2 is repeated
        second.log(record)
    assert [*package.logged] == [3, 4, 5]
    tables = [shown["samples"] for shown in package.logged.values()]
    assert tables[0] == {"columns": ["step", "text"], "data": [[1, "text 1"], [2, "text 2"], [3, "text 3"]]}
    assert [row[0] for row in tables[-1]["data"]] == [3, 4, 5]
    assert package.logged[3]["sample/text"] == "text 3"


def test_steps_are_left_out_that_w_and_b_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[Any] = [{"kind": "train", "step": step, "loss": 1.0} for step in range(1, 5)]
    Package().install(monkeypatch)
    for record in steps:
        opened(tmp_path).log(record)
    online = Package(offline=False, starting_step=3).install(monkeypatch)  # the server has steps 1 and 2
    for record in steps:
        opened(tmp_path).log(record)
    assert [*online.logged] == [3, 4]
    (tmp_path / "wandb" / "last_step-prnn-abc.txt").write_text("torn\x00")
    again = Package().install(monkeypatch)
    opened(tmp_path).log(steps[0])
    assert [*again.logged] == [1]


# With the package and a server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    wandb = pytest.importorskip("wandb")
    from tests.wandb_server import Server, environment

    with Server() as server:
        environment(server.url, monkeypatch)
        monkeypatch.setenv("WANDB_SILENT", "true")
        wandb.teardown()  # W&B reads the variables once
        yield server
        wandb.teardown()
    assert server.refused == []


def train(run_dir: Path, steps: int, **settings: Any) -> None:
    """Train to a step, from the last checkpoint if there is one."""
    cfg = toy_config(max_steps=steps, sample_every=4, wandb=True, tags=["t"], **settings)
    fit(cfg, ToyTask(cfg), World(), run_dir, checkpoint.read(run_dir) if checkpoint.listing(run_dir) else None)


def train_and_repeat(run_dir: Path, **settings: Any) -> None:
    """Train six steps, lose the last checkpoint, and go on from step five to step nine."""
    run_dir.mkdir(parents=True)
    (run_dir.parent / "multirun.yaml").touch()
    train(run_dir, 6, **settings)
    shutil.rmtree(checkpoint.listing(run_dir)[-1])
    train(run_dir, 9, **settings)


def tables(server: Any, run: Any, name: str) -> list[Any]:
    """The rows of each table of that name in the history, read from the uploaded file."""
    return [json.loads(run.files[row[name]["path"]])["data"] for row in run.history if name in row]


def arrived(server: Any) -> Any:
    """The one run at the server, complete."""
    [run] = server.runs.values()
    assert (run.projectName, run.displayName, run.tags, run.exit_code) == ("prnn", "0", ["t"], 0)
    assert (run.group, run.jobType) == ("swept", "sweep")
    assert run.settings["model"]["hidden_size"] == 8 and run.settings["task"]["name"] == "toy"
    assert [row["_step"] for row in run.history] == list(range(1, 10))
    assert all("train/loss" in row for row in run.history) and "val/loss" in run.history[4]
    assert run.summary["val/loss"] == run.history[8]["val/loss"]
    samples = tables(server, run, "samples")
    assert [row[0] for row in samples[-1]] == sorted({row[0] for row in samples[-1]}) and samples[-1][-1][0] == 9
    assert samples[-1][0] == [4, run.history[3]["sample/text"]]
    assert [row[:2] for row in tables(server, run, "picture_table")[-1]] == [[9, "line"]]
    assert run.files[run.summary["pictures/line"]["path"]].startswith(b"\x89PNG")
    assert {each["artifactTypeName"] for each in server.artifacts} == {"run_table"}
    assert any(name.endswith(".table.json") for files in server.uploaded.values() for name in files)
    return run


@pytest.mark.slow(seconds=15)
def test_an_online_run_arrives_once_and_so_do_workspace_and_report(
    server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_and_repeat(tmp_path / "swept" / "0", wandb_mode="online")
    run, place = arrived(server), f"run={tmp_path}/swept/0"
    assert report.main([place, "to=wandb"]) == 0
    assert arrived(server).history == run.history
    pytest.importorskip("wandb_workspaces")
    assert report.main([place, "to=workspace"]) == report.main([place, "to=report", "project=new"]) == 0
    said = capsys.readouterr()
    assert said.out.count(f"{server.url}/someone/") == 2 and "monotonically" not in said.err
    workspace, made = server.views
    assert (workspace["entityName"], workspace["projectName"], made["projectName"]) == ("someone", "prnn", "new")
    section = workspace["spec"]["section"]
    [chosen] = section["runSets"][0]["filters"]["filters"]
    assert (chosen["key"], chosen["op"], chosen["value"]) == ({"section": "run", "name": "name"}, "IN", [run.name])
    shown = {each["name"]: each["panels"] for each in section["panelBankConfig"]["sections"]}
    assert [each["viewType"] for each in shown["Samples"]] == ["Weave", "Markdown Panel"]
    assert {each["viewType"] for each in shown["Pictures"]} == {"Media Browser", "Weave"}
    assert all(
        name in json.dumps(made["spec"]) for name in ("picture_table", "pictures/line", "train/tokens", run.name)
    )


@pytest.mark.slow(seconds=12)
def test_offline_runs_of_a_resumed_job_become_one_run(server: Any, tmp_path: Path) -> None:
    train_and_repeat(tmp_path / "swept" / "0", wandb_mode="offline")
    folders = sorted((tmp_path / "swept" / "0" / "wandb").glob("offline-run-*"))
    assert len(folders) == 2 and not server.asked
    sync = [sys.executable, "-m", "wandb", "sync", *map(str, folders)]
    subprocess.run(sync, env=os.environ, cwd=tmp_path, check=True, capture_output=True)
    arrived(server)


@pytest.mark.slow(seconds=10)
def test_a_server_that_fails_stops_no_training(
    server: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.status = 401
    train(tmp_path / "refused", 4, wandb_mode="online")
    [message] = [each for each in caplog.messages if "W&B" in each]
    assert "error 401" in message and message.endswith("the network; this run is logged offline")
    assert len(list((tmp_path / "refused" / "wandb").glob("offline-run-*"))) == 1
    assert json.loads((tmp_path / "refused" / "summary.json").read_text())["stopped_by"] == "max_steps"
    caplog.clear()
    server.status = None
    monkeypatch.setattr(loggers, "FINISH_SECONDS", 2.0)
    where, records = tmp_path / "lost", [{"kind": "train", "step": step, "loss": 1.0} for step in (1, 2, 3)]
    where.mkdir()
    (where / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    logger = loggers.Loggers([loggers.WandbLogger(LoggerConfig(wandb_mode="online"), where, {}, "lost")])
    logger.log(records[0])
    server.status = 401
    logger.log({"kind": "sample", "step": 1, "text": "a"})  # of which W&B makes a request
    server.status = 500
    logger.log(records[1])
    logger.close()
    tables, end = (each for each in caplog.messages if "W&B" in each)
    assert tables.startswith("W&B gets no more tables of this job (")
    assert "in time: upload the rest with wandb sync --include-online " in end
    server.status = 403
    assert report.main([f"run={tmp_path}/lost", "to=report"]) == report.main([f"run={tmp_path}/lost", "to=wandb"]) == 2
    said = capsys.readouterr().err
    assert "W&B has not saved it (" in said and "W&B did not start (" in said and "Traceback" not in said
