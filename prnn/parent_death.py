"""A process that ends with its parent, even where the parent is killed:

python -m prnn.parent_death SIGNAL PID COMMAND ...

runs COMMAND, which gets SIGNAL when the thread that has started it ends, or with it the process PID. The parent-death
signal is kept across exec, so that this works for third-party programs too. Other systems than Linux have none: there
the command just runs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1  # prctl(2)


def command(arguments: Sequence[str], number: signal.Signals = signal.SIGKILL) -> list[str]:
    """``arguments`` as a command that gets ``number`` when the thread that starts it ends."""
    return [sys.executable, "-m", "prnn.parent_death", str(int(number)), str(os.getpid()), *arguments]


def end_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process ``number`` when its parent ends. Exits if ``parent`` has ended already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    try:
        os.kill(parent, 0)
    except ProcessLookupError:
        sys.exit(f"process {parent}, which this one was to end with, has ended")


if __name__ == "__main__":
    end_with_parent(int(sys.argv[2]), int(sys.argv[1]))
    if os.getppid() != int(sys.argv[2]):  # it ended before, and is still a zombie
        sys.exit(f"process {sys.argv[2]}, which this one was to end with, has ended")
    try:
        os.execvp(sys.argv[3], sys.argv[3:])
    except OSError as error:
        sys.exit(f"error: {sys.argv[3]} does not start: {error.strerror}")
