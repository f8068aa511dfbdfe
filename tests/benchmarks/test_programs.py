"""Third-party programs: with ones made up here, no package is needed."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import prnn
from benchmarks import report
from benchmarks.common import machine, stats
from benchmarks.common.files import ROOT
from benchmarks.programs import __main__ as programs
from benchmarks.programs import picture
from benchmarks.programs.program import Built, measure, training


def trained():
    model = nn.Sequential(nn.GRU(3, 8))
    x = torch.randn(5, 2, 3)
    return training(model, torch.optim.SGD(model.parameters(), 0.1), lambda: model(x)[0].square().mean())


def constructed():
    x = torch.randn(5, 2, 3)

    def step():
        torch.manual_seed(1)
        return nn.LSTM(3, 8)(x)[0]

    return Built(step)


def wrong():
    """Another loss with prnn's layers."""
    built = trained()
    return Built(lambda: built.step() * (1.01 if isinstance(built.model[0], prnn.GRU) else 1), built.model)


def wrong_gradient():
    built = trained()

    def step():
        loss = built.step()
        if isinstance(built.model[0], prnn.GRU):
            built.model[0].weight_hh_l0.grad.mul_(1.5)
        return loss

    return Built(step, built.model)


def failing():
    built = trained()

    def step():
        assert type(built.model[0]) is nn.GRU, "unknown layer"
        return built.step()

    return Built(step, built.model)


def left():
    """The layer that runs is not in the model that is converted."""
    built = trained()
    return Built(built.step, nn.Sequential(nn.GRU(3, 8)))


def never():
    raise RuntimeError("no data")


def measured(build):
    return measure(SimpleNamespace(__doc__="A step.\nMore.", PACKAGE="torch", build=build), rounds=2)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(stats, "SETTLE_SECONDS", 0.0)


@pytest.fixture(autouse=True)
def _all_cores(monkeypatch):
    """The tests' process keeps its cores."""
    monkeypatch.setattr(stats, "limit_threads", lambda threads: None)


@pytest.mark.parametrize(("build", "by", "layer"), [(trained, "convert", "GRU"), (constructed, "patch", "LSTM")])
def test_a_correct_program_has_a_ratio(build, by, layer):
    record = measured(build)
    assert record["by"] == by and record["layers"] == [f"{layer}(3, 8)"] and record["difference"] < 1e-5
    assert record["does"] == "A step" and record["package"] == f"torch {torch.__version__}"
    assert set(record["milliseconds"]) == {"prnn", "torch.nn"} and record["ratio"]["median"] > 0
    assert type(nn.LSTM(3, 8)) is nn.LSTM


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (wrong, "differs from torch.nn by 0.01 in step"),
        (wrong_gradient, "in gradient"),
        (failing, "fails with prnn: AssertionError: unknown layer"),
        (left, "layers that are still torch.nn's: GRU(3, 8)"),
    ],
)
def test_a_wrong_program_has_no_ratio(build, message):
    record = measured(build)
    assert message in record["disagreement"][0] and "ratio" not in record


def test_a_program_that_fails_with_torch_is_absent():
    assert measured(never)["absent"] == "fails with torch.nn: RuntimeError: no data"


def test_a_package_that_is_not_installed_is_absent(monkeypatch, capsys):
    monkeypatch.setattr(programs, "PROGRAMS", {"no_such_program": "No such"})
    programs.main(["--rounds", "1", "--threads", "1"])
    assert "No such" in (out := capsys.readouterr().out) and "absent: not installed (No module named" in out


def test_a_wrong_result_is_the_exit_status_and_all_are_reported(monkeypatch, tmp_path, capsys):
    made = {"good": measured(trained), "bad": measured(wrong), "none": {"absent": "not installed (x)"}}
    monkeypatch.setattr(programs, "PROGRAMS", {name: name.title() for name in made})
    monkeypatch.setattr(programs, "in_process", lambda name, threads, rounds: made[name])
    with pytest.raises(SystemExit, match="differ from those with torch.nn"):
        programs.main(["--rounds", "2", "--threads", "1", "--out", str(tmp_path)])
    assert "WRONG, no speed: prnn differs" in capsys.readouterr().out
    text = report.markdown(report.load(tmp_path))
    assert "| Good | torch" in text and "wrong: prnn differs" in text and "absent: not installed (x)" in text
    cases = json.loads((tmp_path / "programs.json").read_text())["cases"]
    assert [case["name"] for case in cases] == ["Good", "Bad", "None"]


def test_a_process_that_dies_is_reported(monkeypatch):
    assert "ended with status" in programs.in_process("no_such_program", 0, 1)["disagreement"][0]


def test_every_program_of_the_folder_is_listed():
    others = {"__init__", "__main__", "program", "picture"}
    assert {path.stem for path in (ROOT / "benchmarks" / "programs").glob("*.py")} - others == set(programs.PROGRAMS)


with_results = pytest.mark.skipif(
    not picture.RESULTS.exists(), reason="not measured yet: python -m benchmarks.programs --out"
)


@with_results
def test_the_picture_is_current():
    """If not: python -m benchmarks.programs.picture"""
    assert picture.PICTURE.read_text() == picture.render()
    panel = picture.panel()
    assert panel.bars and all(panel.ticks[0] <= speedup <= panel.ticks[-1] for _, speedup in panel.bars)


@with_results
def test_the_record_says_where_it_was_measured():
    assert json.loads(picture.RESULTS.read_text())["machine"].keys() == machine.describe().keys()
