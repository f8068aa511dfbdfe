"""Convolutions of one and two dimensions, transposed ones too, and pooling: at each position of the output a product, a
mean or the largest of the elements that the kernel covers there.

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
    transposed: bool = False

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
    if weight.tensor.dim() not in (3, 4):
        return b.refuse(node, " of three dimensions")
    source, target = b.contiguous(arguments["input"], level), b.result(node)
    shape = _shape(source.sizes, target.sizes, weight, arguments)
    matrices = weight.tensor.unflatten(0, (shape.groups, -1))
    matrices = matrices.transpose(1, 2) if shape.transposed else matrices  # of which the input's channels are the rows
    packed = b.constants.matrices(weight.name, list(matrices.reshape(shape.groups, shape.outputs, shape.patch)))
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
    kind = "transposed convolution" if shape.transposed else "convolution"
    b.emit(level, f"/* {kind} of {size}: {shape.groups * shape.channels} -> {shape.groups * shape.outputs} channels */")
    b.emit(level, *nest([shape.batch, shape.groups, *shape.out], lines, indices))
    return target


def _shape(source: Sequence[int], target: Sequence[int], weight: Constant, arguments: dict[str, Any]) -> _Shape:
    groups = int(arguments["groups"])
    return _Shape(
        *(source[0], source[1] // groups, target[1] // groups, groups),
        *(_pair(source[2:]), _pair(weight.tensor.shape[2:]), _pair(target[2:])),
        *(_pair(arguments["stride"]), _pair(arguments["padding"], 0), _pair(arguments["dilation"])),
        transposed=arguments["transposed"],
    )


def _pair(values: Sequence[int], missing: int = 1) -> tuple[int, int]:
    """Of height and width, where height may be missing."""
    first, second = [missing, *map(int, values)][-2:]
    return first, second


def _gathered(source: View, shape: _Shape, patch: str, indices: Sequence[str]) -> list[str]:
    """The elements that the kernel covers at the position (i, j), zero outside the input."""
    n, g, *position = indices
    sizes = (shape.channels, *shape.kernel)
    c, *taps = indices_of(sizes, "ckl")
    declared, inside, names = _covered(position, taps, shape)
    image = source.reshaped((shape.batch, shape.groups * shape.channels, *shape.size))
    element = image.element([n, _channel(g, shape.channels, c), *names])
    place = View.whole(Buffer(patch, shape.patch, None), sizes).element([c, *taps])
    value = f"{inside} ? {element} : 0.0f" if inside else element
    return nest(sizes, [*declared, f"{place} = {value};"], [c, *taps])


def _covered(position: Sequence[str], taps: Sequence[str], shape: _Shape) -> tuple[list[str], str, list[str]]:
    """The lines that declare where a tap of the kernel falls, the condition that the input is there, its indices."""
    at = [_position(position[d], taps[d], d, shape) for d in (0, 1)]
    names = [name if text != "0" else "0" for name, text in zip(("row", "column"), at, strict=True)]
    checks, indices = [], []
    for d, name in enumerate(names):
        step = shape.stride[d] if shape.transposed and name != "0" else 1
        index = f"{name} / {step}" if step > 1 else name
        if shape.kernel[d] > 1 or shape.padding[d] or step > 1:
            whole = f" && {name} % {step} == 0" if step > 1 else ""
            checks.append(f"{name} >= 0{whole} && {index} < {shape.size[d]}")
        indices.append(f"({index})" if step > 1 else index)
    declared = ", ".join(f"{name} = {text}" for name, text in zip(names, at, strict=True) if name != "0")
    return [f"const int {declared};"] if declared else [], " && ".join(checks), indices


def _of_group(pointer: str, step: int, shape: _Shape) -> str:
    return f"{pointer} + g * {step}" if shape.groups > 1 else pointer


def _channel(g: str, each: int, index: str) -> str:
    """The number of a group's channel."""
    if g == "0":
        return index
    first = f"g * {each}" if each > 1 else "g"
    return first if index == "0" else f"({first} + {index})"


def _position(out: str, tap: str, d: int, shape: _Shape) -> str:
    """Where a tap of the kernel falls in the input; of a transposed convolution, times its stride."""

    def times(index: str, step: int) -> str:
        return index if step == 1 else f"{index} * {step}"

    padding, spread = shape.padding[d], times(tap, shape.dilation[d])
    if shape.transposed:
        text = out if not padding else f"{out} + {padding}" if out != "0" else str(padding)
        return text if tap == "0" else f"{text} - {spread}"
    terms = [times(out, shape.stride[d])] if out != "0" else []
    terms += [spread] if tap != "0" else []
    return (" + ".join(terms) or "0") + (f" - {padding}" if padding else "")


# Pooling.


@operator_of("max_pool2d_with_indices", "avg_pool1d", "avg_pool2d")
def _pool(b: Builder, node: Node, arguments: dict[str, Any]) -> Any:
    level, largest = b.levels[node], "max" in str(node.target)
    if arguments["ceil_mode"] or any(user.args[1] != 0 for user in node.users if largest):
        return b.refuse(node, " with ceil_mode, or indices")
    source = b.contiguous(arguments["self"], level)
    sizes = tuple((node.meta["val"][0] if largest else node.meta["val"]).shape)
    target = b.temporary(level, sizes, b.label(node))
    kernel = _pair(arguments["kernel_size"])
    given = {name: list(arguments.get(name) or ()) for name in ("stride", "padding", "dilation")}
    shape = _Shape(
        *(1, source.sizes[0] * source.sizes[1], 1, 1),
        *(_pair(source.sizes[2:]), kernel, _pair(sizes[2:])),
        *(_pair(given["stride"] or kernel), _pair(given["padding"] or [0, 0], 0), _pair(given["dilation"] or [1, 1])),
    )
    c, i, j = indices = indices_of([shape.channels, *shape.out], "cij")
    taps = indices_of(kernel, "kl")
    declared, inside, names = _covered([i, j], taps, shape)
    x = source.reshaped((shape.channels, *shape.size)).element([c, *names])
    y = target.reshaped((shape.channels, *shape.out)).element(indices)
    start, step, result = _pooling(largest, arguments, kernel, x)
    lines = [*declared, f"if ({inside}) {step}" if inside else step]
    b.emit(
        level, *nest([shape.channels, *shape.out], [*start, *nest(kernel, lines, taps), f"{y} = {result};"], indices)
    )
    return [target, None] if largest else target


def _pooling(largest: bool, arguments: dict[str, Any], kernel: tuple[int, int], x: str) -> tuple[list[str], str, str]:
    """The lines before, the statement for an element x, and the result."""
    if largest:
        return ["float found = -INFINITE;"], f"found = {x} > found ? {x} : found;", "found"
    divisor = arguments.get("divisor_override") or kernel[0] * kernel[1]
    if arguments["count_include_pad"] or arguments.get("divisor_override"):
        return ["float found = 0.0f;"], f"found += {x};", f"found / {divisor}.0f"
    return ["float found = 0.0f;", "int count = 0;"], f"found += {x}, count++;", "found / (float)count"
