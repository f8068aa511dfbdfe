"""``benchmarks.exported``: what it times is what was exported and checked."""

from __future__ import annotations

import pytest

from benchmarks import exported


@pytest.mark.slow(seconds=20)
def test_each_contender_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exported, "FLAGS", {"": "-O1"})
    monkeypatch.setattr(exported, "FRAMES", 10)
    found = exported.measure(8, 2)
    assert {"C, float32", "C, int8", "torch.nn, whole", "torch.jit, frame by frame", "prnn.GRU, whole"} <= set(found)
    assert all(values["min"] > 0 for values in found.values())
    record = {
        "machine": {"processor": "p", "torch": "t", "onnxruntime": "o", "commit": "c"},
        "microseconds": {"8": found},
    }
    assert "| C, int8 |" in exported.report(record)
