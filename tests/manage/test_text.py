"""Tables that fit a terminal."""

from __future__ import annotations

from prnn.manage import text
from prnn.manage.text import Table

TABLE = Table(["name", "state", "steps"], [["a", "failed (no space left on device)", "1,000"], ["bb", "done", "5"]])


def test_a_table_takes_what_it_needs() -> None:
    assert text.lines(TABLE, None, ("steps",), "state", ("steps",)) == [
        "name  state                             steps",
        "a     failed (no space left on device)  1,000",
        "bb    done                                  5",
    ]
    assert text.lines(Table(["a", "b"], [])) == ["a  b"]


def test_one_column_is_cut_and_others_are_left_out_where_the_terminal_is_narrow() -> None:
    assert text.lines(TABLE, 40, ("steps",), "state", ("steps",)) == [
        "name  state                        steps",
        "a     failed (no space left on d…  1,000",
        "bb    done                             5",
    ]
    assert text.lines(TABLE, 30, ("steps",), "state", ("steps",)) == [
        "name  state",
        "a     failed (no space left o…",
        "bb    done",
    ]
    assert max(map(len, text.lines(TABLE, 5, (), "state", ("steps",)))) == 4 + 2 + 20  # as narrow as it gets


def test_a_table_that_is_too_wide_is_stacked() -> None:
    assert text.stacked(Table(["", "run a", "b"], [["state", "done", ""]])) == ["state", "  run a  done", "  b"]


def test_losses() -> None:
    assert [text.loss(value) for value in (None, 1.23456, -0.5, 12345678.0)] == ["–", "1.2346", "-0.5000", "1.23e+07"]
