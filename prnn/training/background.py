"""A function in a background thread whose result or exception is never lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """Runs ``function`` in a daemon thread; ``result`` returns its value or raises its exception.

    Not an executor: the interpreter joins an executor's threads at exit, and this one may hang in a write.
    """

    def __init__(self, function: Callable[[], T], name: str) -> None:
        self._function, self._future = function, Future[T]()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._future.set_result(self._function())
        except BaseException as error:  # torch's CheckpointException does not derive from Exception
            self._future.set_exception(error)

    def result(self, seconds: float | None = None) -> T:
        """The function's return value; raises its exception, or ``TimeoutError`` if it has not ended by then."""
        return self._future.result(seconds)
