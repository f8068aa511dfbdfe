"""The record shown afterwards."""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prnn.config import LoggerConfig
from prnn.errors import UserError
from prnn.reporting import replay
from prnn.reporting.runs import load
from tests.reporting.conftest import Write, ranks_at, trained_at
from tests.training.observe.test_record import tensorboard_steps, wandb_ids

RECORDS: list[Any] = [
    trained_at(1),
    7,  # no record
    ranks_at(2, 2, 1),
    {"kind": "val", "step": 2, "loss": None, "figures": {"accuracy": 0.5, "none": None}},
    {"kind": "sample", "step": 2, "text": "to be"},
    {"kind": "pictures", "step": 2, "files": {"gone": "gone.png"}},
    trained_at(3),
]
CONFIG = "logger: {project: mine, tags: [a], wandb_mode: disabled, of_another_version: 1}\nmodel: {cell: gru}\n"


def test_a_record_becomes_event_files_once(write: Write) -> None:
    pytest.importorskip("tensorboard")
    path = write("run", RECORDS, torn='{"kind')
    assert "6 records of" in replay.to_tensorboard(load(path))
    events = path / "tensorboard"
    assert tensorboard_steps(events, "train/loss") == [1, 3]
    assert tensorboard_steps(events, "ranks/step_ms_p95/1") == [2]
    assert tensorboard_steps(events, "val/accuracy") == [2]
    with pytest.raises(UserError, match="already holds events"):
        replay.to_tensorboard(load(path))


def test_a_picture_that_cannot_be_read_is_left_out(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("tensorboard")
    damaged = {"kind": "pictures", "step": 1, "files": {"torn": "torn.png"}}
    path = write("run", [damaged, {"kind": "pictures", "step": 2, "files": None}, trained_at(3)])
    (path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08")
    assert "3 records of" in replay.to_tensorboard(load(path))
    assert caplog.text.count("torn.png is left out: it cannot be read (") == 1
    assert tensorboard_steps(path / "tensorboard", "train/loss") == [3]


def test_a_record_becomes_an_offline_wandb_run_and_stays_that_run(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    path = write("run", RECORDS, config=CONFIG)
    seen: list[Any] = []
    original = replay.loggers.WandbLogger.__init__

    def init(self: Any, config: LoggerConfig, *arguments: Any) -> None:
        seen.append((config, *arguments))
        original(self, config, *arguments)

    monkeypatch.setattr(replay.loggers.WandbLogger, "__init__", init)
    said = replay.to_wandb(load(path), "other", None)
    assert "6 records" in said and "project other, offline" in said and "wandb sync" in said
    assert len(wandb_ids(path)) == 1
    config, where, job, run_id = seen[0]
    assert (config.project, config.tags, config.wandb_mode) == ("other", ["a"], "auto")
    assert where == path and job["model"] == {"cell": "gru"} and wandb_ids(path) == {run_id}
    replay.to_wandb(load(path), None, None)
    assert (seen[1][0].project, seen[1][3]) == ("mine", run_id)


def transactions(log: bytes) -> Iterator[bytes]:
    """The records of W&B's log, which has LevelDB's format: blocks of 32 KiB after a header of 7 bytes."""
    at, whole = 7, b""
    while at + 7 <= len(log):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", log, at)
        if at + 7 + length > len(log):  # still being written
            return
        whole += log[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # in one piece, or the last of several
            yield whole
            whole = b""


def test_what_stands_in_the_offline_run_is_what_was_recorded(write: Write) -> None:
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    path = write("run", RECORDS)
    replay.to_wandb(load(path), None, None)
    (log,) = (path / "wandb").rglob("*.wandb")
    rows: dict[int, dict[str, str]] = {}
    until = time.monotonic() + 60
    while len(rows) < 3 and time.monotonic() < until:  # W&B's own process may write after `finish`, on a busy machine
        time.sleep(0.1)
        for data in transactions(log.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
                rows[int(items["_step"])] = items
    assert sorted(rows) == [1, 2, 3]
    assert float(rows[3]["train/loss"]) == 3.97
    assert float(rows[2]["ranks/step_ms_p50/1"]) == 30.0 and rows[2]["sample/text"] == '"to be"'
    assert "val/loss" not in rows[2] and float(rows[2]["val/accuracy"]) == 0.5


@pytest.mark.parametrize("to", ["wandb", "tensorboard"])
def test_a_package_or_a_record_that_is_missing_is_told(write: Write, monkeypatch: pytest.MonkeyPatch, to: str) -> None:
    for module in ("wandb", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)  # makes its import fail
    functions = {"wandb": lambda run: replay.to_wandb(run, None, None), "tensorboard": replay.to_tensorboard}
    with pytest.raises(UserError, match="no records to replay"):
        functions[to](load(write("empty", [])))
    with pytest.raises(UserError, match=f"pip install {to}"):
        functions[to](load(write("run", RECORDS)))


def test_the_settings_of_the_run_are_taken_as_far_as_they_are_known(write: Write, tmp_path: Path) -> None:
    assert replay.logger_config(load(write("none", []))) == LoggerConfig()
    assert replay.logger_config(load(write("run", [], config=CONFIG))).project == "mine"
    assert replay.logger_config(load(write("odd", [], config="logger: 7\n"))) == LoggerConfig()
