"""The log of a run as it grows."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from prnn.training.observe import run_state
from prnn.training.run_files import LOG

POLL_SECONDS = 0.5


def follow(path: Path, count: int) -> Iterator[str]:
    """The last ``count`` lines of the log of the run in ``path``, then its new ones until the run has ended.

    The log may begin, or be replaced, later.
    """
    log, file, rest = path / LOG, None, b""
    try:
        while True:
            active = run_state.read(path).active  # before the log is read: its last lines come before the end
            if file is None and log.is_file():
                file = log.open("rb")
                if count >= 0:
                    yield from _last(file, count)
                    count = -1  # of another file, all lines
            if file is not None:
                rest += file.read()
                *whole, rest = rest.split(b"\n")
                yield from (line.decode(errors="replace") for line in whole)
                if _is_replaced(file, log):
                    if rest:
                        yield rest.decode(errors="replace")
                    file.close()
                    file, rest = None, b""
                    continue
            if not active:
                if rest:
                    yield rest.decode(errors="replace")
                return
            time.sleep(POLL_SECONDS)
    finally:
        if file is not None:
            file.close()


def _last(file: BinaryIO, count: int) -> list[str]:
    """The last whole lines of a file, which is left after them."""
    lines: deque[bytes] = deque(maxlen=count)
    end = 0
    for line in file:
        if line.endswith(b"\n"):
            lines.append(line[:-1])
            end += len(line)
    file.seek(end)
    return [line.decode(errors="replace") for line in lines]


def _is_replaced(file: BinaryIO, path: Path) -> bool:
    """Whether ``path`` is another file now, or shorter than what was read of it."""
    try:
        status = path.stat()
    except OSError:  # there may be one again
        return False
    return not os.path.samestat(status, os.fstat(file.fileno())) or status.st_size < file.tell()
