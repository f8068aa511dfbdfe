"""Validating reader of ``metrics.jsonl`` and other JSON of a run, for resume, plots and reports.

Files may be damaged or malicious: only records of the schema in docs/observability.md are returned.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MOST_LINE_BYTES = 16 << 20  # of a record; one of ten thousand processes has two million
MOST_STEP = 2**53  # larger integers are not exact in float64
LARGEST = 1e300  # larger numbers are rejected: their differences overflow
_TAIL_BYTES = 16 << 10
_MOST_DEPTH = 4  # nesting of lists and dictionaries: a rank's times, in a rank, in a list, in a record


class Records:
    """An iterable over the records of ``path``, which reads the file on each pass; empty if there is no such file.

    Lines that are not valid records are skipped; ``damaged`` is their number in the last pass. An incomplete last line
    does not count: it is being written, or was truncated by a crash. With ``kind``, the records of this kind alone, in
    a fraction of the time and without ``damaged``. Raises ``OSError``.
    """

    def __init__(self, path: Path, kind: str | None = None) -> None:
        self.path, self.kind = path, kind
        self._mark = b"" if kind is None else json.dumps(kind).encode()
        self.damaged = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (record for _, record in self.lines())

    def lines(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Each record with its raw line."""
        self.damaged = 0
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            while line := file.readline(MOST_LINE_BYTES):
                record = _record(line) if self._mark in line else None
                whole = line.endswith(b"\n")
                while len(line) == MOST_LINE_BYTES and not line.endswith(b"\n"):
                    record, whole, line = None, True, file.readline(MOST_LINE_BYTES)
                if record is not None and self.kind in (None, record["kind"]):
                    yield (line if whole else line + b"\n"), record
                elif whole and self.kind is None:
                    self.damaged += 1


def read_records(path: Path) -> list[dict[str, Any]]:
    """All records of a ``metrics.jsonl`` at once, as ``Records`` reads them."""
    return list(Records(path))


def last_record(path: Path, kind: str) -> dict[str, Any]:
    """The last record of one kind, read from the end of the file; empty if there is none. Raises no ``OSError``."""
    try:
        if not path.is_file():
            return {}
        with path.open("rb") as file:
            size = file.seek(0, 2)
            reach = 0
            while reach < size:
                reach = min(size, max(_TAIL_BYTES, 8 * reach))
                file.seek(size - reach)
                lines = file.read(reach).splitlines(keepends=True)
                for line in reversed(lines[1:] if reach < size else lines):
                    record = _record(line)
                    if record is not None and record["kind"] == kind:
                        return record
    except OSError:
        pass
    return {}


def damage(count: int, path: Path) -> str:
    """The warning about skipped lines."""
    return f"{count:,} damaged line{'s' if count > 1 else ''} of {path} {'are' if count > 1 else 'is'} left out"


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a run; empty if it is missing, damaged, or too large."""
    try:
        if not path.is_file() or path.stat().st_size > MOST_LINE_BYTES:
            return {}
        value = _parsed(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) and _is_shallow(value, _MOST_DEPTH) else {}


def number(value: Any) -> float | None:
    """A finite number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if abs(value) <= LARGEST else None  # false for NaN


# NaN and infinities are not valid JSON, but Python writes them.
_DECODER = json.JSONDecoder(parse_constant=lambda name: None)


def _parsed(content: bytes) -> Any:
    """A JSON value. Raises ``ValueError``, and ``RecursionError`` where it is nested too deeply."""
    value = _DECODER.decode(content.decode("utf-8"))
    return _without_surrogates(value) if b"\\ud" in content.lower() else value


def _without_surrogates(value: Any) -> Any:
    """Replace lone surrogates, which are valid in JSON but not in UTF-8, by question marks."""
    if isinstance(value, str):
        return value.encode("utf-8", errors="replace").decode("utf-8")
    if isinstance(value, list):
        return [_without_surrogates(part) for part in value]
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(part) for key, part in value.items()}
    return value


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        value = _parsed(line)
    except (ValueError, RecursionError):
        return None
    return value if _is_record(value) else None


def _is_record(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("kind"), str)
        and type(value.get("step")) is int
        and 0 <= value["step"] <= MOST_STEP
        and all(fits(value[name]) for name, fits in _SHAPES.items() if value.get(name) is not None)
        and _is_shallow(value, _MOST_DEPTH)
    )


def _is_shallow(value: dict[str, Any] | list[Any], depth: int) -> bool:
    for part in value.values() if isinstance(value, dict) else value:
        if isinstance(part, (dict, list)) and (depth == 1 or not _is_shallow(part, depth - 1)):
            return False
    return True


def _are_files(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(file, str) for file in value.values())


def _are_ranks(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(entry, dict) and type(entry.get("rank")) is int and 0 <= entry["rank"] < 2**31 for entry in value
    )


# The fields with a structure. Other fields may hold any value: a non-number is a gap in a curve.
_SHAPES: dict[str, Callable[[Any], bool]] = {
    "text": lambda value: isinstance(value, str),
    "figures": lambda value: isinstance(value, dict),
    "files": _are_files,
    "ranks": _are_ranks,
}
