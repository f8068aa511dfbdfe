"""benchmarks/results/reproductions.json: the list of records of ``benchmarks.reproduce``, oldest first."""

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
    """The records in ``path``; empty if there is no such file. Raises ``UserError`` if it holds anything else."""
    try:
        loaded = json.loads(path.read_text())
    except FileNotFoundError:
        return []
    except (OSError, ValueError):
        loaded = None
    if not isinstance(loaded, list) or not all(isinstance(each, dict) and "name" in each for each in loaded):
        raise UserError(f"{path} is not a list of reproductions: mend it, or give another file with --out.")
    return loaded


def append(path: Path, record: Record) -> bool:
    """Append ``record``; returns False if the latest record already has the same runs.

    The write is atomic, and locked against sweeps that end at the same time.
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
    """Exclusive access to this folder, by a lock on the folder itself, which leaves no lock file behind."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def identity(record: Record) -> tuple[str, ...]:
    """The key of a line in the table; of several records with one identity the latest is shown."""
    return (record["name"], *variant(record), "on", *where(record))


def variant(record: Record) -> list[str]:
    """The deviations from the row's own settings: overrides and environment variables."""
    switches = [f"{name}={value}" for name, value in record["environment"].items()]
    return [setting for setting in (*record["overrides"], *switches) if not setting.startswith(SAME_RUN)]


def where(record: Record) -> tuple[str, ...]:
    """The machine: its processor, the threads used, and the GPU if it was used."""
    device = record["machine"]["device"]
    return (
        record["machine"]["processor"],
        f"{record['threads']}",
        *([device] if device not in (None, "cpu") else []),
    )


def latest(records: list[Record]) -> list[Record]:
    """The last record of each identity, in order of first appearance."""
    return list({identity(record): record for record in records}.values())


def number(value: float | None) -> str:
    """Format with four digits; a value that was not finite is marked as such."""
    if value is None:
        return "not finite"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
