"""The record of a run, written: ``metrics.jsonl``, and ``samples.txt`` beside it.

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
import zlib
from pathlib import Path
from typing import Any

from prnn.training import disk
from prnn.training.observe.record_reader import Records

METRICS, SAMPLES = "metrics.jsonl", "samples.txt"
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
    actual = f"{held:,} of {mark['records']:,} records" if held < mark["records"] else "other records"
    return f"{path} has a gap, or was edited: up to step {step:,} it holds {actual}"


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
