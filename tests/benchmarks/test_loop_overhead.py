"""The trainer's overhead: the two loops are the same training, and what is made of their times."""

import json

import pytest
import torch

from benchmarks import loop_overhead, report


@pytest.fixture(autouse=True)
def _torch_switches():
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


def test_both_loops_follow_one_curve_and_another_is_not_timed(monkeypatch):
    assert loop_overhead.check(steps=2) < loop_overhead.TOLERANCE
    monkeypatch.setattr(loop_overhead, "TOLERANCE", -1.0)
    with pytest.raises(SystemExit, match="nothing was timed"):
        loop_overhead.check(steps=1)


def test_the_overhead_is_compared_round_by_round_and_the_report_shows_it(tmp_path):
    seconds = {"bare": [0.010, 0.020, 0.010], "bare, again": [0.010, 0.021, 0.010], "trainer": [0.0104, 0.0206, 0.0102]}
    found = loop_overhead.compare(seconds)
    assert found["overhead"] == {"median": 0.03, "min": 0.02, "max": 0.04} and found["met"]
    assert found["noise"]["max"] == 0.05
    assert not loop_overhead.compare(seconds | {"trainer": [0.011, 0.022, 0.011]})["met"]
    where = {"processor": "one", "threads": 1, "commit": "abc", "torch": "2"}
    record = {"benchmark": "loop overhead", "machine": where, "rounds": 3, "steps": 40, **found}
    (tmp_path / "loop_overhead.json").write_text(json.dumps(record))
    text = report.markdown(report.load(tmp_path))
    assert "3.0% (2.0% to 4.0%), target 5% met" in text and "| trainer | 10.4 | 10.2 | 20.6 |" in text
