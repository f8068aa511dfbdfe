"""Curves, axes and the numbers along them."""

from __future__ import annotations

import pytest

from prnn.reporting import ticks
from prnn.reporting.chart import Chart, Curve, drawing, y_axis
from prnn.training.observe.curves import segments


def test_a_gap_breaks_a_line() -> None:
    assert segments([(0, 1.0), (1, None), (2, None), (3, 2.0), (4, 3.0)]) == [[(0, 1.0)], [(3, 2.0), (4, 3.0)]]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (0.1, 0.34, [0.1, 0.15, 0.2, 0.25, 0.3]), (3, 3, [3]),
     (-2e6, 1e6, [-2e6, -1e6, 0, 1e6])],
)  # fmt: skip
def test_ticks_are_round_numbers_within_the_axis(low: float, high: float, expected: list[float]) -> None:
    assert ticks.linear(low, high) == expected


def test_logarithmic_ticks_are_few() -> None:
    assert ticks.logarithmic(0.5, 2000) == [1, 10, 100, 1000]
    assert len(ticks.logarithmic(1e-12, 1e12)) <= 6


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1500, "1,500"), (20_000, "20k"), (2_500_000, "2.5M"), (3e9, "3G"), (1e-4, "1e-4"), (0.125, "0.125"),
     (-12_500, "-12.5k"), (2.5e-7, "2.5e-7"), (1e20, "1e+20")],
)  # fmt: skip
def test_numbers_along_an_axis(value: float, text: str) -> None:
    assert ticks.short(value) == text


def test_numbers_in_a_table() -> None:
    assert [ticks.exact(each) for each in (None, 1.23456789, 123456.7, 12345, True, "a", float("inf"))] == [
        "–", "1.2346", "123,457", "12,345", "True", "a", "inf",
    ]  # fmt: skip
    assert [ticks.duration(each) for each in (None, 3.21, 61, 3725)] == ["–", "3.2 s", "1 min 01 s", "1 h 02 min"]


def test_an_axis_is_logarithmic_where_values_are_far_apart_and_none_is_zero() -> None:
    def axis(*values: float, whole: bool = False):
        return y_axis(Chart("", "", [Curve("", list(enumerate(values)))], whole=whole), 260)

    assert axis(1, 500).log and not axis(1, 50).log and not axis(0, 500).log and not axis(1, 500, whole=True).log
    assert axis(20, 30, whole=True).low == 0
    assert axis(7).low < 7 < axis(7).high and axis(0).low < 0 < axis(0).high  # one value only
    assert not axis(5e-324, 1.0).log


def test_a_drawing_puts_points_where_its_axes_say() -> None:
    drawn = drawing(Chart("t", "step", [Curve("c", [(0, 0.0), (50, 10.0), (100, None)])], whole=True))
    assert drawn is not None
    box, (line,) = drawn["box"], drawn["curves"][0]["lines"]
    (x0, y0), (x1, y1) = (tuple(map(float, point.split(","))) for point in line.split())
    assert (x0, y0) == (box["left"], box["bottom"])
    assert x1 == pytest.approx((box["left"] + box["right"]) / 2, abs=0.1) and box["top"] < y1 < box["bottom"]
    assert drawn["data"]["curves"][0]["points"] == [[0, 0], [50, 10], [100, None]]


def test_a_lonely_point_is_a_dot_and_no_point_is_no_chart() -> None:
    many = [(float(x), 1.0 if x != 5 else None) for x in range(7)] + [(float(x), 1.0) for x in range(7, 90)]
    drawn = drawing(Chart("t", "step", [Curve("c", [(0, 2.0), (1, None), *((x + 2, y) for x, y in many)])]))
    assert drawn is not None and len(drawn["curves"][0]["dots"]) == 1 and len(drawn["curves"][0]["lines"]) == 2
    assert drawing(Chart("t", "step", [Curve("c", [(0, None)]), Curve("d", [])])) is None
    assert drawing(Chart("t", "step", [Curve("c", [(0, 3.0)])])) is not None


def test_curves_beyond_the_colours_begin_again_dashed() -> None:
    drawn = drawing(Chart("t", "step", [Curve(str(i), [(0, 1.0), (1, 2.0)], color=i) for i in range(9)]))
    assert drawn is not None
    assert (drawn["curves"][8]["color"], drawn["curves"][8]["style"]) == (0, "bold again")
    assert drawn["curves"][7]["style"] == "bold"
