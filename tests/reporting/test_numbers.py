"""Numbers and durations as text."""

from __future__ import annotations

from prnn.reporting.numbers import duration, exact


def test_numbers_in_a_table() -> None:
    assert [exact(each) for each in (None, 1.23456789, 123456.7, 12345, True, "a", float("inf"))] == [
        "–", "1.2346", "123,457", "12,345", "True", "a", "inf",
    ]  # fmt: skip
    assert [duration(each) for each in (None, 3.21, 61, 3725)] == ["–", "3.2 s", "1 min 01 s", "1 h 02 min"]
