"""The picture of docs/cells.md is what the committed curves say."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.cells_picture import CURVES, PANELS, PICTURE, collect, render
from benchmarks.reproduce.reproductions import ROWS


def test_the_picture_is_current() -> None:
    """If not: python -m benchmarks.cells_picture"""
    assert PICTURE.read_text() == render(json.loads(CURVES.read_text()))


def test_every_curve_is_a_reproduction_and_inside_its_axes() -> None:
    curves = json.loads(CURVES.read_text())
    assert set(curves) == {row for panel in PANELS for row in panel.labels} <= set(ROWS)
    for panel in PANELS:
        for row in panel.labels:
            assert all(panel.ticks[0] <= figure * panel.scale <= panel.ticks[-1] for _, figure in curves[row]), row
    root = ElementTree.fromstring(render(curves))
    drawn = [each for each in root.iter() if each.get("class", "").startswith("curve")]
    assert len(drawn) == 2 * len(curves)


def test_curves_are_those_of_the_newest_runs(tmp_path: Path) -> None:
    for panel in PANELS:
        for row in panel.labels:
            run = tmp_path / row / "abc" / "seed-1"
            run.mkdir(parents=True)
            record = {"kind": "val", "step": 5, "loss": 2.0, "figures": {"accuracy": 0.5}}
            (run / "metrics.jsonl").write_text(
                json.dumps(record) + "\n" + json.dumps(record | {"kind": "train"}) + "\n"
            )
            (run / "summary.json").write_text("{}")
    found = collect(tmp_path)
    assert found["decision_gru"] == [[5, 0.5]] and found["slstm_char"] == [[5, 2.0]]
