"""Sums, extremes and what is made of them: normalisation, softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch.fx import Node

from prnn.export.c.builder import Builder, operator_of
from prnn.export.c.expressions import number
from prnn.export.c.values import Constant, Value
from prnn.export.c.views import INDICES, View, indices_of, nest

# Normalisation.


@operator_of("native_layer_norm")
def _layer_norm(b: Builder, node: Node, arguments: dict[str, Any]) -> Any:
    level = b.levels[node]
    source = b.contiguous(arguments["input"], level)
    target = b.temporary(level, source.sizes, b.label(node))
    size = math.prod(arguments["normalized_shape"])
    scaled = [
        "NULL" if arguments[name] is None else b.view(arguments[name], level).pointer for name in ("weight", "bias")
    ]
    b.functions.add("normalise")
    count, epsilon = source.numel // size, number(arguments["eps"])
    b.emit(level, f"normalise({count}, {size}, {epsilon}, {source.pointer}, {', '.join(scaled)}, {target.pointer});")
    return [target, None, None]


@operator_of("_native_batch_norm_legit_no_training")
def _batch_norm(b: Builder, node: Node, arguments: dict[str, Any]) -> Any:
    """In evaluation mode: x times a factor, plus a shift, of each channel."""
    tensors = {
        name: b.values[arguments[name]]
        for name in ("weight", "bias", "running_mean", "running_var")
        if arguments[name] is not None
    }
    if not all(isinstance(each, Constant) for each in tensors.values()):
        return b.refuse(node, " with computed statistics")
    mean, variance = (tensors[name].tensor.double() for name in ("running_mean", "running_var"))
    factor = (variance + arguments["eps"]).rsqrt()
    factor = factor * tensors["weight"].tensor.double() if "weight" in tensors else factor
    shift = -mean * factor
    shift = shift + tensors["bias"].tensor.double() if "bias" in tensors else shift
    x = arguments["input"]
    sizes = tuple(x.meta["val"].shape)
    shape = [len(mean), *[1] * (len(sizes) - 2)]
    name = tensors["running_mean"].name.rpartition(".")[0]
    by_name = {"factor": factor, "shift": shift}
    first, second = (Constant(by_name[each].float().reshape(shape), f"{name}.{each}") for each in by_name)
    for user in node.users:
        if user.args[1] == 0:
            b.values[user] = b.pointwise(user, sizes, b.levels[node], [x], lambda of: of(x) * of(first) + of(second))
    return [None, None, None]


@operator_of("native_group_norm")
def _group_norm(b: Builder, node: Node, arguments: dict[str, Any]) -> Any:
    groups = arguments["input"].meta["val"].shape[0] * int(arguments["group"])
    return _normalised(b, node, arguments, groups, int(arguments["C"]))


@operator_of("_native_batch_norm_legit")
def _instance_norm(b: Builder, node: Node, arguments: dict[str, Any]) -> Any:
    """With statistics of the input, as instance normalisation is: of each channel of the one frame."""
    shape = arguments["input"].meta["val"].shape
    if shape[0] != 1 or "running_mean" in arguments:
        return b.refuse(node, " with statistics of a batch")
    return _normalised(b, node, arguments, shape[1], shape[1])


def _normalised(b: Builder, node: Node, arguments: dict[str, Any], count: int, channels: int) -> Any:
    """``count`` parts of the input normalised, then a factor and a shift of each channel."""
    level = b.levels[node]
    source = b.contiguous(arguments["input"], level)
    shape, scaled = (channels, *[1] * (len(source.sizes) - 2)), []
    for name in ("weight", "bias"):
        value = None if arguments[name] is None else b.values[arguments[name]]
        if value is not None and not isinstance(value, Constant):
            return b.refuse(node, f" with a {name} that is computed")
        scaled.append(None if value is None else value._replace(tensor=value.tensor.reshape(shape)))
    target = b.temporary(level, source.sizes, b.label(node))
    b.functions.add("normalise")
    sizes = f"{count}, {source.numel // count}, {number(arguments['eps'])}"
    b.emit(level, f"normalise({sizes}, {source.pointer}, NULL, NULL, {target.pointer});")

    def affine(of: Any) -> Any:
        y = of(target) if scaled[0] is None else of(target) * of(scaled[0])
        return y if scaled[1] is None else y + of(scaled[1])

    for user in node.users:
        if user.args[1] == 0:
            b.values[user] = b.pointwise(user, source.sizes, level, [], affine)
    return [target, None, None]


@operator_of("_softmax", "softmax", "_log_softmax", "log_softmax")
def _softmax(b: Builder, node: Node, arguments: dict[str, Any]) -> Value:
    level = b.levels[node]
    source, target = b.contiguous(arguments["self"], level), b.result(node)
    name = "log_softmax" if "log" in str(node.target) else "softmax"
    b.functions.add(name)
    dim = arguments["dim"] % max(len(source.sizes), 1)
    size, stride = source.sizes[dim], math.prod(source.sizes[dim + 1 :])
    outer = math.prod(source.sizes[:dim])
    indices = indices_of([outer, stride], "ij")
    x, y = (_at(view, indices, [size * stride, 1]) for view in (source, target))
    b.emit(level, *nest([outer, stride], [f"{name}({size}, {stride}, {x}, {y});"], indices))
    return target


def _at(view: View, indices: Sequence[str], steps: Sequence[int]) -> str:
    """A pointer into a contiguous view."""
    pairs = [(index, step) for index, step in zip(indices, steps, strict=True) if index != "0"]
    return " + ".join([view.pointer, *(f"{i} * {step}" if step != 1 else i for i, step in pairs)])


# Sums and extremes over dimensions.


@operator_of("var")
def _variance(b: Builder, node: Node, arguments: dict[str, Any]) -> Value:
    """By the mean, and then the squares of what differs from it."""
    level = b.levels[node]
    source, target = b.view(arguments["self"], level), b.result(node)
    outer, inner, kept, dims, index = _split(source, arguments.get("dim"))
    sizes, summed = [source.sizes[d] for d in kept], [source.sizes[d] for d in dims]
    count = math.prod(summed)
    correction = arguments.get("correction")
    divisor = count - (1 if correction is None else correction)
    x, place = source.element(index), target.reshaped(sizes).element(outer)
    lines = [
        "float sum = 0.0f, squares = 0.0f;",
        *nest(summed, [f"sum += {x};"], inner),
        *nest(summed, [f"squares += ({x} - sum / {count}.0f) * ({x} - sum / {count}.0f);"], inner),
        f"{place} = squares / {number(divisor)};",
    ]
    b.emit(level, *nest(sizes, lines, outer))
    return target


def _split(source: View, given: Any) -> tuple[list[str], list[str], list[int], list[int], list[str]]:
    """Indices of the dimensions that are kept and of those that a reduction is over, these dimensions, all indices."""
    rank = len(source.sizes)
    given = [given] if isinstance(given, int) else given or range(rank)
    dims = sorted({dim % rank for dim in given})
    kept = [d for d in range(rank) if d not in dims]
    outer = indices_of([source.sizes[d] for d in kept], INDICES)
    inner = indices_of([source.sizes[d] for d in dims], "pqrstu")
    index = [""] * rank
    for d, letter in (*zip(kept, outer, strict=True), *zip(dims, inner, strict=True)):
        index[d] = letter
    return outer, inner, kept, dims, index


@operator_of("sum", "mean", "amax", "amin", "any", "all")  # a mask is 1 or 0
def _reduce(b: Builder, node: Node, arguments: dict[str, Any]) -> Value:
    level, name = b.levels[node], str(node.target).split(".")[1]
    source, target = b.view(arguments["self"], level), b.result(node)
    outer, inner, kept, dims, index = _split(source, arguments.get("dim"))
    sizes = [source.sizes[d] for d in kept]
    place = View.whole(target.buffer, sizes)._replace(offset=target.offset).element(outer)
    x, count = source.element(index), math.prod(source.sizes[d] for d in dims)
    if name in ("sum", "mean"):
        start, step = "0.0f", f"found += {x};"
    else:
        sign = ">" if name in ("amax", "any") else "<"
        start = source.element(["0" if d in set(dims) else index[d] for d in range(len(index))])
        step = f"found = {x} {sign} found || {x} != {x} ? {x} : found;"  # NaN stays
    result = f"found / {count}.0f" if name == "mean" else "found"
    loops = nest([source.sizes[d] for d in dims], [step], inner)
    b.emit(level, *nest(sizes, [f"float found = {start};", *loops, f"{place} = {result};"], outer))
    return target
