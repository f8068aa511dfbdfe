"""Operators that are no loop over elements: products, look-ups, and what moves elements.

Letters: M, K, N of a product [M,K] x [K,N].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from prnn.export.c.builder import Builder, operator_of
from prnn.export.c.expressions import number
from prnn.export.c.values import Cat, Constant, Value, sizes_of
from prnn.export.c.views import Buffer, View, indices_of, nest

# Products.


@operator_of("mm", "bmm", "matmul")
def _mm(b: Builder, node: Node, arguments: dict[str, Any]) -> Value:
    first, second = node.args[:2]
    return _product(b, node, first, second, None)


@operator_of("addmm")
def _addmm(b: Builder, node: Node, arguments: dict[str, Any]) -> Value:
    bias, scale, factor = arguments["self"], arguments["beta"], arguments["alpha"]
    value = b.values[bias]
    columns = node.meta["val"].shape[-1]
    if scale != 1 or factor != 1 or not isinstance(value, Constant) or value.tensor.numel() != columns:
        return b.refuse(node, " with a bias that is computed, or factors")
    return _product(b, node, arguments["mat1"], arguments["mat2"], value)


@operator_of("linear")
def _linear(b: Builder, node: Node, arguments: dict[str, Any]) -> Value:
    weight, bias = b.values[arguments["weight"]], arguments["bias"]
    if not isinstance(weight, Constant):
        return b.refuse(node, " with a weight that is computed")
    return _times_matrix(b, node, arguments["input"], weight, None if bias is None else b.values[bias])


def _product(b: Builder, node: Node, first: Any, second: Any, bias: Constant | None) -> Value:
    weight = b.values[second]
    if isinstance(weight, Constant) and weight.tensor.dim() == 2:
        return _times_matrix(b, node, first, weight._replace(tensor=weight.tensor.t()), bias)
    if bias is not None or node.meta["val"].dim() not in (2, 3):
        return b.refuse(node, " of two computed tensors with a bias")
    level = b.levels[node]
    left, right, target = b.view(first, level), b.view(second, level), b.result(node)
    indices = indices_of(target.sizes, "lij"[3 - len(target.sizes) :])
    *before, i, j = indices
    lines = [
        "float sum = 0.0f;",
        f"for (int k = 0; k < {left.sizes[-1]}; k++)",
        f"  sum += {left.element([*before, i, 'k'])} * {right.element([*before, 'k', j])};",
        f"{target.element(indices)} = sum;",
    ]
    b.emit(level, *nest(target.sizes, lines, indices))
    return target


def _times_matrix(b: Builder, node: Node, x: Any, weight: Constant, bias: Constant | None) -> Value:
    """x [..,K] times a weight [N,K], transposed."""
    level = b.levels[node]
    source, target = b.contiguous(x, level), b.result(node)
    K = weight.tensor.shape[1]
    matrix(b, level, weight, bias, source, target, source.numel // max(K, 1))
    return target


def matrix(
    b: Builder, level: int, weight: Constant, bias: Constant | None, source: View, target: View, count: int = 1
) -> None:
    """``target`` [count,rows] = weight [rows,columns] times ``source`` [count,columns], plus the bias."""
    rows, columns = weight.tensor.shape
    packed = b.constants.matrices(weight.name, [weight.tensor])
    added = "NULL" if bias is None else b.constant(bias).pointer
    function = product_of(b)
    if count == 1:
        x, y = source.pointer, target.pointer
        b.emit(level, f"{function}({rows}, {columns}, {', '.join(packed)}, {added}, {x}, {y});")
        return
    x, y = f"{source.pointer} + i * {columns}", f"{target.pointer} + i * {rows}"
    b.emit(level, f"for (int i = 0; i < {count}; i++)")
    b.emit(level, f"  {function}({rows}, {columns}, {', '.join(packed)}, {added}, {x}, {y});")


def product_of(b: Builder) -> str:
    """The name of the function for products."""
    name = "product_int8" if b.constants.int8 else "product"
    b.functions.add(name)
    return name


# Look-ups and concatenation.


@operator_of("embedding")
def _embedding(b: Builder, node: Node, arguments: dict[str, Any]) -> Value:
    table, level = b.values[arguments["weight"]], b.levels[node]
    if not isinstance(table, Constant):
        return b.refuse(node, " with a table that is computed")
    tokens = b.contiguous(arguments["indices"], level)
    width = table.tensor.shape[1]
    names = b.constants.rows(table.name, table.tensor)
    sizes = (*tokens.sizes, width)
    cast = "" if tokens.buffer.kind == "int32_t" else "(int)"
    if tokens.numel == 1 and len(names) == 1 and tokens.buffer.name == "input":  # the row itself
        row = Buffer(f"({names[0]} + {cast}{tokens.element(['0'] * len(tokens.sizes))} * {width})", width, level)
        return View.whole(row, sizes)
    target = b.result(node)
    count = tokens.numel
    token = View.whole(tokens.buffer, [count])._replace(offset=tokens.offset).element(["i"] if count > 1 else ["0"])
    place = View.whole(target.buffer, [count, width])._replace(offset=target.offset)
    lines = [
        f"const int token = {cast}{token};",
        f"for (int j = 0; j < {width}; j++)",
        f"  {place.element(['i' if count > 1 else '0', 'j'])} = "
        + (f"{names[1]}[token] * (float)" if len(names) > 1 else "")
        + f"{names[0]}[token * {width} + j];",
    ]
    b.emit(level, *nest([count] if count > 1 else [], lines))
    return target


@operator_of("cat")
def _cat(b: Builder, node: Node, arguments: dict[str, Any]) -> Value:
    level = b.levels[node] if node not in b.to_state else None
    pieces: list[Value] = []
    for each in arguments["tensors"]:
        value = b.values[each]
        flat = _numel_before(node, arguments["dim"]) == 1
        if isinstance(value, Cat) and flat and (level is None or b.levels[each] == level):
            pieces.append(value)
        elif math.prod(sizes_of(value)):
            pieces.append(value if isinstance(value, Constant) else b.view(each, level))
    if len(pieces) == 1:
        return pieces[0]
    sizes = tuple(node.meta["val"].shape)
    return Cat(tuple(pieces), arguments["dim"] % len(sizes), sizes)


def _numel_before(node: Node, dim: int) -> int:
    """Elements of the dimensions before ``dim``."""
    sizes = node.meta["val"].shape
    return math.prod(sizes[: dim % len(sizes)])


@operator_of("constant_pad_nd")
def _pad(b: Builder, node: Node, arguments: dict[str, Any]) -> Value:
    level, amounts = b.levels[node], list(arguments["pad"])
    if any(amount < 0 for amount in amounts):
        return b.refuse(node, " with negative amounts")
    source, target = b.view(arguments["self"], level), b.result(node)
    whole = View.whole(target.buffer, [target.numel])._replace(offset=target.offset)
    b.emit(level, *nest([target.numel], [f"{whole.element(['i'])} = {number(arguments['value'])};"]))
    offset = target.offset
    for d in range(len(amounts) // 2):
        offset += amounts[2 * d] * target.strides[len(target.sizes) - 1 - d]
    b.store(source, View(target.buffer, offset, source.sizes, target.strides), level)
    return target


@operator_of("index_select")
def _index_select(b: Builder, node: Node, arguments: dict[str, Any]) -> Value:
    return _picked(b, node, arguments["self"], arguments["dim"], b.values[arguments["index"]])


@operator_of("index")
def _index(b: Builder, node: Node, arguments: dict[str, Any]) -> Value:
    given = [(dim, b.values[each]) for dim, each in enumerate(arguments["indices"]) if each is not None]
    if len(given) != 1 or not isinstance(given[0][1], Constant) or given[0][1].tensor.dim() != 1:
        return b.refuse(node, " but by one list of indices")
    return _picked(b, node, arguments["self"], *given[0])


def _picked(b: Builder, node: Node, source: Node, dim: int, indices: Any) -> Value:
    """Elements of a dimension, by indices that are known at export, one after the other."""
    if not isinstance(indices, Constant):
        return b.refuse(node, " by computed indices")
    view, places = b.view(source, b.levels[node]), indices.tensor.flatten()
    places = places.nonzero().flatten() if places.dtype == torch.bool else places % view.sizes[dim]
    pieces = [view.apply(torch.ops.aten.slice.Tensor, dim, int(i), int(i) + 1) for i in places]
    return Cat(tuple(pieces), dim % len(view.sizes), tuple(node.meta["val"].shape))  # type: ignore[arg-type]


@operator_of("flip")
def _flip(b: Builder, node: Node, arguments: dict[str, Any]) -> Value:
    """Of the last of the given dimensions, and before it of the others."""
    rank, view = len(node.meta["val"].shape), b.view(arguments["self"], b.levels[node])
    *before, last = sorted(dim % rank for dim in arguments["dims"])
    for dim in before:
        whole = _reversed(view, dim, view.sizes)
        view = b.temporary(b.levels[node], view.sizes, b.label(node))
        b.store(whole, view, b.levels[node])
    return _reversed(view, last, tuple(node.meta["val"].shape))


def _reversed(view: View, dim: int, sizes: Sequence[int]) -> Cat:
    pieces = [view.apply(torch.ops.aten.slice.Tensor, dim, i, i + 1) for i in reversed(range(view.sizes[dim]))]
    return Cat(tuple(pieces), dim, tuple(sizes))  # type: ignore[arg-type]


@operator_of("repeat")
def _repeat(b: Builder, node: Node, arguments: dict[str, Any]) -> Value:
    """A view in which the repeated dimensions are two, the first of stride 0."""
    source, times = b.view(arguments["self"], b.levels[node]), list(arguments["repeats"])
    missing = len(times) - len(source.sizes)
    sizes, strides = [1] * missing + [*source.sizes], [0] * missing + [*source.strides]
    doubled = [each for pair in zip(times, sizes, strict=True) for each in pair]
    steps = [each for stride in strides for each in (0, stride)]
    target = b.result(node)
    b.store(View(source.buffer, source.offset, tuple(doubled), tuple(steps)), target.reshaped(doubled), b.levels[node])
    return target
