"""What a single process can show: traces, FLOP/s, heartbeat, hang report; and the arithmetic of what several show."""

import errno
import gzip
import json
import re
import threading
import time
from pathlib import Path

import pytest
import torch

from prnn.task import Position, Shard
from prnn.training import rng
from prnn.training.distributed import World
from prnn.training.exposed import Exposed, timed
from prnn.training.observe import flops, loggers, ranks
from prnn.training.observe.activity import Activity
from prnn.training.observe.record_reader import read_records
from prnn.training.observe.watchdog import Watchdog, patience
from prnn.training.step import Diverged
from tests.training.test_loop import records, train
from tests.training.toy_task import TIME, ToyTask, toy_config

PHASES = ["data", "forward", "backward", "agreement", "optimizer"]


def events(path):
    """The labelled intervals of a trace, by their beginning: (name, begin, end), microseconds."""
    with gzip.open(path) as file:
        found = [event for event in json.load(file)["traceEvents"] if event.get("ph") == "X"]
    return sorted((event["name"], event["ts"], event["ts"] + event["dur"]) for event in found)


def phases(path):
    found = sorted((begin, name) for name, begin, _ in set(events(path)) if name in PHASES)
    return [name for _, name in found]


# Traces


def test_a_trace_shows_the_phases_of_the_steps_asked_for(tmp_path, capsys):
    train(tmp_path, max_steps=8, profile="3+2+memory+stacks")
    assert phases(tmp_path / "profile" / "rank_0_steps_3-4.json.gz") == 2 * PHASES
    assert f"trace of steps 3-4, one file per rank: {tmp_path}/profile" in capsys.readouterr().out
    assert len(list((tmp_path / "profile").iterdir())) == 1


def test_a_run_that_ends_within_its_trace_leaves_what_it_has(tmp_path):
    train(tmp_path / "short", max_steps=4, profile="3+5", accumulate=2)
    steps = [*PHASES[:3], *PHASES[1:]]  # two micro-batches
    assert phases(tmp_path / "short" / "profile" / "rank_0_steps_3-4.json.gz") == 2 * steps
    with pytest.raises(Diverged):
        train(tmp_path / "bad", nan_at=3, profile="3+5")
    assert phases(tmp_path / "bad" / "profile" / "rank_0_steps_3-3.json.gz") == 2 * PHASES
    train(tmp_path / "next", max_steps=2, profile="1+1")  # no profiler is left running
    assert phases(tmp_path / "next" / "profile" / "rank_0_steps_1-1.json.gz") == PHASES


def test_without_a_profiler_a_phase_is_no_label(monkeypatch):
    def forbidden(name):
        raise AssertionError(name)

    monkeypatch.setattr("prnn.training.observe.activity.record_function", forbidden)
    activity = Activity()
    activity.enter("forward", 3)
    assert (activity.step, activity.phase) == (3, "forward")


# FLOP/s


def test_operations_by_token_of_a_model_written_by_hand():
    cfg = toy_config()
    task = ToyTask(cfg)
    model = task.build_model()
    [batch] = next(task.train_batches(Shard(), Position()))
    before = rng.get_state(torch.device("cpu"))
    # torch.nn's GRU of 8 units fed a number, and a head of one row: forward, and as much again for the weights'
    # gradients; back through the head and, but for the first step, whose state wants no gradient, through weight_hh.
    forward = 2 * (24 * 1 + 24 * 8 + 8)
    backward = forward + 2 * 8 + 2 * 24 * 8 * (TIME - 1) / TIME
    assert flops.per_token(cfg, task, model, batch) == pytest.approx(forward + backward)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert rng.get_state(torch.device("cpu"))["torch"].equal(before["torch"])
    assert model.training


def test_mfu_has_its_peak_beside_it_and_none_without(tmp_path):
    train(tmp_path / "known", max_steps=4, log_every=4, peak_tflops=0.5)
    summary = json.loads((tmp_path / "known" / "summary.json").read_text())
    assert (summary["peak_tflops"], summary["peak_source"]) == (0.5, "trainer.peak_tflops")
    record = records(tmp_path / "known")[-1]
    assert record["tflops"] == pytest.approx(record["tokens_per_second"] * summary["flops_per_token"] / 1e12, rel=1e-3)
    assert record["mfu"] == pytest.approx(record["tflops"] / 0.5, rel=1e-3)
    assert record["exposed_comm"] is None  # a single process waits for nobody
    train(tmp_path / "cpu", max_steps=4)
    summary = json.loads((tmp_path / "cpu" / "summary.json").read_text())
    assert (summary["mfu"], summary["peak_tflops"], summary["peak_source"]) == (None, None, None)
    assert summary["tflops"] > 0 and records(tmp_path / "cpu")[-1]["mfu"] is None
    assert not records(tmp_path / "cpu", "ranks")


def test_a_peak_is_of_the_device_and_the_precision_or_unknown():
    h200 = "NVIDIA H200"
    assert flops.known_peak(h200, "bfloat16", False).tflops == 989.4
    assert flops.known_peak(h200, "float32", True).tflops == 494.7
    assert flops.known_peak(h200, "float32", False) == flops.Peak(66.9, "data sheet of NVIDIA H200, dense float32")
    for name in ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 9999"):
        assert flops.known_peak(name, "bfloat16", False) is None


def test_the_page_has_every_field_of_every_record(tmp_path, monkeypatch):
    train(tmp_path, max_steps=5)
    monkeypatch.setitem(globals(), "OTHERS", [[0.0] * 22])
    [row, _] = ranks.gather(times([10]), 5.0, ["a", "b"], Others(rank=0, size=2))
    beat = json.loads((tmp_path / "heartbeat" / "rank_0.json").read_text())
    written = [row, beat, *read_records(tmp_path / "metrics.jsonl")]
    page = (Path(__file__).resolve().parents[3] / "docs" / "observability.md").read_text()
    named = set(re.findall(r"`([a-z0-9_]+)`", page))
    assert {key for record in written for key in record} | set(row["step_ms"]) | {"straggler", "ranks"} <= named
    assert {record["kind"] for record in written[2:]} | {"ranks"} <= named
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {key for key in summary if key.startswith(("peak", "flops"))} <= named


# Ranks


def times(milliseconds, waited=0.0, exposed=0.0):
    found = ranks.StepTimes()
    for each in milliseconds:
        found.add(each / 1e3, waited / 1e3, exposed / 1e3)
    return found


class Others(World):
    """This rank among others, whose tables are given."""

    def all_sum(self, values):
        return [sum(column) for column in zip(values, *OTHERS, strict=True)]


OTHERS: list[list[float]] = []


def test_one_all_reduce_gives_every_rank_s_times(monkeypatch):
    mine, theirs = times([10, 20, 30, 40], waited=2, exposed=8), times([25] * 4, exposed=1)
    monkeypatch.setitem(globals(), "OTHERS", [[0.0] * 11 + theirs.figures(7.0)])
    first, second = ranks.gather(mine, 5.0, ["a", "b"], Others(rank=0, size=2))
    assert first == {
        "rank": 0, "host": "a",
        "step_ms": {"min": 10, "p50": 25, "p95": 38.5, "max": 40},
        "compute_ms": {"min": 0, "p50": 15, "p95": 28.5, "max": 30},
        "data_wait": 0.08, "exposed_comm": 0.32, "memory_mib": 5.0,
    }  # fmt: skip
    assert (second["host"], second["compute_ms"]["p95"], second["memory_mib"]) == ("b", 24, 7.0)


@pytest.mark.parametrize(
    ("compute", "data", "expected"),
    [([10, 11], [0, 0], None), ([10, 14], [0, 0], 1), ([9, 20, 10, 10], [0] * 4, 1), ([10, 10, 10], [0, 0, 0.5], 2)],
)
def test_a_straggler_computes_or_reads_clearly_longer_than_the_others(compute, data, expected):
    rows = [
        {"compute_ms": {"p50": ms}, "data_wait": share, "step_ms": {"p50": 20}}
        for ms, share in zip(compute, data, strict=True)
    ]
    assert ranks.straggler(rows) == expected


def test_loggers_show_each_rank_and_of_many_the_range(monkeypatch):
    monkeypatch.setitem(globals(), "OTHERS", [[0.0] * 11 + times([25] * 4).figures(7.0)])
    rows = ranks.gather(times([10]), 5.0, ["a", "b"], Others(rank=0, size=2))
    record = {"kind": "ranks", "step": 4, "straggler": 1, "ranks": rows}
    flat = loggers.flatten(record)
    assert flat["ranks/straggler"] == 1 and flat["ranks/compute_ms_p50/1"] == 25 and flat["ranks/memory_mib/0"] == 5
    assert all(isinstance(value, (int, float)) for value in flat.values())
    many = [{**row, "rank": 2 * i + j} for i in range(9) for j, row in enumerate(rows)]
    flat = loggers.flatten({"kind": "ranks", "step": 4, "straggler": None, "ranks": many})
    assert (flat["ranks/step_ms_max/min"], flat["ranks/step_ms_max/max"]) == (10, 25)
    assert len(flat) == 3 * 11


def test_the_hook_s_wrapper_notes_the_last_bucket_alone_and_changes_nothing(monkeypatch):
    class Bucket:
        def __init__(self, last):
            self.is_last = lambda: last

    def bf16_compress_hook(state, bucket):
        return state, bucket

    clock = [10.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    exposed = Exposed(torch.device("cpu"))
    hook = timed(bf16_compress_hook, exposed)
    assert hook.__name__ == "bf16_compress_hook"
    first, last = Bucket(False), Bucket(True)
    assert hook("state", first) == ("state", first)
    clock[0] += 5.0
    assert hook("state", last) == ("state", last)
    clock[0] += 2.0
    exposed.backward_is_through()
    clock[0] += 1.0
    assert exposed.tail() == 2.0
    hook("state", first)
    clock[0] += 1.0
    exposed.backward_is_through()
    assert exposed.tail() == 0.0  # its last bucket has not been handed over


# Heartbeat and hang report


def waits_here(path):
    """Until the file is there; a minute is for a busy machine."""
    end = time.monotonic() + 60
    while not (path.exists() and path.read_text().endswith("\n\n")) and time.monotonic() < end:
        time.sleep(0.01)


def test_a_hang_is_reported_with_the_stacks(tmp_path, capfd):
    activity = Activity()
    with Watchdog(activity, tmp_path, rank=3, hang_seconds=0.2):
        activity.enter("backward", 7)
        waits_here(tmp_path / "hang" / "rank_3.txt")
    report = (tmp_path / "hang" / "rank_3.txt").read_text()
    assert report.count("no progress") == 1 and "step 7, backward" in report
    assert "in waits_here" in report and "prnn watchdog" in report
    beat = json.loads((tmp_path / "heartbeat" / "rank_3.json").read_text())
    assert (beat["rank"], beat["step"], beat["phase"]) == (3, 7, "backward")
    assert capfd.readouterr().err.count("prnn [rank 3]: no progress for ") == 1
    assert not [thread for thread in threading.enumerate() if thread.name == "prnn watchdog"]


def test_each_hang_is_reported_once(tmp_path):
    activity = Activity()
    dog = Watchdog(activity, tmp_path, rank=0, hang_seconds=50.0)
    for phase, still, hangs in (
        ("data", 0, 0), ("data", 60, 1), (None, 0, 1), ("validation", 10, 1), ("test", 60, 1), ("checkpoint", 60, 2),
    ):  # fmt: skip
        if phase is not None:
            activity.enter(phase)
            activity.moved -= still
        dog._check_hang()
        path = tmp_path / "hang" / "rank_0.txt"
        assert (path.read_text().count("no progress") if path.exists() else 0) == hangs, phase
    activity.move()
    dog._check_hang()
    assert path.read_text().count("no progress") == 2


def test_a_run_has_a_heartbeat_and_leaves_no_thread(tmp_path):
    (tmp_path / "heartbeat").mkdir()
    (tmp_path / "heartbeat" / "rank_1.json").write_text("of an earlier job of three processes")
    (tmp_path / "heartbeat" / "rank_2.json").mkdir()  # which cannot be removed like a file
    train(tmp_path, max_steps=3)
    assert sorted(path.name for path in (tmp_path / "heartbeat").iterdir()) == ["rank_0.json", "rank_2.json"]
    beat = json.loads((tmp_path / "heartbeat" / "rank_0.json").read_text())
    assert (beat["step"], beat["phase"]) == (3, "finished")
    assert time.time() - 60 < beat["time"] <= time.time()
    with pytest.raises(Diverged):
        train(tmp_path / "bad", nan_at=2)
    assert json.loads((tmp_path / "bad" / "heartbeat" / "rank_0.json").read_text())["phase"] == "failed"
    assert not (tmp_path / "hang").exists()
    assert not [thread for thread in threading.enumerate() if thread.name == "prnn watchdog"]


def test_a_heartbeat_that_cannot_be_written_stops_nothing(tmp_path, caplog):
    (tmp_path / "heartbeat").write_text("in the way")
    (tmp_path / "hang").write_text("in the way")
    activity = Activity()
    with Watchdog(activity, tmp_path, rank=0, hang_seconds=0.1):
        time.sleep(0.3)
    assert len([message for message in caplog.messages if "cannot be written" in message]) == 1


def test_a_heartbeat_goes_on_where_a_disk_is_full(tmp_path, monkeypatch):
    activity = Activity()
    watching = Watchdog(activity, tmp_path, rank=0, hang_seconds=None)
    activity.step = 1_000_000
    watching._beat()

    def full(path, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    for step in (7, 12_345_678):
        activity.step = step
        activity.move()
        watching._beat()
        assert json.loads((tmp_path / "heartbeat" / "rank_0.json").read_text())["step"] == step


def test_processes_report_before_a_collective_gives_up():
    assert patience(toy_config(hang_seconds=300.0, timeout_seconds=100.0), 2) == 50
    assert patience(toy_config(hang_seconds=300.0, timeout_seconds=100.0), 1) == 300
    assert patience(toy_config(hang_seconds=None), 2) is None
