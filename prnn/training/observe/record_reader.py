"""``metrics.jsonl`` and other JSON of a run, read: resume, plots and reports all read it here.

A file may be damaged, or made to do harm: what is passed on has the shape that docs/observability.md describes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MOST_LINE_BYTES = 16 << 20  # of a record; one of ten thousand processes has two million
MOST_STEP = 2**53  # a step beyond is no whole number in a curve
LARGEST = 1e300  # a number beyond it is taken for no number: differences of such are not finite
_MOST_DEPTH = 4  # of lists and dictionaries in each other: a process's times, in a process, in a list, in a record


class Records:
    """The records of ``path``, one after the other, from the file each time; none where there is no such file.

    Lines that are no record are left out, and ``damaged`` says of how many the last reading has done so. A last line
    without its end does not count: it is being written, or a crash has cut it short. Raises ``OSError``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damaged = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (record for _, record in self.lines())

    def lines(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Each record with its line."""
        self.damaged = 0
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            while line := file.readline(MOST_LINE_BYTES):
                record = _record(line)
                whole = line.endswith(b"\n")
                while len(line) == MOST_LINE_BYTES and not line.endswith(b"\n"):
                    record, whole, line = None, True, file.readline(MOST_LINE_BYTES)
                if record is not None:
                    yield (line if whole else line + b"\n"), record
                elif whole:
                    self.damaged += 1


def read_records(path: Path) -> list[dict[str, Any]]:
    """All records of a ``metrics.jsonl`` at once, as ``Records`` reads them."""
    return list(Records(path))


def damage(count: int, path: Path) -> str:
    """The warning about the lines that were left out."""
    return f"{count:,} damaged line{'s' if count > 1 else ''} of {path} {'are' if count > 1 else 'is'} left out"


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a run; empty where it is missing, damaged, or too large to be one of ours."""
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


# NaN and infinities are no JSON, but Python writes them.
_DECODER = json.JSONDecoder(parse_constant=lambda name: None)


def _parsed(content: bytes) -> Any:
    """A JSON value. Raises ``ValueError``, and ``RecursionError`` where it is nested too deeply."""
    value = _DECODER.decode(content.decode("utf-8"))
    return _without_halves(value) if b"\\ud" in content.lower() else value


def _without_halves(value: Any) -> Any:
    """Halves of characters, which JSON can hold and UTF-8 cannot, become question marks."""
    if isinstance(value, str):
        return value.encode("utf-8", errors="replace").decode("utf-8")
    if isinstance(value, list):
        return [_without_halves(part) for part in value]
    if isinstance(value, dict):
        return {_without_halves(key): _without_halves(part) for key, part in value.items()}
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


# The fields that are no plain values. A plain value may be anything: what is no number is a gap in a curve.
_SHAPES: dict[str, Callable[[Any], bool]] = {
    "text": lambda value: isinstance(value, str),
    "figures": lambda value: isinstance(value, dict),
    "files": _are_files,
    "ranks": _are_ranks,
}
