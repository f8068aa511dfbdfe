"""The suite of cells written in Python: that its contenders agree, that an error is found, what its inputs are."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

import prnn
from benchmarks import report
from benchmarks.common import machine, stats
from benchmarks.kernels import __main__ as kernels
from benchmarks.kernels import cases, floors, spikes
from benchmarks.kernels.cases import Case
from benchmarks.kernels.floors import Floors
from benchmarks.kernels.peers import (
    CELL_PEERS,
    OURS,
    OWN_PACKAGE,
    Contender,
    Problem,
    build_all,
    build_reference,
    of_cell,
)  # fmt: skip
from benchmarks.kernels.peers.base import eager, make_module
from benchmarks.kernels.peers.equations import Equations
from prnn import native

pytestmark = pytest.mark.skipif(not native.status()[0], reason=f"native library: {native.status()[1]}")

FLOORS = Floors(2, "made up", 2e11, 1e11, 1e11, 32 << 10, 1 << 20, 32 << 20, 2e11, 1e11, 2e10)
SMALL = [Case(cell, 5, 3, 4, 8) for cell in cases.PYTHON_GATES] + [Case("slstm", 5, 3, 4, 8, heads=2)]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_the_loop_and_prnn_agree_with_the_equations(case):
    problem = Problem.of(case, True, 1)
    contenders, absent = build_all(problem, ["loop"])
    assert list(contenders) == ["equations", OURS, "loop"] and not absent
    expected = set(problem.trained) | {"output", "x"}
    assert all(set(contender.tensors()) == expected for contender in contenders.values())
    assert kernels.compare(contenders, 1e-5)[1] == {}
    assert not contenders["equations"].timed


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_the_peers_that_are_installed_agree_with_the_equations(case):
    threads = len(os.sched_getaffinity(0))  # XLA's pool, made once a process
    contenders, absent = build_all(Problem.of(case, True, threads), of_cell(case))
    assert kernels.compare(contenders, 1e-5)[1] == {}
    for reason in absent.values():
        assert reason.startswith("not installed")
    assert "jax" in contenders or not find_spec("jax")


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
@pytest.mark.parametrize("who", [OURS, "loop"])
def test_a_planted_error_is_found_in_every_gradient(case, who):
    problem = Problem.of(case, True, 1)
    contenders, _ = build_all(problem, ["loop"])
    right = contenders[who].tensors()
    for name in (*problem.trained, "x"):
        wrong = right | {name: right[name] * 1.001}
        planted = contenders | {who: Contender(_never, lambda wrong=wrong: wrong)}
        record = kernels.measure_contenders(problem, planted, rounds=1)
        assert name in record["disagreement"][0] and record["disagreement"][0].startswith(who)
        assert not {"milliseconds", "ratios", "met"} & set(record)


@pytest.mark.parametrize("cell", spikes.CELLS)
def test_one_other_spike_is_found(cell):
    problem = Problem.of(Case(cell, 20, 3, 4, 8), True, 1)
    contenders, _ = build_all(problem, [])
    right = contenders[OURS].tensors()
    assert 0 < right["output"].mean() < 1
    right["output"][-1, 0, 0] = 1 - right["output"][-1, 0, 0]
    record = kernels.measure_contenders(problem, contenders | {OURS: Contender(_never, lambda: right)}, rounds=1)
    assert "output" in record["disagreement"][0]


def _never():
    raise AssertionError("timed although it is wrong")


@pytest.mark.parametrize("cell", spikes.CELLS)
def test_voltages_keep_away_from_the_threshold(cell, monkeypatch):
    case = Case(cell, 30, 4, 6, 16)
    problem = Problem.of(case, True, 1)
    layer = make_module(prnn, case)
    layer.load_state_dict(problem.weights)
    distance, rate = spikes.simulated(layer, problem.x)
    assert distance.min() >= spikes.CLOSEST
    assert rate.mean().item() == pytest.approx(layer(problem.x)[0].mean().item())
    assert f"{100 * rate.mean():.1f} % of the units spike" in problem.note
    others, _ = spikes.simulated(layer, torch.randn(case.T, 64, case.I))
    assert (others < distance.min()).any(), "no sample was left out"
    monkeypatch.setattr(spikes, "CLOSEST", 1.0)
    with pytest.raises(RuntimeError, match="draw more samples"):
        Problem.of(case, True, 1)


def test_other_equations_are_not_compared():
    problem = Problem.of(Case("alif", 4, 2, 3, 8), True, 1)
    contenders, _ = build_all(problem, [])
    other = replace(contenders[OURS], tensors=_never, compared=False)
    assert set(kernels.compare(contenders | {"norse": other}, 1e-5)[0]) == {OURS}


def test_peers_of_other_cells_are_absent_with_a_reason():
    problem = Problem.of(Case("leaky", 4, 2, 3, 8), True, 1)
    _, absent = build_all(problem, list(OWN_PACKAGE.values()))
    assert set(absent) == {CELL_PEERS[key][0] for key in OWN_PACKAGE.values()}
    assert all(" only" in reason for reason in absent.values())


def test_the_gates_are_those_of_the_cells():
    for case in SMALL:
        assert make_module(prnn, case).cell.signature.gates == case.G
    heads = Case("slstm", 5, 3, 4, 8, heads=2)
    assert heads.flops(False) == 5 * 3 * 4 * (2 * 8 * 4 + 2 * 8 * 4)
    assert {case.cell for case in cases.CELLS} == set(cases.PYTHON_GATES)


def test_the_suite_runs_and_the_report_renders_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(floors, "measure", lambda threads: FLOORS)
    monkeypatch.setattr(stats, "SETTLE_SECONDS", 0.0)
    options = argparse.Namespace(threads=1, device="cpu", rounds=2, peers=["loop", "builtin"])
    chosen = [
        Case("lif", 5, 3, 4, 8, targets={"loop": 1e9}),
        Case("python_gru", 5, 3, 4, 8, targets={"prnn.GRU": 1e-9}),
    ]
    record = kernels.run_cells(chosen, options)
    lif, gru = record["cases"]
    assert set(lif["milliseconds"]) == {OURS, "loop"} and lif["met"] == {"loop": False}
    assert set(gru["milliseconds"]) == {OURS, "loop", "prnn.GRU"} and gru["met"] == {"prnn.GRU": True}
    stats.write(tmp_path, "cells", {"benchmark": "cells", "machine": machine.describe(), "rounds": 2} | record)
    text = report.markdown(report.load(tmp_path))
    assert "lif T5 B3 I4 H8" in text and "target 1e+09 missed" in text and "target 1e-09 met" in text
    assert "no voltage is closer" in text and "MISSED" in capsys.readouterr().out


@pytest.mark.parametrize("cell", ["leaky", "slstm", "lif", "alif"])
def test_the_step_that_is_compiled_or_scanned_is_the_cells(cell: str) -> None:
    problem = Problem.of(Case(cell, 7, 4, 5, 16), True, 1)
    leaves = problem.leaves()
    equations = Equations(problem, leaves)

    def forward(x: torch.Tensor) -> torch.Tensor:
        state, outputs = equations.zero_state(x), []
        for gates in equations.gates(x).unbind(0):
            state, output = equations.step(state, gates)
            outputs.append(output)
        return torch.stack(outputs)

    found = eager(problem, leaves, forward).tensors()
    right = build_reference(problem)[1].tensors()
    assert found.keys() == right.keys()
    for name, tensor in right.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-4, msg=name)
