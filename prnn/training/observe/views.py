"""Views of the record: Weights & Biases and TensorBoard.

Both are imported only when they are configured, exist on rank 0 only, and can be fed from ``metrics.jsonl`` afterwards
(``replay``). Once training runs, a failing view is dropped with a warning; the record goes on.
"""

from __future__ import annotations

import errno
import logging
import netrc
import os
import shutil
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, Protocol
from urllib.parse import urlparse

from matplotlib.image import imread

from prnn.config import LoggerConfig
from prnn.errors import UserError
from prnn.terminal import visible
from prnn.training.observe import pictures
from prnn.training.observe.event_file import EventFile
from prnn.training.observe.record_reader import number

WANDB_ID = "wandb_id.txt"
_log = logging.getLogger(__name__)


class View(Protocol):
    """Something that shows records."""

    def log(self, record: dict[str, Any]) -> None:
        """Show one record."""

    def close(self, failed: bool = False) -> None:
        """Write what is buffered and finish."""


class WandbView:
    """One W&B run, written under ``RUN/wandb``; the same run again when the job is resumed."""

    def __init__(self, config: LoggerConfig, run_dir: Path, job: dict[str, Any], run_id: str) -> None:
        try:
            import wandb

            self._image, self._teardown = wandb.Image, wandb.teardown
            init, settings = wandb.init, wandb.Settings
        except ImportError as error:
            raise UserError("logger.wandb=true needs the package wandb: pip install wandb.") from error
        except Exception as error:  # of another version; or a folder of that name, which has no attributes
            raise unusable_package("logger.wandb=true", "wandb", error) from error
        self._run_dir, mode = run_dir, wandb_mode(config.wandb_mode)
        self._local = mode == "offline"
        try:
            self._run = init(
                project=config.project,
                entity=config.entity,
                name=config.name or run_dir.name,
                group=config.group,
                tags=list(config.tags),
                config=job,
                id=run_id,
                resume="allow",
                mode=mode,  # type: ignore[arg-type]
                dir=str(run_dir),
                settings=settings(console="off", silent=True),
            )
        except OSError:  # of the run directory
            raise
        except Exception as error:  # W&B's own, pydantic's, plain ones
            raise UserError(
                f"W&B did not start ({wandb_complaint(error).rstrip('.')}): correct that, or set "
                "logger.wandb_mode=offline, or logger.wandb=false, to do without it."
            ) from error

    def log(self, record: dict[str, Any]) -> None:
        """Show one record; steps that a resumed run repeats are ignored by W&B, and hold the same figures."""
        shown = flatten(record)
        for name, path in pictures.found(record, self._run_dir).items():
            shown[f"pictures/{name}"] = self._image(str(path))
        self._run.log(shown, step=record["step"])
        self._check_space()

    def close(self, failed: bool = False) -> None:
        """Finish the run."""
        try:
            self._run.finish(exit_code=int(failed))
        finally:
            if failed:  # else W&B's hook at exit prints a traceback, where its process is gone
                with suppress(Exception, SystemExit):
                    self._teardown()
        self._check_space()

    def _check_space(self) -> None:
        """W&B's process says nothing of a full disk, where an offline run ends for good."""
        if self._local and shutil.disk_usage(self._run_dir).free == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._run_dir / "wandb"))


class TensorBoardView:
    """Event files under ``RUN/tensorboard``; events after ``start_step`` of an earlier attempt are purged."""

    def __init__(self, run_dir: Path, start_step: int = 0) -> None:
        try:
            from torch.utils.tensorboard import summary
        except ImportError as error:
            raise UserError("logger.tensorboard=true needs the package: pip install tensorboard.") from error
        except Exception as error:  # protobuf raises TypeError for a package of another generation
            raise unusable_package("logger.tensorboard=true", "tensorboard", error) from error
        self._run_dir, self._summary = run_dir, summary
        self._file = EventFile(run_dir / "tensorboard", purge_step=start_step + 1 if start_step else None)

    def log(self, record: dict[str, Any]) -> None:
        """Show one record."""
        step = record["step"]
        for name, value in flatten(record).items():
            if isinstance(value, str):
                self._file.add(step=step, summary=self._summary.text(name, f"```\n{value}\n```"))
            else:
                self._file.add(step=step, summary=self._summary.scalar(name, value))
        for name, path in pictures.found(record, self._run_dir).items():
            try:
                picture = imread(path)
                layout = "HW" if picture.ndim == 2 else "HWC"
                summary = self._summary.image(f"pictures/{name}", picture, dataformats=layout)
            except Exception as error:  # Pillow has many words for a damaged file
                _log.warning("picture %s is left out: it cannot be read (%s)", visible(str(path)), error)
                continue
            self._file.add(step=step, summary=summary)
        self._file.flush()

    def close(self, failed: bool = False) -> None:
        """Close the file."""
        self._file.close()


class Views:
    """The views of a job. Ranks above 0 have none."""

    def __init__(self, views: list[View]) -> None:
        self._views = views

    def log(self, record: dict[str, Any]) -> None:
        """Show one record in every view that still works."""
        for view in list(self._views):
            try:
                view.log(record)
            except Exception as error:  # whatever a third party raises must not end training
                _log.warning(
                    "%s failed and is dropped (%s); metrics.jsonl goes on", type(view).__name__, one_line(error)
                )
                self._views.remove(view)
                with suppress(Exception):
                    view.close(failed=True)

    def close(self, failed: bool = False) -> None:
        """Finish every view."""
        for view in self._views:
            try:
                view.close(failed)
            except Exception as error:
                _log.warning("%s could not be closed (%s)", type(view).__name__, one_line(error))


def build(config: LoggerConfig, run_dir: Path, job: dict[str, Any], step: int, wandb_id: str | None) -> Views:
    """The configured views. Raises ``UserError`` where a package is missing."""
    views: list[View] = []
    if config.wandb:
        assert wandb_id is not None
        views.append(WandbView(config, run_dir, job, wandb_id))
    if config.tensorboard:
        views.append(TensorBoardView(run_dir, step))
    return Views(views)


def wandb_id(run_dir: Path, saved: str | None) -> str:
    """The job's one W&B id: the checkpoint's, else the one noted in the run directory, else a new one, noted there."""
    note = run_dir / WANDB_ID
    if saved is None and note.exists():
        try:
            saved = note.read_text().strip()
        except ValueError:
            raise UserError(f"{note} is damaged: it must hold the ID of the W&B run, or be removed.") from None
    chosen = saved or uuid.uuid4().hex[:12]
    note.write_text(chosen + "\n")
    return chosen


def wandb_mode(setting: str) -> str:
    """``auto`` is WANDB_MODE where the user has set it, else online when logged in, else offline."""
    if setting != "auto":
        return setting
    if "WANDB_MODE" in os.environ:
        return os.environ["WANDB_MODE"]
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    try:
        host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
        logged_in = netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, ValueError, netrc.NetrcParseError):  # ValueError: no address, or no text
        logged_in = False
    return "online" if logged_in else "offline"


# What W&B calls a setting, and what it is here.
_WANDB_NAMES = {
    "project": "logger.project",
    "entity": "logger.entity",
    "name": "logger.name",
    "group": "logger.group",
    "tags": "logger.tags",
    "mode": "logger.wandb_mode",
    "id": f"the ID in {WANDB_ID}",
}


def wandb_complaint(error: Exception) -> str:
    """What W&B says, after the name of the setting or the variable that it is about, where that is known."""
    name, reason = "", one_line(error)
    details = getattr(error, "errors", None)
    if callable(details):  # pydantic's
        [first, *_] = details()
        name, reason = str(first["loc"][0]).removeprefix("run_"), str(first["msg"]).removeprefix("Value error, ")
    elif "project name" in reason or "Run ID" in reason:
        name = "project" if "project name" in reason else "id"
    variables = sorted(each for each in os.environ if each.startswith("WANDB_"))
    blamed = [each for each in variables if each in reason or each[6:].lower().removeprefix("run_") == name]
    if name in _WANDB_NAMES and not (name == "mode" and blamed):  # the mode is the variable's, where there is one
        blamed.insert(0, _WANDB_NAMES[name])
    return f"{' or '.join(blamed)}: {reason}" if blamed else reason


def unusable_package(setting: str, package: str, error: Exception) -> UserError:
    """A package that is installed and cannot be used."""
    return UserError(f"{setting}: the package {package} here cannot be used ({one_line(error)}): update it with pip.")


def one_line(error: Exception) -> str:
    """The message on one line; the error's name where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


MANY_RANKS = 16  # beyond, a view shows the range over the ranks instead of each


def flatten(record: dict[str, Any]) -> dict[str, Any]:
    """``{"kind": "val", "loss": 1.5}`` becomes ``{"val/loss": 1.5}``; left out are pictures and what is no number.

    The figures of each process, in a record of kind ``ranks``, become ``ranks/FIGURE/RANK``, or, of many processes,
    ``ranks/FIGURE/min``, ``p50`` and ``max``.
    """
    flat = {}
    for key, value in record.items():
        if key in ("files", "signatures"):  # no figures: paths, and how figures of the same names were computed
            continue
        if key == "ranks" and value is not None:
            flat.update(_of_ranks({entry["rank"]: _figures(entry) for entry in value}))
        elif isinstance(value, dict):
            flat.update({f"{record['kind']}/{name}": figure for name, figure in value.items()})
        elif key not in ("kind", "step"):
            flat[f"{record['kind']}/{key}"] = value
    return {name: value for name, value in flat.items() if isinstance(value, str) or number(value) is not None}


def _figures(entry: dict[str, Any]) -> dict[str, float]:
    """``{"rank": 0, "step_ms": {"p50": 9.0}, "host": "a"}`` becomes ``{"step_ms_p50": 9.0}``: numbers alone."""
    flat = {}
    for name, value in entry.items():
        parts = (
            {f"{name}_{part}": figure for part, figure in value.items()} if isinstance(value, dict) else {name: value}
        )
        flat.update({key: figure for key, figure in parts.items() if isinstance(figure, (int, float))})
    return {key: figure for key, figure in flat.items() if key != "rank"}


def _of_ranks(by_rank: dict[int, dict[str, float]]) -> dict[str, float]:
    flat: dict[str, float] = {}
    for name in {name: None for own in by_rank.values() for name in own}:
        figures = {rank: own[name] for rank, own in by_rank.items() if name in own}
        if len(by_rank) <= MANY_RANKS:
            flat |= {f"ranks/{name}/{rank}": figure for rank, figure in figures.items()}
        else:
            flat |= {f"ranks/{name}/{how}": f(figures.values()) for how, f in _RANGE.items()}
    return flat


_RANGE: dict[str, Callable[[Iterable[float]], float]] = {"min": min, "p50": median, "max": max}


def replay(records: Iterable[dict[str, Any]], view: View) -> int:
    """Feed the records of a ``metrics.jsonl`` to ``view``; returns their number."""
    count = 0
    for record in records:
        view.log(record)
        count += 1
    return count
