"""Numbers of records as arrays, and thinned curves."""

import math

import numpy as np

from prnn.training.observe.curves import Curves, thin


def test_thinning_keeps_the_ends_every_extreme_and_gaps():
    x = np.arange(10_000.0)
    y = np.sin(x / 50)
    y[4_321], y[7_777], y[5_000] = 99.0, -99.0, np.nan
    kept = thin(x, y, 600)
    assert 500 < len(kept) <= 603
    assert {(0, y[0]), (9_999, y[-1]), (4_321, 99.0), (7_777, -99.0), (5_000, None)} <= set(kept)
    assert kept == sorted(kept, key=lambda point: point[0])
    assert thin(x[:600], y[:600], 600) == list(zip(x[:600].tolist(), y[:600].tolist(), strict=True))
    assert thin(x, np.full(10_000, np.nan), 4) == [(0, None), (5_000, None), (9_999, None)]


def test_a_field_that_only_some_records_have_is_a_gap_only_where_it_is_no_number():
    curves = Curves()
    for step, fields in ((3, {"a": 1.0}), (1, {"b": None, "a": 2}), (2, {"a": math.inf, "f": {"x": 10**400, "y": 5}})):
        curves.add("train", step, fields)
    steps, values = curves.column("train", "a")
    assert steps.tolist() == [1, 2, 3] and values[[0, 2]].tolist() == [2, 1] and math.isnan(values[1])
    assert curves.column("train", "b")[0].tolist() == [1] and len(curves.column("val", "a")[0]) == 0
    assert curves.names("train") == ["a", "f.y"]
