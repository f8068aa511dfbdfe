"""``benchmarks.plain_c``: what it compares before it times."""

from __future__ import annotations

from pathlib import Path

import pytest

import prnn
from benchmarks import plain_c
from prnn.export import c


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_c, "FLAGS", ("-O1",))
    monkeypatch.setattr(plain_c, "STEPS", 10)


def test_each_contender_is_timed() -> None:
    found = plain_c.measure(8, 2)
    assert {"float32, -O1", "int8, -O1"} <= set(found)
    assert all(values["min"] > 0 for values in found.values())


def test_what_is_wrong_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, case = plain_c.exported(prnn.GRU(8, 8).eval(), 8)
    c.write(tmp_path, "model", step, [case])
    monkeypatch.setattr(plain_c, "BOUND", -1.0)
    with pytest.raises(SystemExit, match="is not timed"):
        plain_c.programs(tmp_path, "float32")
