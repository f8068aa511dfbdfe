"""A process of its own for what may crash: trials go in as seeds, and their faults come out.

``main`` is the child's side, in a module that is run with ``python -m``; ``ask`` the side of the target's trial.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable

ANSWER_SECONDS = 120.0  # a trial that takes longer hangs


class _Child:
    """A process that runs ``module``: seeds go in, an answer comes back for each."""

    def __init__(self, module: str) -> None:
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  (it lives as long as the process)
        command, environment = [sys.executable, "-m", module], {**os.environ, "OMP_NUM_THREADS": "2"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, env=environment
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.seeds, self.answers = self.process.stdin, self.process.stdout
        atexit.register(self.end)
        self.answers.readline()  # it has imported torch, however long that takes

    def ask(self, seed: int) -> str | None:
        """What was wrong with this trial, or None."""
        with contextlib.suppress(BrokenPipeError):
            self.seeds.write(f"{seed}\n".encode())
            self.seeds.flush()
        ready, _, _ = select.select([self.answers], [], [], ANSWER_SECONDS)
        line = self.answers.readline() if ready else b""
        if line:
            return json.loads(line)
        self.end()
        how = f"the process ended with {self.process.returncode}" if ready else "no answer: it hangs"
        self.errors.seek(0)
        return f"{how}\n{self.errors.read().decode(errors='replace')[-20000:]}"

    def end(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.seeds.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


_running: dict[str, _Child] = {}


def ask(module: str, seed: int) -> None:
    """Make the trial ``seed`` in the child that runs ``module``; AssertionError with what was wrong."""
    if module not in _running or _running[module].process.returncode is not None:
        _running[module] = _Child(module)
    problem = _running[module].ask(seed)
    assert problem is None, problem


def main(check: Callable[[int], str | None]) -> None:
    """Answer the seeds on stdin, a line each: what was wrong with that trial, or null."""
    import faulthandler

    import torch

    if "ASAN_OPTIONS" not in os.environ:
        faulthandler.enable()
    torch.use_deterministic_algorithms(True)  # fresh memory is NaN
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(check(int(line))), flush=True)
