"""The README's picture is what the committed results say."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from benchmarks import speedup_picture
from benchmarks.speedup_picture import PICTURE, Panel, bars, label, panels, render


def test_the_picture_is_current() -> None:
    """If not: python -m benchmarks.speedup_picture"""
    assert PICTURE.read_text() == render(panels())


def test_every_bar_fits_its_axis() -> None:
    shown = panels()
    assert all(panel.bars for panel in shown)
    assert all(panel.ticks[0] <= speedup <= panel.ticks[-1] for panel in shown for _, speedup in panel.bars)


@pytest.mark.parametrize(
    ("name", "shown"),
    [("rnn_relu T784 B32 I1 H100", "RNN T784 B32 H100"), ("lstm T128 B32 I512 H512 bf16", "LSTM T128 B32 H512 bf16")],
)
def test_label(name: str, shown: str) -> None:
    assert label(name) == shown


def test_only_correct_forward_and_backward_cases_have_bars() -> None:
    timed = {"name": "gru T1 B1 I1 H1", "ratios": {"torch.nn": {"median": 2.0}}}
    cases = [
        timed | {"mode": "forward+backward"},
        timed | {"mode": "forward"},
        {"name": "wrong", "mode": "forward+backward", "disagreement": ["x"]},
    ]
    assert bars({"cases": cases}) == [("GRU T1 B1 H1", 2.0)]


def test_a_slower_layer_has_a_bar_to_the_left_of_one() -> None:
    root = ElementTree.fromstring(render([Panel("CPU", [("fast", 4.0), ("slow", 0.5)])]))
    found = {bar.get("class"): bar for bar in root.iter() if bar.tag.endswith("rect")}
    one = speedup_picture._x(1)
    assert float(found["faster"].attrib["x"]) == one > float(found["slower"].attrib["x"])
    texts = [text.text for text in root.iter() if text.tag.endswith("text")]
    assert "4.0x" in texts and "0.5x" in texts
