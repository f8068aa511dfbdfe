"""Weights as arrays of C: matrices in panels of rows, as int8 where that is wanted."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from prnn.errors import UserError
from prnn.export.c.expressions import identifier, number

PANELS = (32, 8)  # heights of panels: the last of a matrix's rows are in panels of 8
_LINE = 116  # characters


class Constants:
    """The arrays of a source, each once; ``taken`` are the identifiers of the source."""

    def __init__(self, weights: str, taken: set[str]) -> None:
        self.int8 = weights == "int8"
        self.arrays: dict[str, tuple[str, str]] = {}  # by name: the declaration and the definition
        self._taken = taken
        self._known: dict[tuple[object, ...], str] = {}

    def plain(self, name: str, tensor: Tensor) -> str:
        """The C name of an array of floats, contiguous."""
        return self._array(name, "float", tensor.detach().float().contiguous().flatten(), list(tensor.shape))

    def matrices(self, name: str, blocks: Sequence[Tensor]) -> list[str]:
        """The arguments of ``product`` for matrices [rows,columns] of one shape: the packed weights, one after the
        other, and with int8 the scales of all rows.
        """
        rows, columns = blocks[0].shape
        shape = [len(blocks), rows, columns] if len(blocks) > 1 else [rows, columns]
        comment = f"{_shape(shape)} in panels of rows, [columns][{PANELS[0]}] and [columns][{PANELS[1]}]"
        matrix = torch.cat([block.detach().float() for block in blocks])
        if not self.int8:
            packed = torch.cat([_packed(block) for block in matrix.split(rows)])
            return [self._array(name, "float", packed, shape, comment)]
        scales, matrix = quantised(matrix)
        packed = torch.cat([_packed(block) for block in matrix.split(rows)])
        return [
            self._array(name, "int8_t", packed, shape, comment),
            self._array(f"{name}_scales", "float", scales, [len(matrix)], "one for each row"),
        ]

    def rows(self, name: str, table: Tensor) -> list[str]:
        """A table whose rows are looked up; with int8 the scales besides."""
        if not self.int8:
            return [self.plain(name, table)]
        scales, whole = quantised(table.detach().float())
        return [
            self._array(name, "int8_t", whole.flatten(), list(table.shape)),
            self._array(f"{name}_scales", "float", scales, [len(table)], "one for each row"),
        ]

    def _array(self, name: str, kind: str, values: Tensor, shape: Sequence[int], comment: str = "") -> str:
        numbers = values.tolist()
        key = (name, kind, tuple(shape), struct.pack(f"{len(numbers)}f", *numbers))
        if key not in self._known:
            self._known[key] = unique = identifier(name, self._taken)
            head = f"static const {kind} {unique}[{len(numbers)}]"
            declaration = f"{head}; /* {comment or _shape(shape)} */"
            texts = map(number if kind == "float" else _whole, numbers)
            self.arrays[unique] = declaration, f"{head} = {{\n{_lines(texts)}\n}};"
        return self._known[key]


def packed_size(rows: int, columns: int) -> int:
    """Elements of a packed matrix."""
    high, low = PANELS
    return columns * (rows // high * high + -(-(rows % high) // low) * low)


def quantised(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Scales [rows], and the whole numbers from -127 to 127 by which each row is them; symmetric, by the largest."""
    largest = matrix.abs().flatten(1).amax(1)
    smallest = 127 * torch.finfo(torch.float32).tiny  # below it a scale is no normal number
    if not matrix.isfinite().all():
        raise UserError("a weight holds numbers that are not finite: expected weights='float32' for it")
    scales = torch.where(largest > smallest, largest / 127, torch.ones_like(largest))
    return scales, torch.round(matrix / scales.unsqueeze(1))


def _packed(matrix: Tensor) -> Tensor:
    """[rows,columns] as panels [rows/32][columns][32], the rest of the rows as [..][columns][8]; padded by zeros."""
    high, low = PANELS
    split = len(matrix) // high * high
    parts = []
    for rows, height in ((matrix[:split], high), (matrix[split:], low)):
        padded = torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % height))
        parts.append(padded.reshape(-1, height, matrix.shape[1]).transpose(1, 2).flatten())
    return torch.cat(parts)


def _shape(shape: Sequence[int]) -> str:
    return "".join(f"[{size}]" for size in shape) or "[1]"


def _whole(value: float) -> str:
    return str(int(value))


def _lines(texts: Iterable[str]) -> str:
    lines, line = [], " "
    for text in texts:
        if len(line) + len(text) + 2 > _LINE:
            lines.append(line)
            line = " "
        line += f" {text},"
    return "\n".join([*lines, line])
