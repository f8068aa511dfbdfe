"""What this process is doing: the heartbeat, the hang report and a trace all read it from here."""

from __future__ import annotations

import time

from torch.profiler import record_function


class Activity:
    """The step, the phase and when something last got done. Setting them is all that the training thread pays.

    Phases of a step: data, forward, backward, agreement, optimizer. Around them: start, record, validation, sample,
    checkpoint, trace, test, and at the end finished, stopped or failed.
    """

    def __init__(self) -> None:
        self.step = 0  # the optimizer step under way, or the last one
        self.phase = "start"
        self.moved = time.monotonic()
        self._tracing = False
        self._label: record_function | None = None  # the phase, in the trace that is being recorded

    def enter(self, phase: str, step: int | None = None) -> None:
        """The phase before is over, a new one begins; with ``step``, that of a new step."""
        self.step = self.step if step is None else step
        self.phase, self.moved = phase, time.monotonic()
        if self._label is not None:
            self._label.__exit__(None, None, None)
            self._label = None
        if self._tracing:
            self._label = record_function(phase)
            self._label.__enter__()

    def move(self) -> None:
        """The phase goes on: another batch of a validation, say."""
        self.moved = time.monotonic()

    def trace(self, on: bool) -> None:
        """Whether a profiler is running, which is to see the phases, beginning with the next."""
        self._tracing = on
        if not on and self._label is not None:
            self._label.__exit__(None, None, None)
            self._label = None
