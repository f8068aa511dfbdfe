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
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prnn.terminal import Patient, visible
from prnn.training import disk
from prnn.training.observe.record_reader import Records

METRICS, SAMPLES, LOG = "metrics.jsonl", "samples.txt", "train.log"
_log = logging.getLogger(__name__)


class Record:
    """Appends to ``metrics.jsonl``. A full disk delays lines and stops nothing; they are written when it can be.

    Where the file is deleted or replaced meanwhile, it is put back; where the run directory is, lines go to the file
    as long as this process has it, and ``directory`` tells.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / METRICS
        self.directory = disk.Held(run_dir)
        self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        disk.sync_directory(run_dir)
        self._take_stock()
        self._pending, self._torn = b"", False  # lines to be written; whether the file ends within one of them
        self._warned: set[str] = set()  # of what, until it is well again

    def _take_stock(self) -> None:
        """Count the bytes and lines of the file, and compute their CRC-32."""
        content = self._content()
        self._size, self._count, self._sum = len(content), content.count(b"\n"), zlib.crc32(content)

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; it survives the death of this process as soon as this returns."""
        clean = {key: jsonable(value) for key, value in record.items()}
        line = json.dumps(clean).encode() + b"\n"
        self._pending, self._count, self._sum = self._pending + line, self._count + 1, zlib.crc32(line, self._sum)
        self._flush()

    def mark(self) -> dict[str, int]:
        """What a checkpoint notes of the record, for ``gap``; all of it is on the disk now, if it can be."""
        self._flush()
        try:
            os.fsync(self._handle)
        except OSError as error:
            self._warn("sync", f"{self.path} cannot be synced ({error.strerror})")
        return {"records": self._count, "bytes": self._size + len(self._pending), "crc32": self._sum}

    def _flush(self) -> None:
        try:
            self._keep_in_place()
            while self._pending:
                written = os.pwrite(self._handle, self._pending, self._size)
                self._torn = not self._pending[:written].endswith(b"\n")
                self._size, self._pending = self._size + written, self._pending[written:]
            self._warned.discard("write")
        except OSError as error:
            reason = f"{self.path} cannot be written ({error.strerror})"
            self._warn("write", f"{reason}; trying again at the next record")

    def _keep_in_place(self) -> None:
        """See that the path leads to the file that is open, and that it holds what was written to it."""
        status = os.fstat(self._handle)
        if status.st_size < self._size:
            if self._torn:  # the beginning of that line is gone
                self._pending, self._torn = self._pending.partition(b"\n")[2], False
            waiting = self._pending.count(b"\n")
            written = self._count - waiting
            os.ftruncate(self._handle, self._content().rfind(b"\n") + 1)
            self._take_stock()
            gone = written - self._count
            self._count += waiting
            self._sum = zlib.crc32(self._pending, self._sum)
            _log.warning("%s was truncated: %s of its records are gone", self.path, f"{gone:,}")
        try:
            if os.path.samestat(status, self.path.stat()):
                return
        except (FileNotFoundError, NotADirectoryError):
            pass
        if (lost := self.directory.lost()) is not None:
            self._warn("directory", f"the run directory {self.directory.path} is not where it was: {lost}.")
            return
        other = disk.free_name(self.path)
        with contextlib.suppress(FileNotFoundError):
            self.path.rename(other)
        disk.replace(self.path, self._content())
        os.close(self._handle)
        self._handle = os.open(self.path, os.O_RDWR)
        what = f"replaced: what took its place is {other.name}" if other.exists() else "deleted"
        _log.warning("%s is written anew: it was %s", self.path, what)

    def _content(self) -> bytes:
        with open(self._handle, "rb", closefd=False) as file:
            file.seek(0)
            return file.read()

    def _warn(self, what: str, sentence: str) -> None:
        """Once, until it is well again."""
        if what not in self._warned:
            self._warned.add(what)
            _log.warning("%s", sentence)

    def close(self) -> None:
        """Close the file, synced."""
        self.mark()
        if self._pending:
            _log.warning("the last lines of %s could not be written", self.path)
        os.close(self._handle)
        self.directory.close()


def gap(run_dir: Path, mark: dict[str, int] | None, step: int) -> str | None:
    """What is missing from a record since ``mark`` was noted in the checkpoint of ``step``; None where nothing is."""
    if mark is None:  # an older version's checkpoint
        return None
    path = run_dir / METRICS
    content = b""
    if path.is_file():
        with contextlib.suppress(OSError), path.open("rb") as file:
            content = file.read(min(mark["bytes"], os.fstat(file.fileno()).st_size))
    if len(content) == mark["bytes"] - 1:  # all but the end of the last line
        content += b"\n"
    if len(content) == mark["bytes"] and zlib.crc32(content) == mark["crc32"]:
        return None
    held = content.count(b"\n")
    found = f"{held:,} of {mark['records']:,} records" if held < mark["records"] else "other records"
    return f"{path} has a gap, or was edited: up to step {step:,} it holds {found}"


def jsonable(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them, in dictionaries and lists too."""
    if isinstance(value, dict):
        return {key: jsonable(part) for key, part in value.items()}
    if isinstance(value, list):
        return [jsonable(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def rewind(run_dir: Path, step: int) -> tuple[set[tuple[str, int]], int]:
    """Drop the records after ``step``, which will be trained again, and lines that are damaged or there twice.

    Returns kind and step of the records of ``step`` itself, and how many lines were damaged or repeated.
    ``samples.txt`` is rewritten from the record.
    """
    path, kept = run_dir / METRICS, []
    seen: set[tuple[str, int]] = set()
    repeated = 0
    records = Records(path)
    (run_dir / SAMPLES).unlink(missing_ok=True)
    for line, record in records.lines():
        if record["step"] > step:
            continue
        if (name := (record["kind"], record["step"])) in seen:
            repeated += 1
            continue
        seen.add(name)
        kept.append(line)
        if record["kind"] == "sample" and record.get("text") is not None:
            append_sample(run_dir, record["step"], record["text"])
    disk.replace(path, b"".join(kept))
    return {name for name in seen if name[1] == step}, records.damaged + repeated


def append_sample(run_dir: Path, step: int, text: str) -> None:
    """Add a sample to ``samples.txt``."""
    try:
        with (run_dir / SAMPLES).open("a", encoding="utf-8", errors="replace") as file:
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


class _Visible(logging.Formatter):
    """Lines for a person, whatever the texts in them hold: ``train.log`` is looked at on a terminal too."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


class _Quiet(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk must not fill the terminal with tracebacks."""

    def close(self) -> None:
        """Nor must what it does not take of the log hide what training has ended with."""
        with contextlib.suppress(OSError):
            super().close()


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
            self._terminal.setFormatter(_Visible())
            file = _Quiet(run_dir / LOG, encoding="utf-8")
            file.setFormatter(_Visible("%(asctime)s %(levelname)s %(message)s"))
            handlers: list[logging.Handler] = [self._terminal, file]
            if progress == "on" or (progress == "auto" and sys.stdout.isatty()):
                self._terminal.bar = self._bar = self._make_bar(total, start, self._terminal.stream)
        else:
            handlers = [logging.StreamHandler(Patient(sys.stderr))]
            handlers[0].setLevel(logging.WARNING)
            handlers[0].setFormatter(_Visible(f"[rank {rank}] %(message)s"))
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
