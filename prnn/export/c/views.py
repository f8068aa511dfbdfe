"""Where values stand: strided views of buffers, as torch's of storages, and loops over them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

INDICES = "ijklmn"  # of loops, from the outermost


@dataclass(eq=False)
class Buffer:
    """Floats in a row. ``name``: the pointer to the first of this frame. ``level``: the pass over the frames in which
    it is written, or None where every pass can read it: an input, a constant, an array of all frames.
    """

    name: str
    size: int
    level: int | None
    kind: str = "float"  # the type of its elements


class View(NamedTuple):
    """Elements of a buffer; sizes and strides are those of a tensor."""

    buffer: Buffer
    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def whole(cls, buffer: Buffer, sizes: Sequence[int]) -> View:
        return cls(buffer, 0, tuple(sizes), contiguous_strides(sizes))

    @property
    def numel(self) -> int:
        return math.prod(self.sizes)

    @property
    def is_contiguous(self) -> bool:
        return squeezed(self.sizes, self.strides) == squeezed(self.sizes, contiguous_strides(self.sizes))

    @property
    def pointer(self) -> str:
        """A pointer to the first element."""
        return self.buffer.name + (f" + {self.offset}" if self.offset else "")

    def reshaped(self, sizes: Sequence[int]) -> View:
        """The same elements of a contiguous view."""
        return View(self.buffer, self.offset, tuple(sizes), contiguous_strides(sizes))

    def same_place(self, other: View) -> bool:
        """Whether both are the same elements in the same order."""
        mine, others = (squeezed(view.sizes, view.strides) for view in (self, other))
        return self.buffer.name == other.buffer.name and self.offset == other.offset and mine == others

    def apply(self, operator: Callable[..., Any], *args: Any, **kwargs: Any) -> View | list[View]:
        """The view that one of torch's operators makes of it; RuntimeError where that needs a copy."""
        size = max(self.buffer.size, 1)
        base = torch.empty(size, device="meta").as_strided(self.sizes, self.strides, self.offset)
        found = operator(base, *args, **kwargs)
        return [self._of(each) for each in found] if isinstance(found, (tuple, list)) else self._of(found)

    def _of(self, tensor: Tensor) -> View:
        return View(self.buffer, int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride()))

    def broadcast(self, sizes: Sequence[int]) -> View:
        strides = [0] * (len(sizes) - len(self.sizes)) + [
            0 if size == 1 else stride for size, stride in zip(self.sizes, self.strides, strict=True)
        ]
        return View(self.buffer, self.offset, tuple(sizes), tuple(strides))

    def element(self, indices: Sequence[str], strides: Sequence[int] | None = None) -> str:
        """The element at ``indices``, one for each size."""
        terms = [
            index if stride == 1 else f"{index} * {stride}"
            for index, stride in zip(indices, self.strides if strides is None else strides, strict=True)
            if stride and index != "0"
        ]
        terms = [*([str(self.offset)] if self.offset or not terms else []), *terms]
        return f"{self.buffer.name}[{' + '.join(terms)}]"


def contiguous_strides(sizes: Sequence[int]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(sizes):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def squeezed(sizes: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """Sizes and strides without those of dimensions of one element."""
    return [(size, stride) for size, stride in zip(sizes, strides, strict=True) if size != 1]


class Loops(NamedTuple):
    """Loops over views of the same sizes, in as few dimensions as their strides allow."""

    sizes: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]  # of each view

    @classmethod
    def over(cls, views: Sequence[View]) -> Loops:
        sizes: list[int] = []
        strides: list[list[int]] = [[] for _ in views]
        for d, size in enumerate(views[0].sizes):
            if size == 1:
                continue
            steps = [view.strides[d] for view in views]
            if sizes and all(mine[-1] == step * size for mine, step in zip(strides, steps, strict=True)):
                sizes[-1] *= size
                for mine, step in zip(strides, steps, strict=True):
                    mine[-1] = step
            else:
                sizes.append(size)
                for mine, step in zip(strides, steps, strict=True):
                    mine.append(step)
        return cls(tuple(sizes), tuple(map(tuple, strides)))

    def elements(self, views: Sequence[View]) -> list[str]:
        """The element of each view within the loops."""
        indices = INDICES[: len(self.sizes)]
        return [view.element(indices, strides) for view, strides in zip(views, self.strides, strict=True)]

    def around(self, lines: Sequence[str]) -> list[str]:
        return nest(self.sizes, lines)


def indices_of(sizes: Sequence[int], letters: str) -> list[str]:
    """The index of each dimension: a letter, or 0 where there is one element."""
    return [letter if size != 1 else "0" for letter, size in zip(letters, sizes, strict=False)]


def nest(sizes: Sequence[int], lines: Sequence[str], indices: Sequence[str] = INDICES) -> list[str]:
    """``lines`` within a loop for each size but those whose index is 0; braces where there is more than one line."""
    loops = [(size, index) for size, index in zip(sizes, indices, strict=False) if index != "0"]
    sizes, indices = [size for size, _ in loops], [index for _, index in loops]
    if not sizes:
        return ["{", *(f"  {line}" for line in lines), "}"] if len(lines) > 1 else list(lines)
    inner = list(lines) if len(sizes) == 1 else nest(sizes[1:], lines, indices[1:])
    index = indices[0]
    head = f"for (int {index} = 0; {index} < {sizes[0]}; {index}++)"
    if len(inner) == 1:
        return [head, f"  {inner[0]}"]
    return [f"{head} {{", *(f"  {line}" for line in inner), "}"]
