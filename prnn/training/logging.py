"""What a run tells: ``metrics.jsonl`` (the record), ``train.log``, the terminal.

Every record is one JSON object on a line, with ``kind`` (train, ranks, val, sample, test, pictures) and ``step``;
docs/observability.md has the fields. Weights & Biases and TensorBoard (``views.py``) show the same records and can be
fed from the file afterwards.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

METRICS, SAMPLES, LOG = "metrics.jsonl", "samples.txt", "train.log"
_log = logging.getLogger(__name__)


class Record:
    """Appends to ``metrics.jsonl``. A full disk delays lines and stops nothing; they are written when it can be."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / METRICS
        self._handle = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o644)
        self._size = os.lseek(self._handle, 0, os.SEEK_END)
        self._pending = b""

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; it survives the death of this process as soon as this returns."""
        clean = {key: jsonable(value) for key, value in record.items()}
        delayed = bool(self._pending)
        self._pending += json.dumps(clean).encode() + b"\n"
        try:
            written = os.pwrite(self._handle, self._pending, self._size)
            self._size += written
            self._pending = self._pending[written:]
        except OSError as error:
            if not delayed:
                _log.warning("%s cannot be written (%s); trying again at the next record", self.path, error.strerror)

    def close(self) -> None:
        """Close the file."""
        if self._pending:
            _log.warning("the last lines of %s could not be written", self.path)
        os.close(self._handle)


def jsonable(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them, in dictionaries and lists too."""
    if isinstance(value, dict):
        return {key: jsonable(part) for key, part in value.items()}
    if isinstance(value, list):
        return [jsonable(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl``; a last line cut short by a crash is left out."""
    records = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def rewind(run_dir: Path, step: int) -> list[dict[str, Any]]:
    """Drop the records after ``step``, which will be trained again, and return the others.

    ``samples.txt`` is rewritten from them.
    """
    path = run_dir / METRICS
    kept = [record for record in read_records(path) if record["step"] <= step]
    temporary = path.with_name(f".{METRICS}.tmp")
    temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
    temporary.rename(path)
    samples = [record for record in kept if record["kind"] == "sample"]
    (run_dir / SAMPLES).unlink(missing_ok=True)
    for record in samples:
        append_sample(run_dir, record["step"], record["text"])
    return kept


def append_sample(run_dir: Path, step: int, text: str) -> None:
    """Add a sample to ``samples.txt``."""
    try:
        with (run_dir / SAMPLES).open("a", encoding="utf-8") as file:
            file.write(f"--- step {step}\n{text}\n\n")
    except OSError as error:
        _log.warning("%s cannot be written (%s)", run_dir / SAMPLES, error.strerror)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Warnings alone meanwhile: a copy of the model would tell once more which backend runs it."""
    logger = logging.getLogger("prnn")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


class _Quiet(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk must not fill the terminal with tracebacks."""


class Patient:
    """A stream whose reader may go (`| head`): training goes on, and what it says from then on goes nowhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # an unbuffered stream fails here
            self._stream.write(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            # Not only from here on: Python flushes the stream once more at exit, and would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def say(text: str, stream: TextIO) -> None:
    """Print a line, if anybody reads."""
    print(text, file=Patient(stream), flush=True)


class _Terminal(logging.StreamHandler):
    """Plain lines; above the progress bar when there is one."""

    bar: Any = None

    def emit(self, record: logging.LogRecord) -> None:
        if self.bar is None:
            super().emit(record)
        else:
            self.bar.write(self.format(record), file=self.stream)


def _figures(record: dict[str, Any]) -> str:
    return "".join(f"  {key} {value:.4f}" for key, value in record["figures"].items())


class Console:
    """Rank 0: ``train.log``, stdout and a progress bar on a terminal. Other ranks: warnings on stderr, no files."""

    def __init__(self, run_dir: Path, rank: int, progress: str, total: int | None, start: int, unit: str) -> None:
        self._logger = logging.getLogger("prnn")
        self._before = (self._logger.level, self._logger.propagate, list(self._logger.handlers))
        self._bar: Any = None
        self._unit = unit
        self._straggler: int | None = None  # told last
        if rank == 0:
            self._terminal = _Terminal(Patient(sys.stdout))
            file = _Quiet(run_dir / LOG, encoding="utf-8")
            file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            handlers: list[logging.Handler] = [self._terminal, file]
            if progress == "on" or (progress == "auto" and sys.stdout.isatty()):
                self._terminal.bar = self._bar = self._make_bar(total, start, self._terminal.stream)
        else:
            handlers = [logging.StreamHandler(sys.stderr)]
            handlers[0].setLevel(logging.WARNING)
            handlers[0].setFormatter(logging.Formatter(f"[rank {rank}] %(message)s"))
        self._logger.handlers[:] = handlers
        self._logger.setLevel(logging.INFO)
        self._logger.propagate = False

    @staticmethod
    def _make_bar(total: int | None, start: int, stream: Any) -> Any:
        from tqdm import tqdm

        return tqdm(total=total, initial=start, unit="step", dynamic_ncols=True, file=stream)

    def step(self) -> None:
        """One optimizer step is done."""
        if self._bar is not None:
            self._bar.update()

    def show(self, record: dict[str, Any]) -> None:
        """Print a record, for a person."""
        step, loss = record["step"], record.get("loss")
        if record["kind"] == "sample":
            self._logger.info("--- sample at step %d\n%s\n---", step, record["text"])
        elif record["kind"] == "val":
            self._logger.info("step %d  validation loss %.4f%s", step, loss, _figures(record))
        elif record["kind"] == "test":
            self._logger.info("test of the model of step %d%s", record["of_step"], _figures(record))
        elif record["kind"] == "pictures":
            self._logger.info("pictures: %s", ", ".join(record["files"].values()))
        elif record["kind"] == "ranks":
            self._tell_straggler(record)
        elif self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
        else:
            self._logger.info(
                "step %d  epoch %d  loss %.4f  lr %.3g  gradient norm %.3g  %s %s/s",
                step, record["epoch"], loss, record["lr"], record["grad_norm"],
                f"{record['tokens_per_second']:,.0f}", self._unit,
            )  # fmt: skip

    def _tell_straggler(self, record: dict[str, Any]) -> None:
        """One line when a rank falls behind; not again before another does, or none has."""
        rank, self._straggler, before = record["straggler"], record["straggler"], self._straggler
        if rank is None or rank == before:
            return
        own = [row["compute_ms"]["p50"] for row in record["ranks"]]
        row = record["ranks"][rank]
        self._logger.info(
            "step %d  rank %d on %s keeps the others waiting: %.3g ms of computing a step, the others %.3g; "
            "waiting for data %.0f %% of the time",
            record["step"], rank, row["host"], own.pop(rank), statistics.median(own), 100 * row["data_wait"],
        )  # fmt: skip

    def close(self) -> None:
        """Put logging back as it was."""
        if self._bar is not None:
            self._bar.close()
        for handler in self._logger.handlers:
            handler.close()
        self._logger.level, self._logger.propagate, self._logger.handlers[:] = self._before
