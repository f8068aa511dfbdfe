"""A function in a thread of its own, whose end is never unnoticed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """``function`` in a thread; ``result`` tells how it ended.

    Not an executor: the interpreter waits for an executor's threads on its way out, and this one may hang in a write.
    """

    def __init__(self, function: Callable[[], T], name: str) -> None:
        self._function, self._future = function, Future[T]()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._future.set_result(self._function())
        except BaseException as error:  # torch's CheckpointException is no Exception
            self._future.set_exception(error)

    def result(self, seconds: float | None = None) -> T:
        """What the function returned; raises what it raised, or ``TimeoutError`` where it has not ended by then."""
        return self._future.result(seconds)
