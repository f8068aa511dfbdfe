"""The checkpoint of a long run that was stopped, kept with the records until the run is done.

A run of hours then goes on where it was, on another machine and in another checkout: its folder under
benchmarks/results/reproductions/ is committed, and removed when the run has come to its end.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.reproduce import settings
from benchmarks.reproduce.seeds import SEED, Place
from prnn.training import checkpoint, run_files
from prnn.training.checkpoint import directory

FROM_MINUTES = 30  # a row that takes less is begun again instead
MOST_BYTES = 1_000_000  # it is committed
SEGMENTS = "segments.json"  # where and when the parts of the run were


def keep(parking: Path, place: Place, segment: dict[str, Any]) -> str:
    """Copy the newest checkpoint of a run, and its best one, to ``parking``; says what was done."""
    found = checkpoint.listing(place.run_dir)
    if not found:
        return "stopped before its first checkpoint"
    best = checkpoint.best_name(place.run_dir)
    kept = {found[-1], *(path for path in found if path.name == best)}
    size = sum(file.stat().st_size for path in kept for file in path.iterdir())
    if size > MOST_BYTES:
        return f"not parked: its last and its best checkpoint have {size:,} bytes, more than {MOST_BYTES:,}"
    before = segments(parking, place.seed)
    remove(parking, place.seed)
    target = _folder(parking, place.seed)
    for path in kept:
        shutil.copytree(path, checkpoint.folder(target) / path.name)
    for name in (f"{run_files.CHECKPOINTS}/{checkpoint.BEST}", run_files.CONFIG, run_files.OVERRIDES, run_files.NOTE):
        if (place.run_dir / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(place.run_dir / name, target / name)
    for manifest in target.rglob(checkpoint.MANIFEST):
        _forget_run_dir(manifest)
    (target / SEGMENTS).write_text(json.dumps([*before, segment], indent=1) + "\n")
    return f"parked at step {checkpoint.step_of(found[-1]):,} in {target}"


def _forget_run_dir(path: Path) -> None:
    """Set run_dir of the manifest's configuration to null: what is committed names no path of a machine."""
    manifest = directory.parse_manifest(path.parent)
    manifest["config"]["run_dir"] = None
    path.write_text(json.dumps({**manifest, "checksum": directory.checksum(manifest)}, indent=1))


def restore(parking: Path, place: Place, today: settings.Settings) -> int:
    """Copy a parked run to ``place``, unless one that is as far is there; returns its step, or 0 if nothing was copied.

    A run with other settings than today's is not continued, and is removed.
    """
    source = _folder(parking, place.seed)
    found = checkpoint.listing(source)
    if not found or checkpoint.last_step(place.run_dir) >= checkpoint.step_of(found[-1]):
        return 0
    if _changed(source, today):
        remove(parking, place.seed)
        return 0
    place.clear()
    shutil.copytree(source, place.run_dir, ignore=shutil.ignore_patterns(SEGMENTS))
    return checkpoint.step_of(found[-1])


def progress(parking: Path, overrides: Sequence[str]) -> dict[int, int]:
    """The step of each parked run that would be continued, by seed; ``overrides`` are the row's."""
    runs = {int(match[1]): path for path in parking.glob("*") if (match := re.fullmatch(rf"{SEED}(\d+)", path.name))}
    steps = {seed: checkpoint.last_step(path) for seed, path in sorted(runs.items())}
    if not any(steps.values()):
        return {}
    today = settings.resolved(overrides)
    return {seed: step for seed, step in steps.items() if step and not _changed(runs[seed], today)}


def _changed(parked: Path, today: settings.Settings) -> bool:
    return bool(settings.changes(settings.of_run(parked), today))


def segments(parking: Path, seed: int) -> list[dict[str, Any]]:
    """Where and when the parts of a parked run were."""
    try:
        return list(json.loads((_folder(parking, seed) / SEGMENTS).read_text()))
    except (OSError, ValueError):
        return []


def remove(parking: Path, seed: int) -> None:
    shutil.rmtree(_folder(parking, seed), ignore_errors=True)
    if parking.is_dir() and not any(parking.iterdir()):
        parking.rmdir()


def _folder(parking: Path, seed: int) -> Path:
    return Place(parking, seed).run_dir
