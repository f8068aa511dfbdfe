"""Runs a command that must not outlive the process that wants it:

python -m benchmarks.gpu_check.leash PID COMMAND ...

The wish to be killed with the parent survives the command's start: so a program that is not ours is held too.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2)


def end_with_parent(supervisor: int) -> None:
    """The kernel kills this process when its parent is gone, however that went. Ends if ``supervisor`` is already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        os.kill(supervisor, 0)
    except ProcessLookupError:
        sys.exit("the supervisor has ended")


if __name__ == "__main__":
    end_with_parent(int(sys.argv[1]))
    try:
        os.execvp(sys.argv[2], sys.argv[2:])
    except OSError as error:
        sys.exit(f"error: {sys.argv[2]} does not start: {error.strerror}")
