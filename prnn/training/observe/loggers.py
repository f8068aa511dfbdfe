"""The loggers: Weights & Biases and TensorBoard. CONTRIBUTING.md says how to add one.

Both are imported only if enabled, exist on rank 0 only, and can be filled from ``metrics.jsonl`` afterwards
(``replay``). During training a failing logger is dropped with a warning; ``metrics.jsonl`` goes on.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from prnn.config import LoggerConfig
from prnn.errors import UserError, one_line
from prnn.terminal import visible
from prnn.training.observe import pictures
from prnn.training.observe.event_file import EventFile
from prnn.training.observe.record_reader import Records, number
from prnn.training.observe.wandb_setup import wandb_complaint, wandb_mode
from prnn.training.run_dir import sweep
from prnn.training.run_files import METRICS

SAMPLE_TABLE, PICTURE_TABLE = "samples", "picture_table"  # names in W&B
TABLE_ROWS = 200  # all of them are uploaded again with each sample
FINISH_SECONDS = 300.0  # WANDB_FINISH_TIMEOUT sets another limit
_log = logging.getLogger(__name__)


class Logger(Protocol):
    """A destination for records."""

    def log(self, record: dict[str, Any]) -> None:
        """Log one record."""

    def close(self, failed: bool = False) -> None:
        """Flush and close."""


class WandbUnreachable(UserError):
    """The W&B server cannot be reached, or has rejected the run."""


class WandbLogger:
    """One W&B run, written under ``RUN/wandb``; the same run again when the job is resumed.

    Its group and job type, unless ``logger.group`` is set, are those of the sweep that the run directory belongs to.
    The table ``samples`` is logged with each sample, with the newest ``TABLE_ROWS`` of them; ``earlier`` has the
    records that a resumed run goes on from. Raises ``WandbUnreachable`` and ``UserError``.
    """

    def __init__(
        self, config: LoggerConfig, run_dir: Path, job: dict[str, Any], run_id: str, earlier: Iterable[Any] = ()
    ) -> None:
        try:
            import wandb

            self._image, self._table, self._teardown = wandb.Image, wandb.Table, wandb.teardown
            init, settings, of_server = wandb.init, wandb.Settings, wandb.errors.CommError
        except ImportError as error:
            raise UserError("logger.wandb=true needs the package wandb: pip install wandb.") from error
        except Exception as error:  # an incompatible version, or a folder of that name, without attributes
            raise unusable_package("logger.wandb=true", "wandb", error) from error
        self._run_dir, self._tables = run_dir, True
        self._samples = deque((row for record in earlier if (row := _sample(record))), maxlen=TABLE_ROWS)
        group, job_type = (config.group, None) if config.group else sweep(run_dir) or (None, None)
        # By default W&B waits for a server that is gone for as long as a week.
        patience = {} if "WANDB_FINISH_TIMEOUT" in os.environ else {"finish_timeout": FINISH_SECONDS}
        try:
            self._run = init(
                project=config.project,
                entity=config.entity,
                name=config.name or run_dir.name,
                group=group,
                job_type=job_type,
                tags=list(config.tags),
                config=job,
                id=run_id,
                resume="allow",
                mode=wandb_mode(config.wandb_mode),  # type: ignore[arg-type]
                dir=str(run_dir),
                settings=settings(console="off", silent=True, finish_timeout_raises=True, **patience),  # type: ignore[arg-type]
            )
        except OSError:  # from the run directory
            raise
        except Exception as error:  # W&B's own, pydantic's, plain ones
            reason = wandb_complaint(error).rstrip(".")
            with suppress(Exception, SystemExit):  # otherwise a second attempt finds the run's ID in use
                self._teardown()
            if isinstance(error, of_server):
                raise WandbUnreachable(
                    f"W&B did not start ({reason}): check the login (wandb login), WANDB_BASE_URL and the network."
                ) from error
            raise UserError(
                f"W&B did not start ({reason}): correct that, or set logger.wandb_mode=offline or logger.wandb=false "
                "to train without it."
            ) from error
        # Of steps that an earlier process has logged, a server ignores those that it has, with a warning for each, but
        # `wandb sync` gives those of an offline run new numbers.
        of = "-".join(filter(None, (config.entity, config.project, run_id)))
        self._note = run_dir / "wandb" / f"last_step-{of}.txt"
        self._last = _number_in(self._note) if self._run.offline else self._run.starting_step - 1

    def log(self, record: dict[str, Any]) -> None:
        """Log one record; steps that a resumed run repeats are left out, which have the same values."""
        images = {name: self._image(str(path)) for name, path in pictures.existing(record, self._run_dir).items()}
        row, step = _sample(record), record["step"]
        if row:
            self._samples.append(row)
        if step <= self._last:
            return
        self._run.log({**flatten(record), **{f"pictures/{name}": image for name, image in images.items()}}, step=step)
        if row:
            self._log_table(SAMPLE_TABLE, ["step", "text"], list(self._samples), step)
        if images:
            rows: list[Any] = [[step, name, image] for name, image in images.items()]
            self._log_table(PICTURE_TABLE, ["step", "name", "picture"], rows, step)
        if self._note.parent.is_dir():  # not where W&B is disabled
            self._note.write_text(f"{step}\n")
        self._check_space()

    def _log_table(self, name: str, columns: list[Any], rows: list[Any], step: int) -> None:
        """Log a table, for which W&B asks the server and waits, unlike for everything else."""
        if self._tables:
            try:
                self._run.log({name: self._table(columns=columns, data=rows)}, step=step)
            except Exception as error:  # W&B's own, of several packages
                self._tables = False
                _log.warning("W&B gets no more tables of this job (%s)", one_line(error))

    def close(self, failed: bool = False) -> None:
        """Finish the run. Raises ``UserError`` if not everything could be uploaded in time."""
        try:
            self._run.finish(exit_code=int(failed))
        except TimeoutError as error:
            rest = self._run.settings.sync_dir
            raise UserError(
                f"W&B has not taken all of it in time: upload the rest with wandb sync --include-online {rest}"
            ) from error
        finally:
            if failed:  # otherwise W&B's atexit hook prints a traceback if its process is gone
                with suppress(Exception, SystemExit):
                    self._teardown()
        self._check_space()

    def _check_space(self) -> None:
        """Raise ``OSError`` on a full disk: W&B does not report it, and an offline run cannot recover from it."""
        if self._run.offline and shutil.disk_usage(self._run_dir).free == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._run_dir / "wandb"))


class TensorBoardLogger:
    """Event files under ``RUN/tensorboard``; events after ``start_step`` of an earlier attempt are purged."""

    def __init__(self, run_dir: Path, start_step: int = 0) -> None:
        try:
            from torch.utils.tensorboard import summary
        except ImportError as error:
            raise UserError("logger.tensorboard=true needs the package: pip install tensorboard.") from error
        except Exception as error:  # protobuf raises TypeError for an incompatible version
            raise unusable_package("logger.tensorboard=true", "tensorboard", error) from error
        self._run_dir, self._summary = run_dir, summary
        self._file = EventFile(run_dir / "tensorboard", purge_step=start_step + 1 if start_step else None)

    def log(self, record: dict[str, Any]) -> None:
        """Log one record."""
        step = record["step"]
        for name, value in flatten(record).items():
            if isinstance(value, str):
                self._file.add(step=step, summary=self._summary.text(name, f"```\n{value}\n```"))
            else:
                self._file.add(step=step, summary=self._summary.scalar(name, value))
        for name, path in pictures.existing(record, self._run_dir).items():
            try:
                from matplotlib.image import imread

                picture = imread(path)
                layout = "HW" if picture.ndim == 2 else "HWC"
                summary = self._summary.image(f"pictures/{name}", picture, dataformats=layout)
            except Exception as error:  # Pillow raises many types for a damaged file
                _log.warning("picture %s is left out: it cannot be read (%s)", visible(str(path)), error)
                continue
            self._file.add(step=step, summary=summary)
        self._file.flush()

    def close(self, failed: bool = False) -> None:
        """Close the file."""
        self._file.close()


class Loggers:
    """The loggers of a job. Ranks above 0 have none."""

    def __init__(self, loggers: list[Logger]) -> None:
        self._loggers = loggers

    def log(self, record: dict[str, Any]) -> None:
        """Log one record to every logger that still works."""
        for logger in list(self._loggers):
            try:
                logger.log(record)
            except Exception as error:  # third-party errors must not end training
                _log.warning(
                    "%s failed and is dropped (%s); metrics.jsonl goes on", type(logger).__name__, one_line(error)
                )
                self._loggers.remove(logger)
                with suppress(Exception):
                    logger.close(failed=True)

    def close(self, failed: bool = False) -> None:
        """Close every logger."""
        for logger in self._loggers:
            try:
                logger.close(failed)
            except Exception as error:
                _log.warning("%s could not be closed (%s)", type(logger).__name__, one_line(error))


def build(config: LoggerConfig, run_dir: Path, job: dict[str, Any], step: int, wandb_id: str | None) -> Loggers:
    """The enabled loggers. Raises ``UserError`` if a package is missing.

    A W&B server that fails does not keep a job from training: the run is logged offline, with a warning.
    """
    loggers: list[Logger] = []
    if config.wandb:
        assert wandb_id is not None
        try:
            logger = WandbLogger(config, run_dir, job, wandb_id, Records(run_dir / METRICS))
        except WandbUnreachable as error:
            _log.warning("%s; this run is logged offline", str(error).rstrip("."))
            offline = replace(config, wandb_mode="offline")
            logger = WandbLogger(offline, run_dir, job, wandb_id, Records(run_dir / METRICS))
        loggers.append(logger)
    if config.tensorboard:
        loggers.append(TensorBoardLogger(run_dir, step))
    return Loggers(loggers)


def _sample(record: dict[str, Any]) -> list[Any] | None:
    """The row of a sample in its table; None for any other record."""
    text = record.get("text") if record["kind"] == "sample" else None
    return [record["step"], text] if isinstance(text, str) else None


def _number_in(path: Path) -> int:
    """The number in a file; -1 without one."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return -1


def unusable_package(setting: str, package: str, error: Exception) -> UserError:
    """The error for a package that is installed but cannot be used."""
    return UserError(f"{setting}: the package {package} here cannot be used ({one_line(error)}): update it with pip.")


MANY_RANKS = 16  # with more, a logger shows the range over the ranks instead of each rank


def flatten(record: dict[str, Any]) -> dict[str, Any]:
    """``{"kind": "val", "loss": 1.5}`` becomes ``{"val/loss": 1.5}``; pictures and other non-numbers are left out.

    The metrics of each rank, in a record of kind ``ranks``, become ``ranks/METRIC/RANK``, or, for many ranks,
    ``ranks/METRIC/min``, ``p50`` and ``max``.
    """
    flat = {}
    for key, value in record.items():
        if key in ("files", "signatures"):  # not metrics: paths, and how the metrics of the same names were computed
            continue
        if key == "ranks" and value is not None:
            flat.update(_of_ranks({entry["rank"]: _figures(entry) for entry in value}))
        elif isinstance(value, dict):
            flat.update({f"{record['kind']}/{name}": figure for name, figure in value.items()})
        elif key not in ("kind", "step"):
            flat[f"{record['kind']}/{key}"] = value
    return {name: value for name, value in flat.items() if isinstance(value, str) or number(value) is not None}


def _figures(entry: dict[str, Any]) -> dict[str, float]:
    """``{"rank": 0, "step_ms": {"p50": 9.0}, "host": "a"}`` becomes ``{"step_ms_p50": 9.0}``: numbers only."""
    figures = {}
    for name, value in entry.items():
        parts = (
            {f"{name}_{part}": figure for part, figure in value.items()} if isinstance(value, dict) else {name: value}
        )
        figures.update({key: figure for key, figure in parts.items() if isinstance(figure, (int, float))})
    return {key: figure for key, figure in figures.items() if key != "rank"}


def _of_ranks(by_rank: dict[int, dict[str, float]]) -> dict[str, float]:
    flat: dict[str, float] = {}
    for name in {name: None for entry in by_rank.values() for name in entry}:
        figures = {rank: entry[name] for rank, entry in by_rank.items() if name in entry}
        if len(by_rank) <= MANY_RANKS:
            flat |= {f"ranks/{name}/{rank}": figure for rank, figure in figures.items()}
        else:
            flat |= {f"ranks/{name}/{how}": f(figures.values()) for how, f in _RANGE.items()}
    return flat


_RANGE: dict[str, Callable[[Iterable[float]], float]] = {"min": min, "p50": median, "max": max}


def replay(records: Iterable[dict[str, Any]], logger: Logger) -> int:
    """Feed the records of a ``metrics.jsonl`` to ``logger``; returns their number."""
    count = 0
    for record in records:
        logger.log(record)
        count += 1
    return count
