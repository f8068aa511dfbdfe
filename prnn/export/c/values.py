"""What a node of the graph is while C is written: a view of a buffer, or something that is not written anywhere yet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor
from torch.fx import Node

from prnn.codegen.expressions import Expression, Graph
from prnn.export.c.views import View


class Cat(NamedTuple):
    """Values one after the other, not written anywhere yet."""

    pieces: tuple[Value, ...]
    dim: int
    sizes: tuple[int, ...]


@dataclass(eq=False)
class Group:
    """Pointwise operators on the same elements, which will be one loop."""

    level: int
    graph: Graph = field(default_factory=Graph)
    leaves: dict[Expression, View] = field(default_factory=dict)
    members: dict[Node, Lazy] = field(default_factory=dict)


class Lazy(NamedTuple):
    """An element of a group's loop."""

    group: Group
    expression: Expression
    sizes: tuple[int, ...]


class Constant(NamedTuple):
    """A tensor known at export, and the name of the weight that it is made of."""

    tensor: Tensor
    name: str


Value = View | Lazy | Cat | Constant


def pieces_at(value: Cat, target: View) -> list[tuple[Value, View]]:
    """The pieces, each with its place in ``target``."""
    found: list[tuple[Value, View]] = []
    start = 0
    for piece in value.pieces:
        sizes = sizes_of(piece)
        if value.dim < 0:  # one after the other in memory
            found.append((piece, View.whole(target.buffer, sizes)._replace(offset=target.offset + start)))
            start += math.prod(sizes)
        else:
            offset = target.offset + start * target.strides[value.dim]
            found.append((piece, View(target.buffer, offset, sizes, target.strides)))
            start += sizes[value.dim]
    return found


def part_of(value: Cat, region: View) -> View | Cat | None:
    """The pieces of a concatenation, or the part of one, that a view of the whole is; None where they are no views, or
    have gaps.
    """
    found = []
    for piece, start in sorted(_leaves(value, View.whole(region.buffer, value.sizes)), key=lambda leaf: leaf[1]):
        first, last = max(start, region.offset), min(start + piece.numel, region.offset + region.numel)
        if first < last:
            found.append(View(piece.buffer, piece.offset + first - start, (last - first,), (1,)))
    if not region.is_contiguous or sum(piece.numel for piece in found) != region.numel:
        return None
    return found[0].reshaped(region.sizes) if len(found) == 1 else Cat(tuple(found), -1, region.sizes)


def _leaves(value: Value, place: View) -> list[tuple[View, int]]:
    """The views without gaps that a concatenation is made of, and where they begin."""
    if isinstance(value, Cat):
        return [leaf for piece, at in pieces_at(value, place) for leaf in _leaves(piece, at)]
    whole = isinstance(value, View) and value.is_contiguous and place.is_contiguous
    return [(value, place.offset)] if whole and isinstance(value, View) else []


def is_flat(value: Cat) -> bool:
    """Whether the pieces stand one after the other in memory."""
    return value.dim < 0 or all(size == 1 for size in value.sizes[: value.dim])


def sizes_of(value: Value) -> tuple[int, ...]:
    return tuple(value.tensor.shape) if isinstance(value, Constant) else value.sizes


def without_ones(sizes: Sequence[int]) -> tuple[int, ...]:
    return tuple(size for size in sizes if size != 1)
