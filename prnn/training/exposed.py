"""Exposed communication: the time a step waits for other processes while it has nothing else to do."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

Hook = Callable[[Any, dist.GradBucket], torch.futures.Future[torch.Tensor]]


class Exposed:
    """Seconds of a step in which communication was all there was to wait for.

    Counted: from the moment DDP has handed over the last bucket of gradients, when this process has computed all of
    its own, to the end of ``backward()``; and the step's agreements (``World.all_sum``). In all a process waits for
    slower ones too: a straggler shows as a large share on the others.

    Not counted: what ran beside the backward pass (hidden; though on a CPU it takes cores from it), a hook's own
    computing before it sends (compression), and what DDP exchanges at its first step. On a GPU the tail is timed by
    events, on the stream that waits.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if self._cuda else []
        self._handed_over: float | None = None
        self._tail = 0.0

    def hand_over(self) -> None:
        """The last bucket is on its way."""
        self._handed_over = time.perf_counter()
        if self._cuda:
            self._events[0].record()

    def backward_is_through(self) -> None:
        """``backward()`` has returned. Without a bucket since the last step's there was no tail."""
        self._tail = 0.0 if self._handed_over is None else time.perf_counter() - self._handed_over
        if self._cuda:
            self._events[1].record()

    def tail(self) -> float:
        """Seconds of the step's backward pass; to be called once, when the device has caught up."""
        counted, self._handed_over = self._handed_over is not None, None
        if self._cuda and counted:
            return self._events[0].elapsed_time(self._events[1]) / 1e3
        return self._tail


def timed(hook: Hook, exposed: Exposed) -> Hook:
    """DDP's communication ``hook``, telling ``exposed`` when the last bucket has been handed over.

    DDP hands buckets over in order, so that the last is the one for which nothing is left to compute.
    """

    @functools.wraps(hook)  # DDP looks at a hook's name and annotations
    def run(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        future = hook(state, bucket)
        if bucket.is_last():
            exposed.hand_over()
        return future

    return run
