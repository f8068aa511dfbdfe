"""Supervised worker processes for work that may hang, crash or lose the GPU; each item has a deadline.

A worker receives the names of a group's items, reports over a pipe the start and result of each, and exits after an
error that leaves its GPU unusable. The supervisor kills a worker that exceeds the deadline of its item or has died,
with all its child processes, records that, and starts another one with the remaining items.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from benchmarks.common.files import ROOT
from prnn import parent_death

START_SECONDS = 60.0  # importing torch from a cold disk, starting CUDA
POLL_SECONDS = 1.0
END_SECONDS = 10.0  # after the last item: CUDA's teardown, and that of a tool around the worker
GPU_LOST = 3  # exit status of a worker after an error that left its GPU unusable
Result = dict[str, object]


@dataclass(frozen=True)
class Item:
    """A unit of work: ``seconds`` is its deadline, from its start."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Group:
    """Items that share a process. ``command`` starts the worker, which reads the names from standard input.
    ``verdict``: the exit status, of a tool around the worker, decides whether the last item passed.
    """

    items: Sequence[Item]
    command: Sequence[str]
    environment: tuple[tuple[str, str], ...] = ()
    verdict: bool = False


class Supervisor:
    """Runs groups; calls ``begun(name)`` and ``done(name, result)`` for each item. Everything stops at ``deadline``
    (``time.monotonic``); items that were not started by then are reported as not run.
    """

    def __init__(
        self,
        log: Path,
        done: Callable[[str, Result], None],
        deadline: float,
        begun: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.log, self.deadline = log, deadline
        self._done, self._begun, self._lock = done, begun, threading.Lock()
        self._live: set[subprocess.Popen[bytes]] = set()

    def run(self, groups: Sequence[Group], parallel: int = 1) -> None:
        """Run all groups, ``parallel`` at a time. Exceptions of ``done`` or of the supervisor propagate at the end."""
        with ThreadPoolExecutor(max(1, parallel)) as threads:
            running = [threads.submit(self._run_group, group) for group in groups]
            try:
                wait(running)
            except BaseException:  # Ctrl-C: stop running items, and report the rest as not run
                self.deadline = 0.0
                for process in list(self._live):
                    kill(process)
                wait(running)
                raise
        for group in running:
            group.result()

    def _report(self, name: str, status: str, why: str) -> None:
        self._pass_on(name, {"status": status, "why": why})

    def _pass_on(self, name: str, result: Result) -> None:
        with self._lock:
            self._done(name, result)

    def _run_group(self, group: Group) -> None:
        left = list(group.items)
        failed_starts = 0
        while left and time.monotonic() < self.deadline:
            before = len(left)
            why = self._run_worker(group, left)
            failed_starts = 0 if len(left) < before else failed_starts + 1
            if failed_starts == 2:  # the items are not the cause
                for item in left:
                    self._report(item.name, status="not run", why=f"a worker did not start twice: {why}")
                return
        for item in left:
            self._report(item.name, status="not run", why="out of time")

    def _run_worker(self, group: Group, left: list[Item]) -> str:
        """Run one worker, and remove items with a result from ``left``. Returns why it ended."""
        read_end, write_end = os.pipe()
        environment = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "PRNN_WORKER_PIPE": str(write_end)}
        with self.log.open("a") as log:
            process = subprocess.Popen(
                parent_death.command(group.command),
                cwd=ROOT,
                env=os.environ | environment | dict(group.environment),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[write_end],
                start_new_session=True,  # so that its child processes can be killed with it
            )
        os.close(write_end)
        self._live.add(process)
        try:
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps({"supervisor": os.getpid(), "items": [i.name for i in left]}).encode())
                process.stdin.close()
            except BrokenPipeError:
                pass  # it has died, as the pipe below shows
            return self._listen(process, os.fdopen(read_end, "rb", buffering=0), left, group.verdict)
        finally:
            kill(process)
            self._live.discard(process)

    def _listen(self, process: subprocess.Popen[bytes], pipe: IO[bytes], left: list[Item], verdict: bool) -> str:
        seconds = {item.name: item.seconds for item in left}
        current, last, result, text = "", "", Result(), b""
        began, limit, end, why = time.monotonic(), START_SECONDS, "", ""
        with pipe, selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while not end:
                until = min(began + limit, self.deadline) - time.monotonic()
                if until <= 0:
                    end, why = "hung", f"no result after {limit:g} s"
                    break
                gone = process.poll() is not None  # checked first: its last messages are then in the pipe
                if not selector.select(min(until, POLL_SECONDS)):
                    if gone:  # a child process holds the pipe open
                        break
                    continue
                data = os.read(pipe.fileno(), 1 << 16)
                if not data:
                    break
                *lines, text = (text + data).split(b"\n")
                for line in lines:
                    try:
                        message = json.loads(line)
                        if "begin" in message:
                            current, began, limit = message["begin"], time.monotonic(), seconds[message["begin"]]
                            self._begun(current)
                            continue
                        result = message["result"] | {"seconds": round(time.monotonic() - began, 3)}
                        result["status"] = str(result["status"])
                    except (ValueError, TypeError, KeyError, RecursionError):
                        end, why = "error", f"its worker said {line[:80]!r}"
                        break
                    if current:
                        self._pass_on(current, dict(result))
                        _take(left, current)
                        current, last, began, limit = "", current, time.monotonic(), START_SECONDS
        counts = verdict or not end  # whether the exit status applies to the last item
        if not end:
            try:
                status = process.wait(max(0.0, min(END_SECONDS, self.deadline - time.monotonic())))
                why = f"its process ended with {'signal' if status < 0 else 'status'} {abs(status)}"
                end = "" if status in (0, GPU_LOST) else "died"
            except subprocess.TimeoutExpired:
                end, why = "hung", f"its process did not end within {END_SECONDS:g} s"
        if time.monotonic() >= self.deadline:
            end, why, counts = "out of time", "the whole check ran out of time", verdict
        if current:
            self._report(current, status=end or "died", why=why)
            _take(left, current)
        elif last and end and counts:  # a crash at exit, or the verdict of a tool around the worker
            self._pass_on(last, result | {"status": end, "why": why})
        return why


def _take(left: list[Item], name: str) -> None:
    left[:] = [item for item in left if item.name != name]


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def serve(work: Callable[[str], Result], lost: Callable[[], bool]) -> int:
    """A worker's main loop: runs ``work`` on each item from standard input; exceptions are recorded as results.
    ``lost`` is called after an exception and returns whether the GPU is unusable for this process.
    """
    request = json.load(sys.stdin)
    parent_death.end_with_parent(request["supervisor"])
    pipe = os.fdopen(int(os.environ["PRNN_WORKER_PIPE"]), "w", buffering=1)
    for name in request["items"]:
        print(f"== {name}", flush=True)
        pipe.write(json.dumps({"begin": name}) + "\n")
        gone = False
        try:
            result = work(name)
        except Exception as error:
            lines = str(error).splitlines() or [""]
            result = {"status": "error", "why": f"{type(error).__name__}: {lines[0]}"}
            gone = lost()
        print(f"   {result}", flush=True)
        pipe.write(json.dumps({"result": result}) + "\n")
        if gone:
            return GPU_LOST
    return 0
