"""The current step and phase of this process, read by the heartbeat, the hang report and the profiler."""

from __future__ import annotations

import time

from torch.profiler import record_function


class Activity:
    """The step, the phase and the time of the last progress. The training thread only sets attributes.

    Phases of a step: data, forward, backward, agreement, optimizer. Around them: start, record, validation, sample,
    checkpoint, trace, test, and at the end finished, stopped or failed, with a reason.
    """

    def __init__(self) -> None:
        self.step = 0  # the optimizer step under way, or the last one
        self.phase = "start"
        self.reason = ""  # of the end
        self.moved = time.monotonic()
        self._tracing = False
        self._label: record_function | None = None  # labels the phase in the trace being recorded

    def enter(self, phase: str, step: int | None = None) -> None:
        """Start a new phase, which ends the previous one; with ``step``, a new step."""
        self.step = self.step if step is None else step
        self.phase, self.moved = phase, time.monotonic()
        if self._label is not None:
            self._label.__exit__(None, None, None)
            self._label = None
        if self._tracing:
            self._label = record_function(phase)
            self._label.__enter__()

    def end(self, phase: str, reason: str) -> None:
        """Enter the last phase, for a ``reason``: a limit, a signal or an error."""
        self.reason = reason
        self.enter(phase)

    def move(self) -> None:
        """Mark progress within a phase, such as another validation batch."""
        self.moved = time.monotonic()

    def trace(self, on: bool) -> None:
        """Turn labels for a running profiler on or off, from the next phase on."""
        self._tracing = on
        if not on and self._label is not None:
            self._label.__exit__(None, None, None)
            self._label = None
