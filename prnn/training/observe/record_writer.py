"""Writer of ``metrics.jsonl``, the record of a run, and of ``samples.txt``.

Every record is one JSON object on a line, with ``kind`` (train, ranks, val, sample, test, pictures) and ``step``;
docs/observability.md has the fields. Weights & Biases and TensorBoard (``loggers.py``) show the same records and can be
filled from the file afterwards.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import zlib
from pathlib import Path
from typing import Any

from prnn.training import disk
from prnn.training.observe.record_reader import Records
from prnn.training.run_files import METRICS, SAMPLES

_log = logging.getLogger(__name__)


class Record:
    """Appends to ``metrics.jsonl``. Lines that a full disk rejects stay buffered and are retried; training goes on.

    If the file is deleted or replaced, it is restored. If the run directory is, lines go to the file that this process
    still has open, and ``directory`` detects it.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / METRICS
        self.directory = disk.Held(run_dir)
        self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        disk.sync_directory(run_dir)
        self._scan()
        self._pending, self._torn = b"", False  # lines to be written; whether the file ends in a partial line
        self._warned: set[str] = set()  # problems already reported, until they are resolved

    def _scan(self) -> None:
        """Count the bytes and lines of the file, and compute their CRC-32."""
        content = self._content()
        self._size, self._count, self._sum = len(content), content.count(b"\n"), zlib.crc32(content)

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; it survives a crash of this process once this returns."""
        clean = {key: jsonable(value) for key, value in record.items()}
        line = json.dumps(clean).encode() + b"\n"
        self._pending, self._count, self._sum = self._pending + line, self._count + 1, zlib.crc32(line, self._sum)
        self._flush()

    def mark(self) -> dict[str, int]:
        """The extent of the record, saved in a checkpoint for ``gap``; flushes and fsyncs the file, if possible."""
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
        """Detect that the open file was truncated, deleted or replaced, and restore it."""
        status = os.fstat(self._handle)
        if status.st_size < self._size:
            if self._torn:  # the start of that line is gone
                self._pending, self._torn = self._pending.partition(b"\n")[2], False
            waiting = self._pending.count(b"\n")
            written = self._count - waiting
            os.ftruncate(self._handle, self._content().rfind(b"\n") + 1)
            self._scan()
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
        what = f"replaced: its replacement is now {other.name}" if other.exists() else "deleted"
        _log.warning("%s is rewritten: it was %s", self.path, what)

    def _content(self) -> bytes:
        with open(self._handle, "rb", closefd=False) as file:
            file.seek(0)
            return file.read()

    def _warn(self, problem: str, message: str) -> None:
        """Warn once, until the problem is resolved."""
        if problem not in self._warned:
            self._warned.add(problem)
            _log.warning("%s", message)

    def close(self) -> None:
        """Fsync and close the file."""
        self.mark()
        if self._pending:
            _log.warning("the last lines of %s could not be written", self.path)
        os.close(self._handle)
        self.directory.close()


def gap(run_dir: Path, mark: dict[str, int] | None, step: int) -> str | None:
    """A warning if the record lacks lines covered by ``mark``, of the checkpoint of ``step``; None if complete."""
    if mark is None:  # checkpoint of an older version
        return None
    path = run_dir / METRICS
    content = b""
    if path.is_file():
        with contextlib.suppress(OSError), path.open("rb") as file:
            content = file.read(min(mark["bytes"], os.fstat(file.fileno()).st_size))
    if len(content) == mark["bytes"] - 1:  # only the last newline is missing
        content += b"\n"
    if len(content) == mark["bytes"] and zlib.crc32(content) == mark["crc32"]:
        return None
    count = content.count(b"\n")
    contents = f"{count:,} of {mark['records']:,} records" if count < mark["records"] else "other records"
    return f"{path} has a gap, or was edited: up to step {step:,} it holds {contents}"


def jsonable(value: Any) -> Any:
    """Replace NaN and infinity, which JSON lacks, by None, recursively."""
    if isinstance(value, dict):
        return {key: jsonable(part) for key, part in value.items()}
    if isinstance(value, list):
        return [jsonable(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def rewind(run_dir: Path, step: int) -> tuple[set[tuple[str, int]], int]:
    """Drop the records after ``step``, which will be trained again, and damaged or duplicate lines.

    Returns the kind and step of the records of ``step`` itself, and the number of damaged or duplicate lines.
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
    """Append a sample to ``samples.txt``."""
    try:
        with (run_dir / SAMPLES).open("a", encoding="utf-8", errors="replace") as file:
            file.write(f"--- step {step}\n{text}\n\n")
    except OSError as error:
        _log.warning("%s cannot be written (%s)", run_dir / SAMPLES, error.strerror)
