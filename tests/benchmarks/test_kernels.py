"""The benchmark itself: what it counts, that it refuses speed for a wrong result, that its report renders."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from importlib.util import find_spec

import pytest
import torch

from benchmarks import report
from benchmarks.common import machine, stats
from benchmarks.kernels import __main__ as kernels
from benchmarks.kernels import cases, floors
from benchmarks.kernels.cases import Case
from benchmarks.kernels.floors import Floors
from benchmarks.kernels.peers import OURS, REFERENCE, Contender, Problem, build_all

FLOORS = Floors(2, "made up", 2e11, 1e11, 1e11, 32 << 10, 1 << 20, 32 << 20, 2e11, 1e11, 2e10)


def options(**changed):
    return argparse.Namespace(**{"threads": 1, "device": "cpu", "rounds": 2, "peers": []} | changed)


@pytest.fixture
def quick(monkeypatch):
    """Floors made up, torch.nn and prnn in samples of one call."""
    monkeypatch.setattr(floors, "measure", lambda threads: FLOORS)
    monkeypatch.setattr(stats, "SETTLE_SECONDS", 0.0)


def test_flops_are_counted_by_hand():
    assert Case("rnn_relu", 10, 3, 1, 5).flops(False) == 10 * 3 * (2 * 5 * 5 + 2 * 5)
    # Forward, state gradient, weight gradient: three times the recurrent product; x of one number has no gradient.
    assert Case("rnn_relu", 10, 3, 1, 5).flops(True) == 10 * 3 * (3 * 2 * 5 * 5 + 2 * 2 * 5)
    assert Case("gru", 10, 3, 7, 5).flops(True) == 10 * 3 * 3 * (3 * 2 * 5 * 5 + 3 * 2 * 5 * 7)
    two = Case("lstm", 4, 2, 1, 5, layers=2, bidirectional=True)
    assert two.flops(True) == 2 * 4 * 2 * 4 * 2 * ((3 * 25 + 2 * 5) + (3 * 25 + 3 * 5 * 10))


def test_the_floor_is_the_longer_of_arithmetic_and_streaming():
    small = Case("rnn_relu", 784, 1, 1, 100)  # 40 kB: the first-level caches of two cores hold it
    assert FLOORS.seconds(small, False) == (small.flops(False) / 2e11, "arithmetic")
    wide = Case("rnn_relu", 64, 1, 1, 1152)  # 5.3 MB
    assert FLOORS.seconds(wide, True) == (pytest.approx(2 * 64 * 4 * 1152**2 / 1e11), "weights from L3")


def test_a_wrong_contender_is_named_and_nothing_is_timed(quick):
    problem = Problem.of(Case("gru", 5, 3, 4, 7), True, 1)
    contenders, _ = build_all(problem, [])
    right = contenders[OURS]

    def wrong():
        found = right.tensors()
        found["bias_hh_l0"] = found["bias_hh_l0"] * 1.001
        return found

    def never():
        raise AssertionError("timed although it is wrong")

    contenders[OURS] = Contender(never, wrong)
    record = kernels.measure_contenders(problem, contenders, rounds=1)
    assert "bias_hh_l0" in record["disagreement"][0] and OURS in record["disagreement"][0]
    assert not {"milliseconds", "ratios", "met"} & set(record)
    assert "WRONG, no speed" in kernels.table_lines(record) and "WRONG" in kernels.sweep_line(record)


def test_a_run_with_a_wrong_contender_exits_non_zero(monkeypatch, tmp_path):
    found = {"cases": [{"name": "x", "disagreement": ["prnn differs"]}]}
    monkeypatch.setitem(kernels.SUITES, "memory", ("memory", (), lambda *_: found))
    monkeypatch.setattr(stats, "limit_threads", lambda threads: None)
    with pytest.raises(SystemExit, match="disagrees"):
        kernels.main(["--suite", "memory", "--out", str(tmp_path)])
    assert json.loads((tmp_path / "memory.json").read_text())["cases"] == found["cases"]


@pytest.mark.parametrize("found", [torch.tensor([1.0, math.nan]), torch.tensor([1.0]), torch.tensor([1.0, 3.0])])
def test_nan_another_shape_and_another_value_are_differences(found):
    assert stats.relative_difference(found, torch.tensor([1.0, 2.0])) >= 0.5


def test_a_missing_gradient_is_a_difference():
    assert stats.disagreement({}, {"x": torch.zeros(2)}) == (math.inf, "x")


def test_peers_agree_with_torch_nn():
    """Those that are installed; torch.compile is left out, it takes too long."""
    threads = len(os.sched_getaffinity(0))  # XLA's pool, made once a process
    for cell in cases.GATES:
        for train in (True, False):
            problem = Problem.of(Case(cell, 5, 3, 4, 7), train, threads)
            contenders, absent = build_all(problem, ["jax", "onnxruntime"])
            expected = {"jax"} if train else {"jax", "onnxruntime"}
            assert {name for name in expected if find_spec(name)} <= set(contenders)
            assert set(contenders) | set(absent) == {REFERENCE, OURS, "jax", "onnxruntime"}
            assert kernels.compare(contenders, 1e-5)[1] == {}


def test_a_peer_that_cannot_take_part_is_named_with_its_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    problem = Problem.of(Case("lstm", 70, 2, 1, 3, lengths=True), True, 1)
    _, absent = build_all(problem, ["torch", "compile", "jax", "onnxruntime"])
    assert set(absent) == {"torch.compile", "jax", "onnxruntime"} and all(absent.values())


def test_the_sweep_covers_the_ranges():
    assert len(cases.SWEEP) >= 60 and len({case.name for case in cases.SWEEP}) == len(cases.SWEEP)
    for letter, low, high in (("T", 1, 2048), ("B", 1, 256), ("H", 1, 1024)):
        values = {getattr(case, letter) for case in cases.SWEEP}
        assert (min(values), max(values)) == (low, high)
    assert {case.H for case in cases.SWEEP} >= {1, 3, 17, 100, 257}
    for kind in (lambda c: c.lengths, lambda c: c.bidirectional, lambda c: c.layers == 2, lambda c: c.plain):
        assert {case.cell for case in cases.SWEEP if kind(case)} == set(cases.GATES)


def test_table_and_sweep_run_and_the_report_renders_them(quick, tmp_path, capsys):
    small = [Case("rnn_tanh", 4, 2, 3, 5, targets={REFERENCE: 1e-9}), Case("gru", 4, 2, 1, 5, targets={REFERENCE: 1e9})]
    table, sweep = kernels.run_table(small, options()), kernels.run_sweep(small, options())
    table["cases"].append({"name": "lstm T1", "mode": "forward", "disagreement": ["jax differs"]})
    common = {"machine": machine.describe(), "rounds": 2}
    stats.write(tmp_path, "kernels", {"benchmark": "kernels"} | common | table)
    stats.write(tmp_path, "sweep", {"benchmark": "sweep"} | common | sweep)
    stats.write(tmp_path, "threads", {"benchmark": "threads"} | common | kernels.run_threads(small, options()))
    text = report.markdown(report.load(tmp_path))
    assert re.search(r"by trial: 4 calls, median \d", text) and "| gru T4 B2 I1 H5 forward | " in text
    assert "rnn_tanh T4 B2 I3 H5" in text and "target 1e-09 met" in text and "target 1e+09 missed" in text
    assert "wrong: jax differs" in text and re.search(r"forward: 2 shapes", text)
    widths = {line.count("|") for line in text.splitlines() if line.startswith("| forward+backward")}
    assert widths == {7}
    report.draw(report.load(tmp_path)["kernels"], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    assert "MISSED" in capsys.readouterr().out


def test_an_unknown_peer_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(SystemExit):
        kernels.parse(["--peers", "torch,keras"])
    with pytest.raises(SystemExit, match="none of"):
        report.load(tmp_path)
