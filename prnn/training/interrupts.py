"""Signals as flags, exchanged between two steps, and as one exception once all processes agree on a stop."""

from __future__ import annotations

import _thread
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

# Ctrl-C; a launcher's or scheduler's request to end; Slurm's warning before the time limit, and submitit's.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopRequested(Exception):
    """A signal that any process received; raised on all of them at the same point."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class _CutShort(BaseException):
    """Raised by a signal in the middle of what may be left; an ``except Exception`` there does not stop it."""


class Interrupts:
    """A context in which the first signal asks for a stop; the second Ctrl-C stops at once (KeyboardInterrupt)."""

    def __init__(self, speak: bool = True) -> None:
        self.received: set[int] = set()
        self._speak = speak
        self._may_leave = False
        self._passed_on: int | None = None  # another process's signal, which may still come here too
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in self.received:
            if self._passed_on == number:  # of the first Ctrl-C, a little later than elsewhere
                self._passed_on = None
                return
            raise KeyboardInterrupt
        self.received.add(number)
        if self._speak:
            hint = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
            # os.write: a handler may run in the middle of a buffered write to sys.stderr.
            with suppress(OSError):  # nobody reads it, or it goes to a full disk
                os.write(2, f"\nprnn: {signal.Signals(number).name}: saving and stopping{hint}\n".encode())
        if self._may_leave:
            self._may_leave = False
            raise _CutShort

    def cut_short(self, read: Callable[[], T]) -> T | None:
        """What ``read`` returns, or None where a signal came before its end. It must be such as can be left anywhere:
        it writes nothing, and what it changes is put right by the caller.
        """
        try:
            self._may_leave = True
            if self.received:
                return None
            value = read()
            self._may_leave = False
            return value
        except _CutShort:
            return None
        finally:
            self._may_leave = False

    def pass_on(self, number: int) -> None:
        """Let the main thread receive a signal that another process has had; called in another thread."""
        if number not in self.received:
            self._passed_on = number
            _thread.interrupt_main(signal.Signals(number))

    def flags(self) -> list[float]:
        """One number for each of ``SIGNALS``, to be summed over the processes."""
        return [float(number in self.received) for number in SIGNALS]


def first_signal(flags: list[float]) -> int | None:
    """The signal that any process received, from ``flags`` summed over the processes."""
    return next((int(number) for number, flag in zip(SIGNALS, flags, strict=True) if flag), None)


def raise_if_requested(flags: list[float]) -> None:
    """Raise ``StopRequested`` where any process received a signal, from ``flags`` summed over the processes."""
    number = first_signal(flags)
    if number is not None:
        raise StopRequested(number)
