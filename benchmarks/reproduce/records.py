"""benchmarks/results/reproductions.json: a list of what ``benchmarks.reproduce`` found, oldest first."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import files
from benchmarks.common.files import ROOT
from prnn.errors import UserError

RECORDS = ROOT / "benchmarks" / "results" / "reproductions.json"
SAME_RUN = ("OMP_NUM_THREADS=", "trainer.threads=", "trainer.device=", "trainer.progress=", "logger")  # where, not what
Record = dict[str, Any]


def load(path: Path) -> list[Record]:
    """The records in ``path``; none where there is no such file. Raises ``UserError`` where it holds something else."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return []
    except (OSError, ValueError):
        found = None
    if not isinstance(found, list) or not all(isinstance(each, dict) and "name" in each for each in found):
        raise UserError(f"{path} is not a list of reproductions: mend it, or give another file with --out.")
    return found


def append(path: Path, record: Record) -> bool:
    """Add ``record``, the earlier ones stay; False where the same runs are there already, and nothing else since.

    The file is another one or the old one, never half of one, and two sweeps that end together are both in it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path.parent):
        known = load(path)
        before = [each for each in known if identity(each) == identity(record)]
        if before and all(before[-1][key] == record[key] for key in ("code", "seeds", "figures")):
            return False
        files.write(path, json.dumps([*known, record], indent=1, allow_nan=False) + "\n")
    return True


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other process is between reading and writing in this folder; a lock on the folder leaves no file behind."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def identity(record: Record) -> tuple[str, ...]:
    """Records of one identity are of one line in the table: the latest is shown."""
    return (record["name"], *variant(record), "on", *where(record))


def variant(record: Record) -> list[str]:
    """What makes it another run than the row's own: overrides, and switches in the environment."""
    switches = [f"{name}={value}" for name, value in record["environment"].items()]
    return [setting for setting in (*record["overrides"], *switches) if not setting.startswith(SAME_RUN)]


def where(record: Record) -> tuple[str, ...]:
    """The machine: its processor, the threads used, and its GPU where that one computed."""
    device = record["machine"]["device"]
    return (
        record["machine"]["processor"],
        f"{record['threads']}",
        *([device] if device not in (None, "cpu") else []),
    )


def latest(records: list[Record]) -> list[Record]:
    """The last record of each identity, in the order in which these first came."""
    return list({identity(record): record for record in records}.values())


def number(value: float | None) -> str:
    """Four digits; a value that was not finite is told as that."""
    if value is None:
        return "not finite"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
