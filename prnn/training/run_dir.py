"""Run directories: one per job, ``runs/<task>/<start time>``; creation, lookup, locking and restarts."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra.conf import HydraConf
from omegaconf import DictConfig, OmegaConf

from prnn import command_line
from prnn.config import MAIN_CONFIG
from prnn.data.paths import expanded
from prnn.errors import UserError
from prnn.training import disk, run_names
from prnn.training.run_files import LOCK, NOTE, NOTES, OVERRIDES, SWEEP_NOTE, TRIAL_LOG
from prnn.training.run_names import LATEST

RUNS = Path("runs")
LAUNCHED = "PRNN_RUN_DIR"
_TRIES, _RETRY_SECONDS = 5, 0.02
_MOST_NOTES_BYTES = 4 << 20  # of a configuration
_log = logging.getLogger(__name__)


def claim(parent: Path) -> Path:
    """Create a directory under ``parent`` named after the current second; no two jobs get the same one."""
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


def find(name: str, root: Path = RUNS, folders: bool = False) -> Path:
    """The run directory called ``name``: a path, ``latest``, or a part of the name of one run under ``root``.

    An existing path wins; with ``folders``, so does a folder of runs under ``root``. Raises ``UserError`` if there is
    no such run, or if several have that part.
    """
    path = root / LATEST if name == LATEST else expanded(name)
    try:
        if not path.is_dir() and name != LATEST:
            folder = root / name
            path = folder if folders and folder.is_dir() else run_names.matching(name, root) or path
        exists = path.is_dir()
        if exists:
            next(path.iterdir(), None)
    except OSError as error:
        raise UserError(f"the run {name!r} cannot be read ({error.strerror}).") from None
    if not exists:
        example = f"give a run directory, such as {root}/char_lm/2026-11-23_21-40-05"
        if name == LATEST:
            raise UserError(f"there is no run yet ({path} does not exist): {example}.")
        raise UserError(f"there is no run {name!r}: {example}, a part of its name, or latest.")
    return path.resolve()


def split(names: str) -> list[str]:
    """The names in a list such as ``A,B``; a path with a comma in it is one name. Raises ``UserError`` for an empty
    name.
    """
    with contextlib.suppress(OSError):  # a list that is too long for a name
        if names and expanded(names).is_dir():
            return [names]
    found = [name.strip() for name in names.split(",")]
    if "" in found:
        raise UserError(f"run={names} has an empty name: give a run, or several with commas between them.")
    return found


def short_name(run_dir: Path, cwd: Path) -> str:
    """``name_of`` without ``runs/`` where ``find`` needs no more."""
    name = name_of(run_dir, cwd)
    short = name.removeprefix(f"{RUNS}/")
    return name if short == LATEST or "," in short or (cwd / short).exists() else short


def sweep(run_dir: Path) -> tuple[str, str] | None:
    """What a run belongs to, and how: ``("2026-11-23_21-40-05", "sweep")`` for a job of ``--multirun``,
    ``(STUDY, "trial")`` for a trial of ``prnn-tune``; None for any other run.
    """
    parent = run_dir.resolve().parent
    if (run_dir / TRIAL_LOG).exists():
        return parent.name, "trial"
    return (parent.name, "sweep") if (parent / SWEEP_NOTE).exists() else None


def name_of(run_dir: Path, cwd: Path) -> str:
    """The name by which ``find`` returns ``run_dir`` from the folder ``cwd``: a relative path."""
    name = os.path.relpath(run_dir, cwd)
    # Without the dot these names mean the newest run, a home directory, and OmegaConf's missing value.
    return f"./{name}" if name in (LATEST, "???") or name.startswith("~") else name


def read_yaml(path: Path) -> Any:
    """A YAML file of a run as OmegaConf's. Raises ``OSError`` for what is no regular file, ``ValueError`` for what prnn
    would not have written, which may not end, and errors of PyYAML and OmegaConf.
    """
    content = disk.read_file(path)
    if len(content) > _MOST_NOTES_BYTES:
        raise ValueError(f"more than {_MOST_NOTES_BYTES} bytes")
    text = content.decode()
    if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
        raise ValueError("an alias, which can explode")
    return OmegaConf.create(text)


def overrides(run_dir: Path) -> list[str]:
    """The overrides recorded in the run directory. Raises ``UserError`` if the record is missing or damaged."""
    path = run_dir / OVERRIDES
    try:
        recorded = OmegaConf.to_container(read_yaml(path), resolve=False)  # list items resolve on access
    except OSError:
        raise UserError(f"{run_dir} is not a run directory: it has no {OVERRIDES}.") from None
    except Exception:  # PyYAML's errors, OmegaConf's, or Python's: the content is not a list of overrides
        recorded = None
    if not isinstance(recorded, list) or not all(isinstance(override, str) for override in recorded):
        raise UserError(f"{path} is damaged: it must list the run's overrides, one to a line, as '- KEY=VALUE'.")
    return [command_line.mended(override) for override in recorded]


def flags(run_dir: Path, config_dir: str | None) -> list[str]:
    """``--config-name`` of the run, if any, with the ``--config-dir`` that contains it unless ``config_dir`` is set.

    Hydra looks it up before it reads the overrides, and with them ``hydra.searchpath``. Raises ``UserError``.
    """
    path = run_dir / NOTES / "hydra.yaml"
    if not path.exists():  # written by an older version
        return []
    try:
        notes = unresolved(read_yaml(path))["hydra"]
        name, cwd = str(notes["job"]["config_name"]), str(notes["runtime"]["cwd"])
        sources = [each for each in notes["runtime"]["config_sources"] if each["provider"] != "main"]
        folders = [Path(cwd, each["path"]) for each in sources if each["schema"] == "file"]
    except Exception:  # PyYAML's errors, OmegaConf's, or Python's: the content was not written by Hydra
        raise UserError(f"{path} is damaged: --config-name of the run cannot be read from it.") from None
    if name == MAIN_CONFIG:
        return []
    matches = [folder for folder in folders if any((folder / f"{name}{end}").is_file() for end in ("", ".yaml"))]
    return [f"--config-name={name}", *(f"--config-dir={folder}" for folder in matches[:1] if not config_dir)]


def write_notes(run_dir: Path, cfg: DictConfig, hydra: HydraConf) -> None:
    """Write the job's configuration and overrides as Hydra does, with interpolations unresolved.

    The overrides include the search path they were composed with.
    """
    notes = run_dir / NOTES
    disk.make_directory(notes)
    disk.replace(notes / "config.yaml", OmegaConf.to_yaml(cfg).encode())
    disk.replace(notes / "hydra.yaml", OmegaConf.to_yaml(OmegaConf.create({"hydra": hydra})).encode())
    disk.replace(notes / "overrides.yaml", OmegaConf.to_yaml([*_searchpath(hydra), *_typed(hydra)]).encode())


def unresolved(section: Any) -> dict[str, Any]:
    """A section of Hydra's configuration with its interpolations unresolved, as the user typed them."""
    plain = OmegaConf.to_container(section, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _typed(hydra: HydraConf) -> list[str]:
    """The overrides of this job, and Hydra's own (``hydra.job``) that the configuration may refer to."""
    typed = unresolved(hydra.overrides)
    return [*(each for each in typed["hydra"] if each.lstrip("+~").startswith("hydra.job.")), *typed["task"]]


def _searchpath(hydra: HydraConf) -> list[str]:
    """``hydra.searchpath`` and ``--config-dir`` of this job as one override, valid in any working directory."""
    entries, runtime = [], unresolved(hydra.runtime)
    for source in runtime["config_sources"]:
        if source["provider"] == "command-line" or source["provider"].startswith("hydra.searchpath"):
            path = str(Path(runtime["cwd"], source["path"])) if source["schema"] == "file" else source["path"]
            entries.append(command_line.quoted(f"{source['schema']}://{path}"))
    entries = list(dict.fromkeys(entries))  # a resume adds --config-dir again
    return [f"hydra.searchpath=[{','.join(entries)}]"] if entries else []


def link_latest(run_dir: Path, root: Path = RUNS) -> None:
    """Point the symlink ``runs/latest`` to ``run_dir``. Training does not depend on it: a failure is a warning."""
    temporary = root / f".latest.{os.getpid()}"
    try:
        root.mkdir(exist_ok=True)
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(os.path.relpath(run_dir.resolve(), root.resolve()))
        temporary.replace(root / LATEST)
    except OSError as error:
        _log.warning("%s/latest does not point to this run (%s)", root, error.strerror or error)


class Lock:
    """An exclusive lock on a run directory, from ``Lock(run_dir)`` to ``release`` or the end of the process."""

    def __init__(self, run_dir: Path) -> None:
        disk.make_directory(run_dir)
        self._path = run_dir / LOCK
        self._file = self._path.open("a")
        tries = 1
        while not self._take():
            if tries < _TRIES:  # `locked`, in another process, holds it for a moment
                tries += 1
                time.sleep(_RETRY_SECONDS)
                continue
            self._file.close()
            raise UserError(f"{run_dir} is being written by another job: wait for its end, or stop it.")

    def _take(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.utime(self._file.fileno())  # the start of this job, for the state of the run
            return self._in_place()  # a job that ended between open and flock has removed this file
        except (BlockingIOError, FileNotFoundError):
            return False
        except OSError:
            return True  # a file system without locks

    def release(self) -> None:
        """Release the lock and remove its file, so that a rejected job leaves nothing behind."""
        with contextlib.suppress(OSError):
            if self._in_place():  # in a directory that has replaced this one, the file is another job's
                self._path.unlink()
        self._file.close()

    def _in_place(self) -> bool:
        return os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())


def locked(run_dir: Path) -> bool | None:
    """Whether a job holds the lock on the run directory; None where that is not known, as without a lock file."""
    try:
        disk.require_file(run_dir / LOCK)
        with (run_dir / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:  # there is no such file, or the file system has no locks
        return None


def is_restart() -> bool:
    """Whether this may be a restart of the job: by torchrun after a failure, by Slurm after a requeue.

    torchrun's restart count is not enough for elastic jobs: a node that joins restarts all processes without
    incrementing it, and a restarted agent counts from 0. Such a launcher chooses the run directory (``launched``), and
    any run found there belongs to this job.
    """
    if launched() is not None:
        return True
    counts = {name: os.environ.get(name) or "0" for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")}
    for name, count in counts.items():
        if not count.isdecimal():
            raise UserError(f"{name}={count} must be an integer: the number of times the launcher restarted this job.")
    return any(int(count) > 0 for count in counts.values())


def launched() -> Path | None:
    """The run directory chosen by the launcher, from ``PRNN_RUN_DIR``."""
    path = os.environ.get(LAUNCHED)
    return Path(path) if path else None


def job_id() -> str | None:
    """An identifier of this job that is stable across restarts; None without a launcher that restarts jobs.

    torchrun's default run id is the word "none"; the agent that starts the workers then identifies the job.
    """
    if "SLURM_JOB_ID" in os.environ:
        return f"slurm:{os.environ['SLURM_JOB_ID']}"
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if name is None:
        return None
    return f"torchrun:{name}" if name != "none" else f"torchrun:{socket.gethostname()}:{os.getppid()}"


def note(run_dir: Path, arguments: list[str]) -> None:
    """Record which job the directory belongs to."""
    content = json.dumps({"job": job_id(), "overrides": arguments}) + "\n"
    disk.replace(run_dir / NOTE, content.encode())


def earlier_attempt(arguments: list[str]) -> Path | None:
    """The directory of this job before its restart: the newest that records the same job and command line."""
    expected = {"job": job_id(), "overrides": arguments}
    matches = []
    for path in RUNS.glob(f"*/*/{NOTE}"):
        try:
            if json.loads(path.read_text()) == expected:
                matches.append(path.parent)
        except (OSError, ValueError, RecursionError):  # unreadable, or not written by prnn
            continue
    return max(matches, key=lambda path: path.name, default=None)
