"""The log of a run as it grows."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from prnn.manage import following
from prnn.training import run_dir
from prnn.training.observe import run_state
from tests.manage.conftest import Make


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let these happen, one each time that the log is waited for."""

    def between(*happenings: Callable[[], object]) -> None:
        rest = iter(happenings)
        monkeypatch.setattr(time, "sleep", lambda seconds: next(rest)())

    return between


def end(path: Path, lock: run_dir.Lock) -> Callable[[], None]:
    def act() -> None:
        (path / "heartbeat/rank_0.json").write_bytes(run_state.beat(0, 9, "finished", time.time(), "max_steps"))
        lock.release()

    return act


def test_the_last_lines_of_a_run_that_has_ended(make: Make) -> None:
    path = make("t/a")
    assert list(following.follow(path, 5)) == []
    (path / "train.log").write_bytes(b"one\ntwo\xff\nthree\nfo")
    assert list(following.follow(path, 2)) == ["two\ufffd", "three", "fo"]
    assert list(following.follow(path, 0)) == ["fo"]


def test_a_log_is_followed_from_before_it_begins_until_the_run_ends(make: Make, between: Callable[..., None]) -> None:
    path, log = make("t/a"), Path("runs/t/a/train.log")
    lock = run_dir.Lock(path)

    def append(text: str) -> Callable[[], object]:
        return lambda: log.open("a").write(text)

    last = [append("end\n"), end(path, lock)]
    between(lambda: None, append("one\ntw"), append("o\n"), append("three\n"), lambda: [each() for each in last])
    assert list(following.follow(path, 20)) == ["one", "two", "three", "end"]


def test_a_log_that_is_replaced_is_read_from_its_beginning(make: Make, between: Callable[..., None]) -> None:
    path, log = make("t/a"), Path("runs/t/a/train.log")
    lock = run_dir.Lock(path)
    log.write_text("one\ntwo\nthree\n")

    def replace() -> None:
        log.unlink(missing_ok=True)
        log.write_text("1\n2\n")

    between(lambda: log.write_text("x\n"), log.unlink, replace, end(path, lock))
    assert list(following.follow(path, 1)) == ["three", "x", "1", "2"]
