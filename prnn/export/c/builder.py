"""From a model's graph of one frame to statements of C.

All shapes are known. A value is a view of a buffer (``views``); a pointwise operator is an expression of a loop that is
written when a statement needs it, so that chains of them are one loop; a concatenation is written where it is needed.
Constants are computed here. Operators that are neither are ``operators``' and ``layers``'.

Passes over the frames: a layer that runs backwards needs all frames of its input, so a model that has one is several
loops, even numbers ascending and odd ones descending in time; what crosses from one to a later one is an array of all
frames. A model without one is pass 0 alone.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch.fx import Node

from prnn.codegen.expressions import Expression
from prnn.codegen.lowering import RULES
from prnn.errors import UserError
from prnn.export.c.constants import Constants
from prnn.export.c.expressions import Body, identifier
from prnn.export.c.nodes import (
    CHECKS,
    FILLED,
    FLAT,
    SAME,
    VIEWS,
    arguments_of,
    is_layer,
    levels_of,
    module_of,
    operator_name,
)
from prnn.export.c.values import Cat, Constant, Group, Lazy, Value, is_flat, part_of, pieces_at, without_ones
from prnn.export.c.views import Buffer, Loops, View, squeezed

Operator = Callable[["Builder", Node, dict[str, Any]], "Value | list[Value]"]
OPERATORS: dict[str, Operator] = {}


class Declaration(NamedTuple):
    """A line that declares a temporary buffer."""

    buffer: Buffer


Line = str | Declaration
_TYPES = (
    torch.float32,
    torch.float64,
    torch.bool,
    torch.int32,
    torch.int64,
)  # all of them floats in C, and exact to 2^24


def operator_of(*names: str) -> Callable[[Operator], Operator]:
    def register(function: Operator) -> Operator:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return register


class Builder:
    """The statements of a model. ``code``: by pass; ``sequences``: the arrays of all frames."""

    def __init__(self, graph: torch.fx.Graph, constants: Constants, taken: set[str]) -> None:
        self.constants, self.taken = constants, taken
        self.root = ""  # the path of the module that is the model, and a dot
        self.functions: set[str] = set()
        self.cells: dict[str, str] = {}  # the text of each cell's function, by its name in C
        self.known_cells: dict[str, Any] = {}  # by its name in the graph
        self.code: list[list[Line]] = []
        self.sequences: list[Buffer] = []
        self.unsupported: list[str] = []
        self.values: dict[Node, Any] = {}
        self.in_place: set[tuple[str, int]] = set()  # elements of states that their layers may overwrite
        self.hints: dict[Node, View] = {}  # where a node's value is wanted
        self.to_state: set[Node] = set()  # nodes that only states are made of
        self._groups: dict[tuple[int, tuple[int, ...]], Group] = {}
        self._crossed: dict[tuple[Any, ...], View] = {}
        self._arrays: dict[str, Buffer] = {}
        self.levels = levels_of(graph)

    # Nodes.

    def build(self, nodes: Iterable[Node]) -> None:
        """Compute the nodes in their order; UserError with all that C has not."""
        for node in nodes:
            if node.op == "call_function" and operator_name(node) not in CHECKS:
                self.values[node] = self._value(node)
        if self.unsupported:
            parts = ", ".join(dict.fromkeys(self.unsupported))
            raise UserError(f"the model has parts that C cannot: {parts}")

    def _value(self, node: Node) -> Any:
        if node.target is operator.getitem:
            source = self.values[node.args[0]]  # type: ignore[index]
            return self.values[node] if node in self.values else source and source[node.args[1]]
        given = [self.values[each] for each in node.all_input_nodes]
        if any(each is None for each in given):
            return None  # of what is not supported
        name, arguments = operator_name(node), arguments_of(node)
        if all(isinstance(each, Constant) for each in given) or name in FILLED:
            return self._folded(node, name)
        if name in SAME:
            return self._converted(node, node.args[0])
        if name in VIEWS:
            return self._view(node, name)
        if name in OPERATORS:
            return OPERATORS[name](self, node, arguments)
        if name.startswith("bitwise") and node.meta["val"].dtype != torch.bool:
            return self.refuse(node, " of integers")
        if name in RULES:
            try:
                return self._pointwise(node, name, node.args, node.kwargs)
            except TypeError:
                pass  # a form of the operator that no rule has
        return self.refuse(node)

    def _converted(self, node: Node, source: Any) -> Any:
        """The same numbers in another type, all of which are floats here."""
        before, after = source.meta["val"].dtype, node.meta["val"].dtype
        if after not in _TYPES and after != before:
            return self.refuse(node, f" to {str(after).removeprefix('torch.')}, which is computed in float32")
        sizes, level = tuple(node.meta["val"].shape), self.levels[node]
        if before == torch.bool and after != torch.bool:
            return self.pointwise(node, sizes, level, [source], lambda of: of(source).graph.value(of(source)))
        if after == torch.bool and before != torch.bool:
            return self._pointwise(node, "ne", [source, 0], {})
        if before.is_floating_point and not after.is_floating_point:
            return self._pointwise(node, "trunc", [source], {})
        value = self.values[source]
        if isinstance(value, Lazy):
            value.group.members[node] = value
        return value

    def refuse(self, node: Node, why: str = "") -> Any:
        """Note that the node cannot be computed."""
        path = self.path(node)
        place = f" (from module {path})" if path else ""
        schema = getattr(node.target, "_schema", None)
        name = str(node.target) if schema is None else schema.name.replace("::", ".")
        self.unsupported.append(f"{'a recurrent layer' if is_layer(node) else name}{place}{why}")
        return None

    def path(self, node: Node) -> str:
        """The path of the module that the node comes from, within the model."""
        path = f"{module_of(node)[0]}."
        return path.removeprefix(self.root).removesuffix(".")

    def label(self, node: Node) -> str:
        """A name for the node's value: that of its module, and of the operator where the module has several."""
        path, own = self.path(node).rpartition(".")[2], node.name.replace("_default", "")
        return own if not path else path if module_of(node)[1] else f"{path}_{own}"

    def _folded(self, node: Node, name: str) -> Any:
        def known(argument: Node) -> Any:
            value = self.values[argument]
            return value.tensor if isinstance(value, Constant) else torch.zeros(argument.meta["val"].shape)

        with torch.no_grad():
            found = node.target(  # type: ignore[operator]
                *torch.fx.map_arg(node.args, known), **torch.fx.map_arg(node.kwargs, known)
            )
        names = [self.values[each].name for each in node.all_input_nodes if isinstance(self.values[each], Constant)]
        label = names[0] if names else node.name
        if isinstance(found, (tuple, list)):
            return [Constant(each, label) for each in found]
        return Constant(found, label)

    # Views.

    def _view(self, node: Node, name: str) -> Any:
        source, rest = node.args[0], node.args[1:]
        value = self.values[source]  # type: ignore[index]
        if isinstance(value, (Lazy, Cat)) and "val" in node.meta and not isinstance(node.meta["val"], (list, tuple)):
            sizes = tuple(node.meta["val"].shape)
            reshaped = name not in ("permute", "transpose", "t", "select", "slice", "expand")
            here = isinstance(value, Lazy) and value.group.level == self.levels[node]
            if isinstance(value, Lazy) and here and reshaped and without_ones(sizes) == without_ones(value.sizes):
                renamed = value._replace(sizes=sizes)
                value.group.members[node] = renamed
                return renamed
            if isinstance(value, Cat) and name in FLAT and is_flat(value):
                return Cat(value.pieces, -1, sizes)
        if isinstance(value, Cat):
            whole = View.whole(Buffer("", math.prod(value.sizes), None), value.sizes)
            regions = whole.apply(node.target, *rest, **node.kwargs)  # type: ignore[arg-type]
            found = [part_of(value, each) for each in (regions if isinstance(regions, list) else [regions])]
            if all(each is not None for each in found):
                parts = [self._part(each, node) for each in found]
                return parts if isinstance(regions, list) else parts[0]
        view = self.view(source, self.levels[node] if node not in self.to_state else None)
        try:
            return view.apply(node.target, *rest, **node.kwargs)  # type: ignore[arg-type]
        except RuntimeError:
            return self.copy(view, self.levels[node], self.label(source)).apply(  # type: ignore[arg-type]
                node.target,  # type: ignore[arg-type]
                *rest,
                **node.kwargs,
            )

    def _part(self, part: Any, node: Node) -> Value:
        """A part of a concatenation, for the pass of ``node``."""
        level = None if node in self.to_state else self.levels[node]
        if isinstance(part, Cat):
            return part._replace(pieces=tuple(self._part(piece, node) for piece in part.pieces))
        return self._readable(part, level)

    def view(self, node: Any, level: int | None) -> View:
        """The node's value in memory, where pass ``level`` can read it; None: where it stands."""
        value = self.values[node]
        if isinstance(value, Lazy):
            self.flush(value.group)
            value = self.values[node]
        if isinstance(value, Cat):
            source = self.levels[node]
            target = self._target(node) or self.temporary(source, value.sizes, self.label(node))
            self.store(value, target, source)
            self.values[node] = value = target
        if isinstance(value, Constant):
            return self.constant(value)
        return self._readable(value, level)

    def _readable(self, view: View, level: int | None) -> View:
        source = view.buffer.level
        if level is None or source is None or source == level:
            return view
        key = (view.buffer, view.offset, view.sizes, view.strides)
        if key not in self._crossed:
            name = identifier(f"{re.sub(r'^.*->', '', view.buffer.name)}_frames", self.taken)
            array = Buffer(name, view.numel, None)
            self.sequences.append(array)
            self._crossed[key] = View.whole(array, view.sizes)
            self.store(view, self._crossed[key], source)
        return self._crossed[key]

    def constant(self, value: Constant) -> View:
        """An array of a constant's elements."""
        name = self.constants.plain(value.name, value.tensor)
        buffer = self._arrays.setdefault(name, Buffer(name, value.tensor.numel(), None))
        return View.whole(buffer, value.tensor.shape)

    def contiguous(self, node: Any, level: int) -> View:
        """The node's value without gaps."""
        view = self.view(node, level)
        return view if view.is_contiguous else self.copy(view, level, self.label(node))

    def copy(self, view: View, level: int, label: str) -> View:
        target = self.temporary(level, view.sizes, label)
        self.store(view, target, level)
        return target

    def temporary(self, level: int, sizes: Sequence[int], label: str) -> View:
        """A new buffer of one frame."""
        buffer = Buffer(identifier(label, self.taken), math.prod(sizes), level)
        self.emit(level, Declaration(buffer))
        return View.whole(buffer, sizes)

    def result(self, node: Node) -> View:
        """A buffer for the node's result, contiguous: where it is wanted, or a new one."""
        return self._target(node) or self.temporary(self.levels[node], node.meta["val"].shape, self.label(node))

    def _target(self, node: Node) -> View | None:
        hint = self.hints.get(node)
        return None if hint is None else View.whole(hint.buffer, node.meta["val"].shape)

    def store(self, value: Value, target: View, level: int) -> None:
        """Write a value to ``target``, which has its sizes."""
        if isinstance(value, Cat):
            for piece, at in pieces_at(value, target):
                self.store(piece, at, level)
            return
        if isinstance(value, Constant):
            value = self.constant(value)
        assert isinstance(value, View)
        value = self._readable(value, level)
        if value.same_place(target):
            return
        loops = Loops.over([target, value])
        to, source = loops.elements([target, value])
        self.emit(level, *loops.around([f"{to} = {_as_float(value, source)};"]))

    def emit(self, level: int, *lines: Line) -> None:
        while len(self.code) <= level:
            self.code.append([])
        self.code[level].extend(lines)

    # Pointwise operators.

    def _pointwise(self, node: Node, rule: str, args: Any, kwargs: Any) -> Value:
        sizes, level = tuple(node.meta["val"].shape), self.levels[node]
        found: list[Node] = []
        torch.fx.map_arg((args, kwargs), found.append)

        def apply(of: Any) -> Any:
            return RULES[rule](*torch.fx.map_arg(args, of), **torch.fx.map_arg(kwargs, of))

        return self.pointwise(node, sizes, level, found, apply)

    def pointwise(
        self,
        node: Node,
        sizes: tuple[int, ...],
        level: int,
        operands: Sequence[Node],
        rule: Callable[[Callable[[Any], Expression]], Any],
    ) -> Any:
        """A value of ``sizes`` by a rule, a function of what gives the expression of a node or constant."""
        for each in operands:  # what stands in another loop is written first
            value = self.values[each]
            if isinstance(value, Constant):
                continue
            if not (isinstance(value, Lazy) and value.group is self._groups.get((level, without_ones(sizes)))):
                self.view(each, level)
        group = self._groups.setdefault((level, without_ones(sizes)), Group(level))

        def operand(each: Any) -> Expression:
            value = each if isinstance(each, (Constant, View)) else self.values[each]
            is_mask = isinstance(each, Node) and each.meta["val"].dtype == torch.bool
            if isinstance(value, Lazy) and value.group is group:
                return group.graph.mask(value.expression) if is_mask else value.expression
            if isinstance(value, Constant) and value.tensor.numel() == 1:
                return group.graph.constant(value.tensor.item())
            if isinstance(value, Constant):
                value = self.constant(value)
            view = each if isinstance(each, View) else value if isinstance(value, View) else self.view(each, level)
            view = self._readable(view, level)
            leaf = self._leaf(group, view.broadcast(sizes))
            return group.graph.mask(leaf) if is_mask else leaf

        result = rule(operand)
        results = result if isinstance(result, tuple) else (result,)
        found = [Lazy(group, _value_of(group.graph, each), sizes) for each in results]
        if len(found) > 1:
            for user in node.users:
                self.values[user] = group.members[user] = found[user.args[1]]  # type: ignore[index]
            return found
        group.members[node] = found[0]
        return found[0]

    def _leaf(self, group: Group, view: View) -> Expression:
        place = squeezed(view.sizes, view.strides)
        leaf = group.graph.input(f"{view.buffer.name} {view.offset} {place}")
        group.leaves[leaf] = view
        return leaf

    def flush(self, group: Group) -> None:
        """Write a group's loop: of its values, those that are used outside."""
        self._groups = {key: each for key, each in self._groups.items() if each is not group}
        wanted: dict[Expression, list[Node]] = {}
        for node, lazy in group.members.items():
            if any(user not in group.members and operator_name(user) not in CHECKS for user in node.users):
                wanted.setdefault(lazy.expression, []).append(node)
        targets = {
            expression: next((t for t in map(self._target, nodes) if t is not None), None)
            or self.temporary(group.level, group.members[nodes[0]].sizes, self.label(nodes[0]))
            for expression, nodes in wanted.items()
        }
        if targets:
            self._write_loop(group, targets)
        for expression, nodes in wanted.items():
            for node in nodes:
                self.values[node] = targets[expression].reshaped(group.members[node].sizes)

    def _write_loop(self, group: Group, targets: dict[Expression, View]) -> None:
        sizes = next(iter(group.members.values())).sizes
        places = [View.whole(target.buffer, sizes)._replace(offset=target.offset) for target in targets.values()]
        leaves = [_with_sizes(view, sizes) for view in group.leaves.values()]
        loops = Loops.over([*places, *leaves])
        elements = loops.elements([*places, *leaves])
        stored, read = elements[: len(places)], elements[len(places) :]
        given = {leaf: _as_float(view, text) for (leaf, view), text in zip(group.leaves.items(), read, strict=True)}
        body = Body(targets, given, {}, self.functions)
        texts = [body.compute(expression) for expression in targets]
        body.lines += [f"{place} = {text};" for place, text in zip(stored, texts, strict=True)]
        self.emit(group.level, *loops.around(body.lines))


def _with_sizes(view: View, sizes: tuple[int, ...]) -> View:
    """The view, whose sizes but for ones are ``sizes``, with the ones where these have them."""
    strides = iter([stride for _, stride in squeezed(view.sizes, view.strides)])
    return View(view.buffer, view.offset, sizes, tuple(0 if size == 1 else next(strides) for size in sizes))


def _value_of(graph: Any, result: Any) -> Expression:
    return graph.value(result) if not isinstance(result, Expression) else result


def _as_float(view: View, text: str) -> str:
    return text if view.buffer.kind == "float" else f"(float){text}"
