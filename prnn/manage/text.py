"""Tables as text for a terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from prnn.reporting import tables

GAP = "  "
NOTHING = "–"  # in a cell without a value
_LEAST = 20  # characters of a column that is cut


@dataclass(frozen=True)
class Table:
    """A header and rows of texts."""

    head: list[str]
    rows: list[list[str]]

    @classmethod
    def of(cls, table: tables.Table) -> Table:
        """The texts of a report's table, without the rows in which there is nothing."""
        rows = [[cell.text for cell in row] for row in table.rows]
        return cls(table.head, [row for row in rows if set(row[1:]) != {NOTHING}])


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
        table: head and rows; a cell may hold any text, and the names in the head differ.
        width: in characters; None: whatever it takes.
        right: names of the columns that are aligned to the right.
        shortened: the column whose texts are cut where the width is short, to ``_LEAST`` characters at the least.
        left_out: the columns that are left out where that is not enough, the first one first.
    """
    columns = {name: [row[i].replace("\n", " ") for row in table.rows] for i, name in enumerate(table.head)}
    widths = {name: max(map(len, (name, *cells))) for name, cells in columns.items()}
    if width is not None:
        spare = max(0, widths.get(shortened or "", 0) - _LEAST)
        for name in left_out:
            if _total(widths) - spare > width:
                del widths[name]
        if shortened in widths:
            widths[shortened] -= min(spare, max(0, _total(widths) - width))
    shown = [[_cell(text, widths[name], name in right) for text in (name, *columns[name])] for name in widths]
    return [GAP.join(row).rstrip() for row in zip(*shown, strict=True)]


def _total(widths: dict[str, int]) -> int:
    return sum(widths.values()) + len(GAP) * (len(widths) - 1)


def _cell(text: str, width: int, right: bool) -> str:
    text = text if len(text) <= width else f"{text[: width - 1]}…"
    return text.rjust(width) if right else text.ljust(width)


def stacked(table: Table) -> list[str]:
    """The lines of a table that is too wide: of each row its name, and below it each cell with its column's name."""
    said = []
    for name, *cells in table.rows:
        said += [name, *(f"{GAP}{line}" for line in fields(dict(zip(table.head[1:], cells, strict=True))))]
    return said


def loss(value: float | None) -> str:
    """A loss: four decimals, where it has not exploded."""
    if value is None:
        return "–"
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.3g}"


def fields(values: dict[str, str]) -> list[str]:
    """Names and values, one to a line."""
    widest = max(map(len, values), default=0)
    return [f"{name.ljust(widest)}{GAP}{value}".rstrip() for name, value in values.items()]
