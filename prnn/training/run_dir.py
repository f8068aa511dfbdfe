"""Run directories: one per job, ``runs/<task>/<start time>``, and how to find one again."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from omegaconf import DictConfig, OmegaConf

from prnn import command_line
from prnn.data.corpora import expanded
from prnn.errors import UserError
from prnn.training import disk

RUNS = Path("runs")
NOTES, NOTE, LOCK = ".hydra", "job.json", ".lock"
LAUNCHED = "PRNN_RUN_DIR"
MAIN_CONFIG = "train"
_log = logging.getLogger(__name__)


def claim(parent: Path) -> Path:
    """A new directory under ``parent`` named after this second; no two jobs get the same one."""
    disk.make_directory(parent)
    stamp = datetime.now().astimezone().strftime("%Y-%m-%d_%H-%M-%S")
    number = 1
    while True:
        path = parent / (stamp if number == 1 else f"{stamp}-{number}")
        try:
            path.mkdir()
            disk.sync_directory(parent)
            return path
        except FileExistsError:
            number += 1


def find(name: str) -> Path:
    """The run directory called ``name``: a path, or ``latest``. Raises ``UserError`` if there is none."""
    path = RUNS / "latest" if name == "latest" else expanded(name)
    try:
        is_there = path.is_dir()
        if is_there:
            next(path.iterdir(), None)
    except OSError as error:
        raise UserError(f"the run {name!r} cannot be read ({error.strerror}).") from None
    if not is_there:
        what = "there is no run yet (runs/latest does not exist)" if name == "latest" else f"there is no run {name!r}"
        raise UserError(f"{what}: give a run directory, such as {RUNS}/char_lm/2026-11-23_21-40-05.")
    return path.resolve()


def name_of(run_dir: Path, cwd: Path) -> str:
    """What ``find`` finds ``run_dir`` by from the folder ``cwd``; short, if that is below it or near."""
    name = os.path.relpath(run_dir, cwd)
    # Names of something else, but for the dot: of the newest run, of a home, and OmegaConf's of a missing value.
    return f"./{name}" if name in ("latest", "???") or name.startswith("~") else name


def overrides(run_dir: Path) -> list[str]:
    """The command line of the run, as noted in it. Raises ``UserError`` if there is no such note, or no whole one."""
    path = run_dir / NOTES / "overrides.yaml"
    try:
        noted = OmegaConf.to_container(OmegaConf.load(path), resolve=False)  # an item of a list resolves as it is read
    except OSError:
        raise UserError(f"{run_dir} is not a run directory: it has no {NOTES}/overrides.yaml.") from None
    except Exception:  # PyYAML's errors, OmegaConf's, or Python's: whatever stands there is no list of overrides
        noted = None
    if not isinstance(noted, list) or not all(isinstance(override, str) for override in noted):
        raise UserError(f"{path} is damaged: it must list the run's overrides, one to a line, as '- KEY=VALUE'.")
    return [command_line.mended(override) for override in noted]


def flags(run_dir: Path, config_dir: str | None) -> list[str]:
    """``--config-name`` of the run, where it had one, with the ``--config-dir`` it was found in unless one is given.

    Hydra looks for it before it has read the overrides, ``hydra.searchpath`` among them. Raises ``UserError``.
    """
    path = run_dir / NOTES / "hydra.yaml"
    if not path.exists():  # of an older version
        return []
    try:
        notes = unresolved(OmegaConf.load(path))["hydra"]
        name, cwd = str(notes["job"]["config_name"]), str(notes["runtime"]["cwd"])
        sources = [each for each in notes["runtime"]["config_sources"] if each["provider"] != "main"]
        places = [Path(cwd, each["path"]) for each in sources if each["schema"] == "file"]
    except Exception:  # PyYAML's errors, OmegaConf's, or Python's: whatever stands there, Hydra has not written it
        raise UserError(f"{path} is damaged: --config-name of the run cannot be read from it.") from None
    if name == MAIN_CONFIG:
        return []
    existing = [place for place in places if any((place / f"{name}{end}").is_file() for end in ("", ".yaml"))]
    return [f"--config-name={name}", *(f"--config-dir={place}" for place in existing[:1] if not config_dir)]


def write_notes(run_dir: Path, cfg: DictConfig, hydra: HydraConf) -> None:
    """Write down what is run, the way Hydra does: interpolations as they were typed, not what they stand for.

    The overrides go with the folders they were looked up in.
    """
    notes = run_dir / NOTES
    disk.make_directory(notes)
    disk.replace(notes / "config.yaml", OmegaConf.to_yaml(cfg).encode())
    disk.replace(notes / "hydra.yaml", OmegaConf.to_yaml(OmegaConf.create({"hydra": hydra})).encode())
    disk.replace(notes / "overrides.yaml", OmegaConf.to_yaml([*_searchpath(hydra), *_typed(hydra)]).encode())


def unresolved(section: Any) -> dict[str, Any]:
    """A section of Hydra's configuration, whose texts hold what the user typed and are resolved as they are read."""
    plain = OmegaConf.to_container(section, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _typed(hydra: HydraConf) -> list[str]:
    """The overrides of this job, and those of Hydra's own that its configuration may refer to (``hydra.job``)."""
    overrides = unresolved(hydra.overrides)
    return [*(each for each in overrides["hydra"] if each.lstrip("+~").startswith("hydra.job.")), *overrides["task"]]


def _searchpath(hydra: HydraConf) -> list[str]:
    """``hydra.searchpath`` and ``--config-dir`` of this job as one override, good in any current directory."""
    paths, runtime = [], unresolved(hydra.runtime)
    for source in runtime["config_sources"]:
        if source["provider"] == "command-line" or source["provider"].startswith("hydra.searchpath"):
            place = str(Path(runtime["cwd"], source["path"])) if source["schema"] == "file" else source["path"]
            paths.append(command_line.quoted(f"{source['schema']}://{place}"))
    paths = list(dict.fromkeys(paths))  # a resume gives --config-dir once more
    return [f"hydra.searchpath=[{','.join(paths)}]"] if paths else []


def link_latest(run_dir: Path) -> None:
    """Let ``runs/latest`` point to ``run_dir``. Training does not depend on it, so failing to is a warning."""
    temporary = RUNS / f".latest.{os.getpid()}"
    try:
        RUNS.mkdir(exist_ok=True)
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(os.path.relpath(run_dir.resolve(), RUNS.resolve()))
        temporary.replace(RUNS / "latest")
    except OSError as error:
        _log.warning("%s/latest does not point to this run (%s)", RUNS, error.strerror or error)


class Lock:
    """Keeps a second job out of a run directory, from ``Lock(run_dir)`` to ``release`` or the end of the process."""

    def __init__(self, run_dir: Path) -> None:
        disk.make_directory(run_dir)
        self._path = run_dir / LOCK
        self._file = self._path.open("a")
        if not self._take():
            self._file.close()
            raise UserError(f"{run_dir} is being written by another job: wait for its end, or stop it.")

    def _take(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return self._in_place()  # a job that ended between open and flock has removed this very file
        except (BlockingIOError, FileNotFoundError):
            return False
        except OSError:
            return True  # a file system without locks

    def release(self) -> None:
        """Let others in. The file goes with the lock: a job that was refused leaves nothing behind."""
        with contextlib.suppress(OSError):
            if self._in_place():  # in a directory that has taken this one's place, it is another job's
                self._path.unlink()
        self._file.close()

    def _in_place(self) -> bool:
        return os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())


def is_restart() -> bool:
    """Whether a launcher may have started this job before: torchrun after a failure, Slurm after a requeue.

    torchrun's count is not enough where nodes come and go: a node that joins restarts all processes without counting
    it, and an agent that is started again counts from 0. A launcher for which this matters chooses the run directory
    (``launched``), and whatever run is found there is this job's.
    """
    if launched() is not None:
        return True
    counts = {name: os.environ.get(name) or "0" for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")}
    for name, count in counts.items():
        if not count.isdecimal():
            raise UserError(f"{name}={count} must be an integer: it says how often the launcher restarted this job.")
    return any(int(count) > 0 for count in counts.values())


def launched() -> Path | None:
    """The run directory that a launcher chose, in ``PRNN_RUN_DIR``."""
    path = os.environ.get(LAUNCHED)
    return Path(path) if path else None


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
    content = json.dumps({"job": job_id(), "overrides": arguments}) + "\n"
    disk.replace(run_dir / NOTE, content.encode())


def earlier_attempt(arguments: list[str]) -> Path | None:
    """The directory of this job before its restart: the newest that notes the same job and command line."""
    wanted = {"job": job_id(), "overrides": arguments}
    attempts = []
    for path in RUNS.glob(f"*/*/{NOTE}"):
        try:
            if json.loads(path.read_text()) == wanted:
                attempts.append(path.parent)
        except (OSError, ValueError, RecursionError):  # another's, or not ours at all
            continue
    return max(attempts, key=lambda path: path.name, default=None)
