"""Tables in markdown."""

from __future__ import annotations

from collections.abc import Iterable


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    cells = list(head)
    return "\n".join(map(_line, [cells, ["---"] * len(cells), *rows]))


def _line(cells: Iterable[str]) -> str:
    escaped = [" ".join(cell.replace("|", r"\|").split("\n")) for cell in cells]
    return f"| {' | '.join(escaped)} |"
