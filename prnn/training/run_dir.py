"""Run directories: one per job, ``runs/<task>/<start time>``, and how to find one again."""

from __future__ import annotations

import json
import os
import socket
from datetime import datetime
from pathlib import Path

from omegaconf import OmegaConf

from prnn.errors import UserError

RUNS = Path("runs")
NOTE = "job.json"


def claim(parent: Path) -> Path:
    """A new directory under ``parent`` named after this second; no two jobs get the same one."""
    stamp = datetime.now().astimezone().strftime("%Y-%m-%d_%H-%M-%S")
    number = 1
    while True:
        path = parent / (stamp if number == 1 else f"{stamp}-{number}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            number += 1


def find(name: str) -> Path:
    """The run directory called ``name``: a path, or ``latest``. Raises ``UserError`` if there is none."""
    path = RUNS / "latest" if name == "latest" else Path(name)
    if not path.is_dir():
        what = "there is no run yet (runs/latest does not exist)" if name == "latest" else f"there is no run {name!r}"
        raise UserError(f"{what}: give a run directory, such as {RUNS}/char_lm/2026-11-23_21-40-05.")
    return path.resolve()


def overrides(run_dir: Path) -> list[str]:
    """The command line of the run, as Hydra noted it. Raises ``UserError`` if it is no run directory."""
    try:
        return [str(override) for override in OmegaConf.load(run_dir / ".hydra" / "overrides.yaml")]
    except OSError:
        raise UserError(f"{run_dir} is not a run directory: it has no .hydra/overrides.yaml.") from None


def link_latest(run_dir: Path) -> None:
    """Let ``runs/latest`` point to ``run_dir``."""
    RUNS.mkdir(exist_ok=True)
    temporary = RUNS / f".latest.{os.getpid()}"
    temporary.symlink_to(os.path.relpath(run_dir.resolve(), RUNS.resolve()))
    temporary.replace(RUNS / "latest")


def is_restart() -> bool:
    """Whether a launcher started this job before: torchrun after a failure, Slurm after a requeue."""
    return any(int(os.environ.get(name) or 0) > 0 for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


def job_id() -> str | None:
    """What identifies this job across its restarts; None where nothing restarts jobs.

    torchrun's default run id is the word "none"; then the agent that starts the workers is the job.
    """
    if "SLURM_JOB_ID" in os.environ:
        return f"slurm:{os.environ['SLURM_JOB_ID']}"
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if name is None:
        return None
    return f"torchrun:{name}" if name != "none" else f"torchrun:{socket.gethostname()}:{os.getppid()}"


def note(run_dir: Path, arguments: list[str]) -> None:
    """Note which job the directory belongs to."""
    (run_dir / NOTE).write_text(json.dumps({"job": job_id(), "overrides": arguments}) + "\n")


def earlier_attempt(arguments: list[str]) -> Path | None:
    """The directory of this job before its restart: the newest that notes the same job and command line."""
    wanted = {"job": job_id(), "overrides": arguments}
    found = []
    for path in RUNS.glob(f"*/*/{NOTE}"):
        try:
            if json.loads(path.read_text()) == wanted:
                found.append(path.parent)
        except ValueError:  # cut short by the crash that is being recovered from
            continue
    return max(found, key=lambda path: path.name, default=None)
