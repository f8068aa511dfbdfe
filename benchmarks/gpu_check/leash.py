"""Run a command that must not outlive its parent process:

python -m benchmarks.gpu_check.leash PID COMMAND ...

The parent-death signal is kept across exec, so that this works for third-party programs too.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2)


def end_with_parent(supervisor: int) -> None:
    """Have the kernel kill this process when its parent ends. Exits if ``supervisor`` has ended already."""
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
