"""benchmarks/results/reproductions/: a file for each row, NAME.json, with what its seeds have given.

A file is a list of series: the row itself, and the row with further overrides or on a GPU. A series has its resolved
settings, and an entry for each seed, which is added as the seed ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import files
from benchmarks.common.files import ROOT
from benchmarks.reproduce import settings
from benchmarks.reproduce.rows import Figure
from benchmarks.reproduce.seeds import FAILED, FINISHED
from prnn.errors import UserError

FOLDER = ROOT / "benchmarks" / "results" / "reproductions"
SAME_RUN = ("OMP_NUM_THREADS=", "trainer.threads=", "trainer.device=", "trainer.progress=", "logger")  # where, not what
KEYS = {"name", "overrides", "environment", "device", "processor", "restarts", "settings", "seeds"}
Series = dict[str, Any]
Entry = dict[str, Any]


def load(folder: Path, name: str) -> list[Series]:
    """The series of a row; none without a file. Raises ``UserError`` for a file that holds anything else."""
    path = folder / f"{name}.json"
    try:
        loaded = json.loads(path.read_text())
    except FileNotFoundError:
        return []
    except (OSError, ValueError):
        loaded = None
    if not isinstance(loaded, list) or not all(isinstance(each, dict) and each.keys() >= KEYS for each in loaded):
        raise UserError(f"{path} is not a list of series of runs: mend it, or give another folder with --out.")
    return loaded


def prepare(folder: Path, name: str) -> None:
    """Make the folder. Raises ``UserError`` if the records of the row could not be read or written later."""
    load(folder, name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror}): give another folder with --out.") from None


def names(folder: Path) -> list[str]:
    """The rows that have a file."""
    return sorted(path.stem for path in folder.glob("*.json"))


def add(folder: Path, series: Series, entry: Entry) -> None:
    """Add the entry of a seed to its series, in place of an earlier one of that seed.

    A series that was recorded with other settings is replaced. A run that failed, as one that was killed does, replaces
    nothing that was finished. The write is atomic, and locked against other sweeps.
    """
    with _locked(folder):
        known = load(folder, series["name"])
        before = next((each for each in known if identity(each) == identity(series)), None)
        current = before is not None and not settings.changes(before["settings"], series["settings"])
        seeds = {each["seed"]: each for each in (before["seeds"] if before and current else [])}
        replaced = [seeds.get(entry["seed"], {})] if current else before["seeds"] if before else []
        if entry["status"] == FAILED and any(each.get("status") == FINISHED for each in replaced):
            return
        merged = {**series, "seeds": [each for _, each in sorted((seeds | {entry["seed"]: entry}).items())]}
        kept = [merged if each is before else each for each in known]
        text = json.dumps(kept if before else [*known, merged], indent=1, allow_nan=False)
        files.write(folder / f"{series['name']}.json", text + "\n")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Exclusive access to this folder, by a lock on the folder itself, which leaves no lock file behind."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def identity(series: Series) -> tuple[str, ...]:
    """The key of a series among those of its row."""
    return (*variant(series), "on", series["device"], series["processor"] or "any processor")


def variant(series: Series) -> list[str]:
    """The deviations from the row's own settings: overrides, environment variables and restarts."""
    switches = [f"{name}={value}" for name, value in series["environment"].items()]
    restarts = series["restarts"]
    told = [f"--restarts {restarts['most']} --restart-above {restarts['above']:g}"] if restarts else []
    return [*(each for each in (*series["overrides"], *switches) if not each.startswith(SAME_RUN)), *told]


def finished(series: Series) -> list[Entry]:
    """The entries of the seeds that came to their end."""
    return [each for each in series["seeds"] if each["status"] == FINISHED]


def values(series: Series, figure: Figure) -> list[float]:
    """Those of a metric, of the seeds that finished, where they are finite."""
    found = (entry["figures"].get(figure.key) for entry in finished(series))
    return [value for value in found if value is not None]


def number(value: float | None) -> str:
    """Format with four digits; a value that was not finite is marked as such."""
    if value is None:
        return "not finite"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
