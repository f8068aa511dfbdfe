"""Tables as text for a terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Collection, Sequence

from prnn.reporting.tables import Table

GAP = "  "


def terminal_width() -> int | None:
    """The columns of the terminal that standard output goes to; None for a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def lines(
    table: Table,
    width: int | None = None,
    right: Collection[str] = (),
    shortened: str | None = None,
    left_out: Sequence[str] = (),
) -> list[str]:
    """The lines of a table, at most ``width`` wide where that is possible.

    Args:
        table: head and rows; a cell may hold any text.
        width: in characters; None: whatever it takes.
        right: names of the columns that are aligned to the right.
        shortened: the column whose texts are cut first, to no less than its head or 12 characters.
        left_out: the columns that are then left out, the first one first.
    """
    columns = {name: [row[i].replace("\n", " ") for row in table.rows] for i, name in enumerate(table.head)}
    if shortened in columns:
        excess = 0 if width is None else _width(columns) - width
        most = max(_cell_width(shortened, columns[shortened]) - max(0, excess), 12)
        columns[shortened] = [_cut(cell, most) for cell in columns[shortened]]
    for name in left_out:
        if width is None or _width(columns) <= width:
            break
        columns.pop(name, None)
    widths = {name: _cell_width(name, cells) for name, cells in columns.items()}
    rows = [list(columns), *(list(row) for row in zip(*columns.values(), strict=True))]
    return [
        GAP.join(
            cell.rjust(widths[name]) if name in right else cell.ljust(widths[name])
            for name, cell in zip(columns, row, strict=True)
        ).rstrip()
        for row in rows
    ]


def _width(columns: dict[str, list[str]]) -> int:
    return sum(_cell_width(name, cells) for name, cells in columns.items()) + len(GAP) * (len(columns) - 1)


def _cell_width(name: str, cells: list[str]) -> int:
    return max(len(name), *map(len, cells)) if cells else len(name)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def fields(values: dict[str, str]) -> list[str]:
    """Names and values, one to a line."""
    widest = max(map(len, values), default=0)
    return [f"{name.ljust(widest)}{GAP}{value}".rstrip() for name, value in values.items()]
