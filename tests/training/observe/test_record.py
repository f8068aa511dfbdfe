"""The record, the loggers, and the terminal."""

import errno
import json
import os
import re
import shutil
import sys
import threading
import types
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from prnn.config import LoggerConfig
from prnn.errors import UserError
from prnn.training import checkpoint, fit
from prnn.training.distributed import World
from prnn.training.observe import loggers, wandb_setup
from prnn.training.observe.record_reader import read_records
from prnn.training.observe.record_writer import Record, rewind
from tests.training.toy_task import ToyTask, toy_config


def test_a_rewound_record_holds_no_step_twice_and_no_torn_line(tmp_path):
    record = Record(tmp_path)
    for step in range(1, 7):
        record.write({"kind": "train", "step": step, "loss": 1.0 if step != 2 else float("nan")})
    record.write({"kind": "val", "step": 4, "loss": 1.0, "figures": {"accuracy": float("inf")}})
    record.write({"kind": "sample", "step": 3, "text": "early"})
    record.write({"kind": "sample", "step": 6, "text": "late"})
    record.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    assert rewind(tmp_path, 4) == ({("train", 4), ("val", 4)}, 0)
    kept = read_records(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in kept] == [1, 2, 3, 4, 4, 3]
    assert kept[1]["loss"] is None and kept[4]["figures"] == {"accuracy": None}  # JSON has no NaN
    assert (tmp_path / "samples.txt").read_text().count("---") == 1


def test_a_sample_does_not_steer_the_terminal_nor_the_log(tmp_path, monkeypatch, capsys):
    sample = "\x1b]0;PWNED\x07 \x9b31m \u202e π\n\tdone \udc9b"
    monkeypatch.setattr(ToyTask, "sample", lambda *_: sample)
    sys.stdout.reconfigure(encoding="ascii", errors="strict")
    cfg = toy_config(max_steps=2, eval_every=2)
    fit(cfg, ToyTask(cfg), World(), tmp_path)
    said, log = capsys.readouterr().out, (tmp_path / "train.log").read_text(encoding="utf-8")
    assert "?]0;PWNED? \\u009b31m \\u202e ?\n\tdone \\udc9b\n" in said
    assert "␛]0;PWNED␇ \\u009b31m \\u202e π\n\tdone \\udc9b\n" in log
    samples = [record for record in read_records(tmp_path / "metrics.jsonl") if record["kind"] == "sample"]
    assert samples[0]["text"] == sample.replace("\udc9b", "?")  # but the record has it as it is


def test_a_full_disk_delays_lines_and_loses_none(tmp_path, monkeypatch, caplog):
    record, pwrite, room = Record(tmp_path), os.pwrite, 10

    def full(handle, data, offset):
        if offset + len(data) > room:
            pwrite(handle, data[: max(0, room - offset)], offset)  # a torn line, as a real disk leaves it
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(handle, data, offset)

    monkeypatch.setattr("prnn.training.observe.record_writer.os.pwrite", full)
    for step in (1, 2):
        record.write({"kind": "train", "step": step})
    room = 10_000
    record.write({"kind": "train", "step": 3})
    record.close()
    assert [r["step"] for r in read_records(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert len(caplog.messages) == 1


def wandb_ids(run_dir: Path) -> set[str]:
    # offline-run-START-ID, and -1 after it where one of the same second is there already.
    return {path.name.split("-")[3] for path in (run_dir / "wandb").glob("offline-run-*")}


def test_wandb_offline_is_one_run_the_same_after_a_resume(tmp_path):
    pytest.importorskip("wandb")
    for resume, steps in ((None, 6), (True, 9)):
        cfg = toy_config(max_steps=steps, wandb=True, tensorboard=True, group="g", tags=["t"])
        fit(cfg, ToyTask(cfg), World(), tmp_path, checkpoint.read(tmp_path) if resume else None)
    [name] = wandb_ids(tmp_path)
    assert (tmp_path / wandb_setup.WANDB_ID).read_text().strip() == name
    assert checkpoint.read(tmp_path).state["wandb_id"] == name
    assert tensorboard_steps(tmp_path / "tensorboard", "train/loss") == list(range(1, 10))
    assert len(list((tmp_path / "wandb").rglob("media/images/pictures/line_9_*.png"))) == 1


def tensorboard_steps(folder: Path, tag: str, kind: str = "Scalars") -> list[int]:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(folder))
    events.Reload()
    return [event.step for event in getattr(events, kind)(tag)]


def test_replay_fills_a_logger_from_the_record(tmp_path):
    record = Record(tmp_path)
    for step in (1, 2, 3):
        record.write({"kind": "train", "step": step, "loss": 1.0 / step})
    record.write({"kind": "val", "step": 3, "loss": 0.5, "figures": {"accuracy": 0.9}})
    record.write({"kind": "sample", "step": 3, "text": "to be"})
    files = {"line": "line.png", "gone": "gone.png", "grey": "grey.png"}
    record.write({"kind": "pictures", "step": 3, "files": files})
    times = {"min": 1.0, "p50": 2.0, "p95": 3.0, "max": None}
    record.write({"kind": "ranks", "step": 3, "ranks": [{"rank": 1, "host": "a", "step_ms": times}]})
    record.close()
    figure = Figure(figsize=(1, 1))
    figure.savefig(tmp_path / "line.png")
    Image.new("L", (4, 4)).save(tmp_path / "grey.png")
    logger = loggers.TensorBoardLogger(tmp_path)
    assert loggers.replay(read_records(tmp_path / "metrics.jsonl"), logger) == 7
    logger.close()
    assert tensorboard_steps(tmp_path / "tensorboard", "train/loss") == [1, 2, 3]
    assert tensorboard_steps(tmp_path / "tensorboard", "val/accuracy") == [3]
    assert tensorboard_steps(tmp_path / "tensorboard", "pictures/line", "Images") == [3]
    assert tensorboard_steps(tmp_path / "tensorboard", "pictures/grey", "Images") == [3]
    assert tensorboard_steps(tmp_path / "tensorboard", "ranks/step_ms_p50/1") == [3]


def test_event_files_wait_for_a_full_disk_and_lose_nothing(tmp_path, monkeypatch, caplog):
    pytest.importorskip("tensorboard")
    logger, pwrite, room = loggers.TensorBoardLogger(tmp_path), os.pwrite, 200

    def full(handle, data, offset):
        if offset >= room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(handle, data[: room - offset], offset)  # a part of an event, as a real disk takes it

    monkeypatch.setattr("prnn.training.observe.event_file.os.pwrite", full)
    for step in (1, 2, 3):
        logger.log({"kind": "train", "step": step, "loss": 1.0 / step, "lr": 0.1})
    room = 10**6
    logger.log({"kind": "train", "step": 4, "loss": 0.25, "lr": 0.1})
    logger.close()
    assert tensorboard_steps(tmp_path / "tensorboard", "train/loss") == [1, 2, 3, 4]
    [message] = caplog.messages
    assert "cannot be written (No space left on device); trying again" in message
    assert not [thread for thread in threading.enumerate() if "AsyncWriter" in type(thread).__name__]


def test_events_that_were_never_taken_are_told_of_at_the_end(tmp_path, monkeypatch, caplog):
    pytest.importorskip("tensorboard")
    logger = loggers.TensorBoardLogger(tmp_path)

    def full(handle, data, offset):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("prnn.training.observe.event_file.os.pwrite", full)
    logger.log({"kind": "train", "step": 1, "loss": 1.0})
    logger.close()
    assert "could not be written: metrics.jsonl has them" in caplog.messages[1]


def test_an_event_file_that_was_deleted_drops_the_logger_once(tmp_path, caplog):
    pytest.importorskip("tensorboard")
    shown = loggers.Loggers([loggers.TensorBoardLogger(tmp_path)])
    shutil.rmtree(tmp_path / "tensorboard")
    for step in (1, 2):
        shown.log({"kind": "train", "step": step, "loss": 1.0})
    shown.close()
    [message] = caplog.messages
    assert message.startswith("TensorBoardLogger failed and is dropped") and "it was deleted" in message


@pytest.mark.parametrize(
    ("settings", "variables", "said"),
    [
        ({"tags": ["x" * 65]}, {}, r"\(logger.tags: .*between 1 and 64"),
        ({"tags": ["a", ""]}, {}, r"\(logger.tags: .*empty"),
        ({"project": "a/b"}, {}, r"\(logger.project: .*'a/b'"),
        ({"project": "a#b"}, {}, r"\(logger.project: .*'a#b'"),
        ({"project": "p" * 129}, {}, r"\(logger.project: .*128"),
        ({}, {"WANDB_MODE": "bogus"}, r"\(WANDB_MODE: "),
        ({}, {"WANDB_CONSOLE": "bogus", "WANDB_INIT_TIMEOUT": "x"}, r"\(WANDB_(CONSOLE|INIT_TIMEOUT): "),
        ({}, {"WANDB_TAGS": "t" * 70}, r"\(logger.tags or WANDB_TAGS: "),
        ({}, {"WANDB_SERVICE": "bogus"}, r"WANDB_SERVICE"),
    ],
)
def test_what_wandb_does_not_take_is_told_with_the_setting_s_name(tmp_path, monkeypatch, settings, variables, said):
    wandb = pytest.importorskip("wandb")
    wandb.teardown()  # it reads the variables once
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=rf"^W&B did not start .*{said}") as raised:
        loggers.WandbLogger(LoggerConfig(**settings), tmp_path, {}, "abc")
    assert "\n" not in str(raised.value) and "pydantic" not in str(raised.value)
    monkeypatch.undo()
    wandb.teardown()


@pytest.mark.parametrize("name", ["wandb", "torch.utils.tensorboard"])
def test_a_package_of_another_version_is_told(tmp_path, monkeypatch, name):
    class Other(types.ModuleType):
        def __getattr__(self, name):
            raise TypeError("Descriptors cannot be created directly.\nDowngrade")

    monkeypatch.setitem(sys.modules, name, Other(name))
    cfg = LoggerConfig(wandb=name == "wandb", tensorboard=name != "wandb")
    with pytest.raises(UserError, match=r"cannot be used \(Descriptors .* Downgrade\): update it with pip"):
        loggers.build(cfg, tmp_path, {}, 0, "abc")


def test_a_wandb_run_on_a_full_disk_is_dropped_with_a_warning(tmp_path, monkeypatch, caplog):
    pytest.importorskip("wandb")
    shown = loggers.Loggers([loggers.WandbLogger(LoggerConfig(wandb_mode="offline"), tmp_path, {}, "abc")])
    monkeypatch.setattr("shutil.disk_usage", lambda path: types.SimpleNamespace(free=0))
    for step in (1, 2):
        shown.log({"kind": "train", "step": step, "loss": 1.0})
    shown.close()
    [message] = [record.getMessage() for record in caplog.records if record.name.startswith("prnn")]
    assert message.startswith("WandbLogger failed and is dropped ([Errno 28] No space left on device")


def test_a_step_says_once_that_its_checkpoint_could_not_be_written(tmp_path, monkeypatch, capsys):
    save = checkpoint.save

    def full(run_dir, step, *rest):
        if step == 10:  # tried before the validation and after it
            raise checkpoint.not_written(run_dir / "checkpoints" / "x", step, "No space left on device")
        return save(run_dir, step, *rest)

    monkeypatch.setattr(checkpoint, "save", full)
    cfg = toy_config(max_steps=12)
    fit(cfg, ToyTask(cfg), World(), tmp_path)
    assert capsys.readouterr().out.count("the checkpoint of step 10 could not be written") == 1


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_logger_that_is_not_installed_is_told_at_the_start(tmp_path, monkeypatch, name):
    for module in ("wandb", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)  # makes its import fail
    cfg = toy_config(**{name: True})
    with pytest.raises(UserError, match=f"pip install {name}"):
        fit(cfg, ToyTask(cfg), World(), tmp_path)
    assert not checkpoint.listing(tmp_path)


def test_a_logger_that_breaks_is_dropped(tmp_path, caplog):
    class Broken:
        def log(self, record):
            raise ConnectionError("network\nis down")

        def close(self, failed):
            closed.append(failed)
            raise ConnectionError("still")

    closed: list[bool] = []
    shown = loggers.Loggers([Broken()])
    shown.log({"kind": "train", "step": 1})
    shown.log({"kind": "train", "step": 2})
    shown.close()
    [message] = caplog.messages
    assert "(network is down)" in message and closed == [True]


def test_wandb_is_online_only_for_those_who_are_logged_in(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    assert wandb_setup.wandb_mode("auto") == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password x\n")
    (tmp_path / "netrc").chmod(0o600)
    assert wandb_setup.wandb_mode("auto") == "online"
    (tmp_path / "settings").write_text("[default]\nbase_url = https://wandb.lab:8080\n")  # of wandb login --host
    assert wandb_setup.wandb_mode("auto") == "offline"
    (tmp_path / "netrc").write_text("machine wandb.lab:8080 login user password x\n")
    assert wandb_setup.wandb_mode("auto") == "online"
    (tmp_path / "settings").write_text("base_url")
    assert wandb_setup.wandb_mode("auto") == "offline"
    (tmp_path / "netrc").write_bytes(b"\xff\xfe")
    assert wandb_setup.wandb_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_BASE_URL", "http://[bad")
    assert wandb_setup.wandb_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_setup.wandb_mode("auto") == "disabled"
    assert wandb_setup.wandb_mode("offline") == "offline"


def test_a_damaged_id_is_told(tmp_path):
    (tmp_path / wandb_setup.WANDB_ID).write_bytes(b"\xff\xfe\0")
    with pytest.raises(UserError, match="wandb_id.txt is damaged: it must hold the ID of the W&B run, or be removed"):
        wandb_setup.wandb_id(tmp_path, None)


def test_quiet_is_for_warnings_only(tmp_path, capsys):
    cfg = toy_config(max_steps=3, progress="quiet")
    fit(cfg, ToyTask(cfg), World(), tmp_path / "run")
    assert capsys.readouterr().out == ""
    assert "validation loss" in (tmp_path / "run" / "train.log").read_text()


@pytest.mark.parametrize(("limit", "share"), [({"max_steps": 4}, 0.5), ({"max_steps": 4, "max_seconds": 1e-9}, 1)])
def test_a_line_says_how_much_is_done_by_the_nearest_limit(limit, share, tmp_path, capsys):
    cfg = toy_config(max_epochs=1000, log_every=2, **limit)
    fit(cfg, ToyTask(cfg), World(), tmp_path / "run")
    said = [line for line in capsys.readouterr().out.splitlines() if "numbers/s" in line]
    assert said[-1].endswith("(100%)")
    assert share == 1 or re.search(r"\(50%, 0:\d\d left\)$", said[1]), said


def test_only_a_terminal_gets_a_progress_bar(tmp_path, capsys, monkeypatch):
    for progress, bar in (("auto", False), ("on", True)):
        cfg = toy_config(max_steps=3, eval_every=0, progress=progress)
        fit(cfg, ToyTask(cfg), World(), tmp_path / progress)
        out = capsys.readouterr().out
        assert ("100%|" in out and "| step 3 [" in out) == bar
        assert ("%, " in out and "left)" in out) != bar
    assert json.loads((tmp_path / "on" / "summary.json").read_text())["steps"] == 3
    assert LoggerConfig().wandb is False
