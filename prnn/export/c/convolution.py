"""Convolutions of one and two dimensions: at each position a product with the elements that the kernel covers there.

Letters: B batch (frames that a model folds into it), C channels, O output channels, g groups; of two dimensions height
and width, of one width alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch.fx import Node

from prnn.export.c.builder import Builder, operator_of
from prnn.export.c.constants import packed_size
from prnn.export.c.operators import product_of
from prnn.export.c.values import Constant, Value
from prnn.export.c.views import Buffer, View, indices_of, nest


class _Shape(NamedTuple):
    """A convolution's sizes; ``channels`` and ``outputs`` are those of one group."""

    batch: int
    channels: int
    outputs: int
    groups: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    out: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def patch(self) -> int:
        return self.channels * self.kernel[0] * self.kernel[1]


@operator_of("convolution")
def _convolution(b: Builder, node: Node, arguments: dict[str, Any]) -> Value:
    level = b.levels[node]
    weight = b.values[arguments["weight"]]
    bias = None if arguments["bias"] is None else b.values[arguments["bias"]]
    if not isinstance(weight, Constant) or not (bias is None or isinstance(bias, Constant)):
        return b.refuse(node, " with a weight that is computed")
    if arguments["transposed"] or weight.tensor.dim() not in (3, 4):
        return b.refuse(node, " transposed or of three dimensions")
    source, target = b.contiguous(arguments["input"], level), b.result(node)
    shape = _shape(source.sizes, target.sizes, weight, arguments)
    packed = b.constants.matrices(weight.name, list(weight.tensor.reshape(shape.groups, shape.outputs, shape.patch)))
    patch = b.temporary(level, [shape.patch], f"{b.label(node)}_patch").buffer.name
    sums = b.temporary(level, [shape.outputs], f"{b.label(node)}_sums").buffer.name
    # Of one group after the other: the packed weights, the scales and the bias.
    steps = (packed_size(shape.outputs, shape.patch), shape.outputs)
    given = [_of_group(name, step, shape) for name, step in zip(packed, steps, strict=False)]
    given.append("NULL" if bias is None else _of_group(b.constant(bias).pointer, shape.outputs, shape))
    n, g, i, j = indices = indices_of([shape.batch, shape.groups, *shape.out], "ngij")
    place = target.reshaped((shape.batch, shape.groups * shape.outputs, *shape.out))
    lines = [
        *_gathered(source, shape, patch, indices),
        f"{product_of(b)}({shape.outputs}, {shape.patch}, {', '.join(given)}, {patch}, {sums});",
        f"for (int o = 0; o < {shape.outputs}; o++)",
        f"  {place.element([n, _channel(g, shape.outputs, 'o'), i, j])} = {sums}[o];",
    ]
    size = "x".join(map(str, weight.tensor.shape[2:]))
    b.emit(level, f"/* convolution of {size}: {_times(shape)} channels */")
    b.emit(level, *nest([shape.batch, shape.groups, *shape.out], lines, indices))
    return target


def _times(shape: _Shape) -> str:
    return f"{shape.groups * shape.channels} -> {shape.groups * shape.outputs}"


def _shape(source: Sequence[int], target: Sequence[int], weight: Constant, arguments: dict[str, Any]) -> _Shape:
    def pair(values: Sequence[int], missing: int = 1) -> tuple[int, int]:
        first, second = [missing, *map(int, values)][-2:]
        return first, second

    groups, outputs = int(arguments["groups"]), weight.tensor.shape[0] // int(arguments["groups"])
    return _Shape(
        *(source[0], weight.tensor.shape[1], outputs, groups),
        *(pair(source[2:]), pair(weight.tensor.shape[2:]), pair(target[2:])),
        *(pair(arguments["stride"]), pair(arguments["padding"], 0), pair(arguments["dilation"])),
    )


def _gathered(source: View, shape: _Shape, patch: str, indices: Sequence[str]) -> list[str]:
    """The elements that the kernel covers at the position (i, j), zero outside the input."""
    n, g, *position = indices
    sizes = (shape.channels, *shape.kernel)
    c, *taps = indices_of(sizes, "ckl")
    at = [_position(position[d], taps[d], d, shape) for d in (0, 1)]
    names = [name if text != "0" else "0" for name, text in zip(("row", "column"), at, strict=True)]
    moves = [d for d in (0, 1) if shape.kernel[d] > 1 or shape.padding[d]]
    checks = [f"{names[d]} >= 0 && {names[d]} < {shape.size[d]}" for d in moves]
    image = source.reshaped((shape.batch, shape.groups * shape.channels, *shape.size))
    element = image.element([n, _channel(g, shape.channels, c), *names])
    place = View.whole(Buffer(patch, shape.patch, None), sizes).element([c, *taps])
    declared = ", ".join(f"{name} = {text}" for name, text in zip(names, at, strict=True) if name != "0")
    lines = [f"const int {declared};"] if declared else []
    lines += [f"{place} = {' && '.join(checks)} ? {element} : 0.0f;" if checks else f"{place} = {element};"]
    return nest(sizes, lines, [c, *taps])


def _of_group(pointer: str, step: int, shape: _Shape) -> str:
    return f"{pointer} + g * {step}" if shape.groups > 1 else pointer


def _channel(g: str, each: int, index: str) -> str:
    """The number of a group's channel."""
    if g == "0":
        return index
    first = f"g * {each}" if each > 1 else "g"
    return first if index == "0" else f"({first} + {index})"


def _position(out: str, tap: str, d: int, shape: _Shape) -> str:
    """Where a tap of the kernel falls in the input."""
    terms = [
        index if step == 1 else f"{index} * {step}"
        for index, step in ((out, shape.stride[d]), (tap, shape.dilation[d]))
        if index != "0"
    ]
    padding = f" - {shape.padding[d]}" if shape.padding[d] else ""
    return f"{' + '.join(terms) or '0'}{padding}"
