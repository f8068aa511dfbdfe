"""The tables of what a GPU check measured, by benchmarks/report.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report

ROOT = Path(__file__).resolve().parents[2]


def measured(us: float, regime: str, forced: str | None = None, correct: bool = True) -> dict[str, Any]:
    plan = {"regime": regime, "teams": 2, "blocks": 48, "shape": 0, "row_warps": 2, "microseconds": 1.25}
    return {"status": "measured", "plan": plan, "forced": forced, "correct": correct, "microseconds_per_step": us}


@pytest.fixture
def record() -> dict[str, Any]:
    layer = "lstm bfloat16 T1024 B16 H768 | forward"
    call = {
        "name": "lstm T1024", "mode": "forward", "T": 1024, "status": "measured",
        "milliseconds": {"prnn": {"median": 2.048}, "torch.nn": {"median": 8.192}},
        "ratios": {"torch.nn": {"median": 4.0}},
    }  # fmt: skip
    return {
        "gpu": "A GPU", "nvidia_smi": {}, "torch": "2", "cuda": "13.0", "commit": "abc",
        "parts": {
            "build": {"status": "ok", "seconds": 13.5},
            "measure": {"status": "failed", "counts": {"measured": 3, "wrong": 1}, "seconds": 9.0},
            "micro": {"status": "ok", "measured": [
                {"name": "sm_clock_first", "mhz": 1980},
                {"name": "grid_barrier", "blocks": 132, "ns": 975.0, "cycles": 1930.5, "mhz": 1980, "spread": 0.01},
            ]},
        },
        "results": {
            "measure": {
                f"{layer} | chosen": measured(4.5, "grid"),
                f"{layer} | short": measured(0.1, "grid"),  # of few steps: another matter
                f"{layer} | cluster": measured(3.5, "cluster", "cluster"),
                f"{layer} | block": {"status": "does not fit"},
            },
            "plans": {f"{layer} | grid shape=0,row_warps=2": measured(0.2, "grid", "grid", correct=False)},
            "kernels": {"lstm T1024 | forward": call, "gru | forward": {"status": "hung"}},
        },
    }  # fmt: skip


def test_a_check_is_a_page_of_tables(record: dict[str, Any]) -> None:
    page = report.markdown({"check": record})
    assert "A GPU, driver unknown; torch 2, CUDA 13.0; commit abc." in page
    assert "| measure | failed | 3 measured, 1 wrong | 9 |" in page
    plans = "grid 2 x 48, shape 0, 2 x 4 warps | 4.50 | 1.25 | cluster 2 x 48, shape 0, 2 x 4 warps | 3.50"
    assert f"| lstm bfloat16 T1024 B16 H768 | forward | {plans} |" in page
    assert "| lstm T1024 | forward | 2.00 | 8.00 (4.00) |" in page
    assert "| grid_barrier | blocks 132 | 975.0 | 1,930.5 |" in page and "sm_clock" not in page


def test_a_check_that_only_began_has_a_page(record: dict[str, Any]) -> None:
    page = report.markdown({"check": record | {"parts": {}, "results": {}}})
    assert "commit abc" in page and "lstm" not in page


def test_calls_that_were_wrong_have_no_time(record: dict[str, Any]) -> None:
    call = record["results"]["kernels"]["lstm T1024 | forward"]
    wrong = {"name": "gru T9", "mode": "forward", "disagreement": ["prnn differs from torch.nn by 0.2 in x"]}
    machine = {"processor": "one", "threads": 1, "commit": "abc"}
    page = report.markdown({"gpu": {"machine": machine, "cases": [call, wrong, call | wrong]}})
    assert page.count("| gru T9 | forward | wrong: prnn differs from torch.nn by 0.2 in x |  |") == 2


def test_a_plan_that_was_forced_is_not_the_one_chosen(record: dict[str, Any]) -> None:
    del record["results"]["measure"]["lstm bfloat16 T1024 B16 H768 | forward | chosen"]
    page = report.markdown({"check": record})
    assert "| forward | not measured |  |  | cluster 2 x 48, shape 0, 2 x 4 warps | 3.50 |" in page


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("", {"parts": 3}, "holds no results that can be shown"),
        ("check.json", {"parts": 3}, "holds no results that can be shown"),
        ("nowhere", {}, "none of kernels.json"),
    ],
)
def test_what_cannot_be_shown_says_so(name, content, says, tmp_path, monkeypatch) -> None:
    (tmp_path / "check.json").write_text(json.dumps(content))
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path / name)])
    with pytest.raises(SystemExit, match=says):
        report.main()


def test_the_page_of_the_h200_is_what_its_records_say() -> None:
    """If not: python -m benchmarks.report benchmarks/results/h200 --markdown benchmarks/results/h200/results.md"""
    folder = ROOT / "benchmarks" / "results" / "h200"
    assert (folder / "results.md").read_text() == report.markdown(report.load(folder))
    assert json.loads((folder / "check.json").read_text())["parts"]["checks"]["status"] == "ok"
