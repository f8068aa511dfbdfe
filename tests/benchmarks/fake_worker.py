"""A worker whose items do what they are called: for the tests of benchmarks/gpu_check."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from benchmarks.gpu_check.workers import Result, serve

lost = False


def work(name: str) -> Result:
    global lost
    what = name.split()[0]
    if what == "hangs":
        time.sleep(600)
    if what == "crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "sticky" or lost:  # a CUDA error: nothing in this process works after it
        lost = True
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore of it")
    if what == "slow":
        time.sleep(0.5)
    if what == "leaves":  # a child that would go on
        Path(name.split()[1]).write_text(str(os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "600")))
        time.sleep(600)
    return {"status": "wrong" if what == "wrong" else "passed", "pid": os.getpid(), "name": "its own"}


if __name__ == "__main__":
    sys.exit(serve(work, lambda: lost))
