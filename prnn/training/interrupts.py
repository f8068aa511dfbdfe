"""Signals become flags, looked at between two steps."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

# Ctrl-C; a launcher's or scheduler's request to end; Slurm's warning before the time limit, and submitit's.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Interrupts:
    """A context in which the first signal asks for a stop; the second Ctrl-C stops at once (KeyboardInterrupt)."""

    def __init__(self, speak: bool = True) -> None:
        self.received: set[int] = set()
        self._speak = speak
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
            raise KeyboardInterrupt
        self.received.add(number)
        if self._speak:
            hint = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
            # os.write: a handler may run in the middle of a buffered write to sys.stderr.
            os.write(2, f"\nprnn: {signal.Signals(number).name}: saving and stopping{hint}\n".encode())

    def flags(self) -> list[float]:
        """One number for each of ``SIGNALS``, to be summed over the processes."""
        return [float(number in self.received) for number in SIGNALS]


def first_signal(flags: list[float]) -> int | None:
    """The signal that any process received, from summed ``flags``."""
    return next((int(number) for number, flag in zip(SIGNALS, flags, strict=True) if flag), None)
