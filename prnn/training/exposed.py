"""Exposed communication: the part of a step's communication time that computation does not hide."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

Hook = Callable[[Any, dist.GradBucket], torch.futures.Future[torch.Tensor]]


class Exposed:
    """Seconds of a step that were spent waiting for communication only.

    Counted: from the launch of DDP's last bucket all-reduce, when this rank has computed all of its gradients, to the
    end of ``backward()``; and the step's ``World.all_sum`` collectives. Both include waiting for slower ranks: a
    straggler shows as a large share on the others.

    Not counted: communication overlapped with the backward pass (though on a CPU it takes cores from it), a hook's
    computation before it sends (compression), and DDP's exchanges at its first step. On a GPU the tail is timed with
    CUDA events on the waiting stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if self._cuda else []
        self._handed_over: float | None = None
        self._tail = 0.0

    def hand_over(self) -> None:
        """Mark the launch of the last bucket."""
        self._handed_over = time.perf_counter()
        if self._cuda:
            self._events[0].record()

    def backward_is_through(self) -> None:
        """Mark the return of ``backward()``. The tail is 0 if no bucket was launched since the last step."""
        self._tail = 0.0 if self._handed_over is None else time.perf_counter() - self._handed_over
        if self._cuda:
            self._events[1].record()

    def tail(self) -> float:
        """Exposed seconds of the step's backward pass; to be called once, after the device is synchronized."""
        counted, self._handed_over = self._handed_over is not None, None
        if self._cuda and counted:
            return self._events[0].elapsed_time(self._events[1]) / 1e3
        return self._tail


def timed(hook: Hook, exposed: Exposed) -> Hook:
    """Wrap DDP's communication ``hook`` so that it reports the launch of the last bucket to ``exposed``.

    DDP launches buckets in order, so that nothing is left to compute after the last.
    """

    @functools.wraps(hook)  # DDP checks a hook's name and annotations
    def run(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        future = hook(state, bucket)
        if bucket.is_last():
            exposed.hand_over()
        return future

    return run
