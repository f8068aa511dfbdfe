"""RecurrentPPO's contenders: they learn the same, or are not timed, and what is made of their times."""

import pytest

pytest.importorskip("sb3_contrib", reason="needs sb3-contrib: pip install 'prnn[sb3]'")

from benchmarks import sb3


def small(name, epochs):
    return sb3.Contender(name, 2, 64, 8, epochs)


def test_contenders_learn_the_same_and_another_is_not_timed(monkeypatch):
    assert sb3.check(small) < sb3.TOLERANCE
    whole = sb3.whole_sequences
    monkeypatch.setattr(sb3, "whole_sequences", lambda x, state, starts, lstm: whole(x, state, 0 * starts, lstm))
    with pytest.raises(SystemExit, match="differs by .* nothing was timed"):
        sb3.check(small)


def test_phases_are_timed_and_compared_round_by_round():
    seconds = sb3.measure(small, 2, 1)
    assert list(seconds) == [sb3.STOCK, sb3.WHOLE, sb3.OURS]
    assert all(len(values) == 2 and min(values) > 0 for phases in seconds.values() for values in phases.values())
    times = {"collect": [1.0, 1.0], "train": [2.0, 4.0], "total": [3.0, 5.0]}
    found = sb3.compare({"sb3-contrib": times, "prnn": times | {"train": [1.0, 1.0], "total": [2.0, 2.0]}}, 10)
    assert found["ratio"]["prnn"]["train"] == {"median": 3.0, "min": 2.0, "max": 4.0}
    assert found["steps_per_second"]["prnn"]["total"] == {"median": 5.0, "min": 5.0, "max": 5.0}
