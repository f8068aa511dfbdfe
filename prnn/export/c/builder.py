"""From a model's graph of one frame to statements of C.

All shapes are known. A value is a view of a buffer (``views``); a pointwise operator is an expression of a loop that is
written when somebody needs it, so that chains of them are one loop; a concatenation is written where it is needed.
Constants are computed here. Operators that are neither are ``operators``' and ``layers``'.

Passes over the frames: a layer that runs backwards needs all frames of its input, so a model that has one is several
loops, even numbers ascending and odd ones descending in time; what crosses from one to a later one is an array of all
frames. A model without one is pass 0 alone.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Node

from prnn.codegen.expressions import Expression, Graph
from prnn.codegen.lowering import RULES
from prnn.errors import UserError
from prnn.export.c.constants import Constants
from prnn.export.c.expressions import Body, identifier
from prnn.export.c.views import Buffer, Loops, View, squeezed

Operator = Callable[["Builder", Node, dict[str, Any]], "Value | list[Value]"]
OPERATORS: dict[str, Operator] = {}

VIEWS = frozenset(
    """view _unsafe_view reshape _reshape_alias permute transpose t select slice expand unsqueeze squeeze alias detach
    split split_with_sizes unbind""".split()  # noqa: SIM905
)
SAME = frozenset("clone _to_copy to contiguous lift_fresh lift_fresh_copy".split())  # noqa: SIM905
_SKIPPED = frozenset("_assert_tensor_metadata _assert_async _assert_scalar sym_constrain_range_for_size".split())  # noqa: SIM905
_FILLED = frozenset("full_like zeros_like ones_like new_zeros new_ones new_full".split())  # noqa: SIM905


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


class Declaration(NamedTuple):
    """A line that declares a temporary buffer."""

    buffer: Buffer


Line = str | Declaration


def operator_of(*names: str) -> Callable[[Operator], Operator]:
    def register(function: Operator) -> Operator:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return register


class Builder:
    """The statements of a model. ``code``: by pass; ``sequences``: the arrays of all frames."""

    def __init__(self, graph: torch.fx.Graph, constants: Constants, taken: set[str]) -> None:
        self.constants, self.taken = constants, taken
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
        self.levels = _levels(graph)

    # Nodes.

    def build(self, nodes: Iterable[Node]) -> None:
        """Compute the nodes in their order; UserError with all that C has not."""
        for node in nodes:
            if node.op == "call_function" and operator_name(node) not in _SKIPPED:
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
        name, arguments = operator_name(node), _arguments(node)
        if all(isinstance(each, Constant) for each in given) or name in _FILLED:
            return self._folded(node, name)
        if name in SAME:
            value = self.values[node.args[0]]  # type: ignore[index]
            whole = node.meta["val"].dtype in (torch.int64, torch.int32) and not _is_whole(node.args[0])
            return self._pointwise(node, "trunc", [node.args[0]], {}) if whole else value
        if name in VIEWS:
            return self._view(node, name)
        if name in OPERATORS:
            return OPERATORS[name](self, node, arguments)
        if name in RULES:
            try:
                return self._pointwise(node, name, node.args, node.kwargs)
            except TypeError:
                pass  # a form of the operator that no rule has
        return self.refuse(node)

    def refuse(self, node: Node, why: str = "") -> Any:
        """Note that the node cannot be computed."""
        path = path_of(node)
        place = f" (from module {path})" if path else ""
        shown = getattr(node.target, "_schema", node.target)
        self.unsupported.append(f"{getattr(shown, 'name', shown).replace('::', '.')}{why}{place}")
        return None

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
            if isinstance(value, Lazy) and here and reshaped and _squeezed(sizes) == _squeezed(value.sizes):
                renamed = value._replace(sizes=sizes)
                value.group.members[node] = renamed
                return renamed
            if isinstance(value, Cat) and name in FLAT and _is_flat(value):
                return Cat(value.pieces, -1, sizes)
        if isinstance(value, Cat):
            whole = View.whole(Buffer("", _numel(value.sizes), None), value.sizes)
            regions = whole.apply(node.target, *rest, **node.kwargs)  # type: ignore[arg-type]
            found = [part_of(value, each) for each in (regions if isinstance(regions, list) else [regions])]
            if all(each is not None for each in found):
                parts = [self._part(each, node) for each in found]
                return parts if isinstance(regions, list) else parts[0]
        view = self.view(source, self.levels[node] if node not in self.to_state else None)
        try:
            return view.apply(node.target, *rest, **node.kwargs)  # type: ignore[arg-type]
        except RuntimeError:
            return self.copy(view, self.levels[node], label_of(source)).apply(  # type: ignore[arg-type]
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
            target = self._target(node) or self.temporary(source, value.sizes, label_of(node))
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
        return view if view.is_contiguous else self.copy(view, level, label_of(node))

    def copy(self, view: View, level: int, label: str) -> View:
        target = self.temporary(level, view.sizes, label)
        self.store(view, target, level)
        return target

    def temporary(self, level: int, sizes: Sequence[int], label: str) -> View:
        """A new buffer of one frame."""
        size = 1
        for each in sizes:
            size *= each
        buffer = Buffer(identifier(label, self.taken), size, level)
        self.emit(level, Declaration(buffer))
        return View.whole(buffer, sizes)

    def result(self, node: Node, sizes: Sequence[int] | None = None) -> View:
        """A buffer for the node's result, contiguous: where it is wanted, or a new one."""
        sizes = tuple(node.meta["val"].shape) if sizes is None else tuple(sizes)
        return self._target(node) or self.temporary(self.levels[node], sizes, label_of(node))

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
        return self.pointwise(
            node, sizes, level, found, lambda of: RULES[rule](*torch.fx.map_arg(args, of), **torch.fx.map_arg(kwargs, of))
        )

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
            if not (isinstance(value, Lazy) and value.group is self._groups.get((level, _squeezed(sizes)))):
                self.view(each, level)
        group = self._groups.setdefault((level, _squeezed(sizes)), Group(level))

        def operand(each: Any) -> Expression:
            value = each if isinstance(each, Constant) else self.values[each]
            if isinstance(value, Lazy) and value.group is group:
                return value.expression
            if isinstance(value, Constant) and value.tensor.numel() == 1:
                return group.graph.constant(value.tensor.item())
            view = self.constant(value) if isinstance(value, Constant) else self.view(each, level)
            return self._leaf(group, view.broadcast(sizes))

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
        place = [each for each in squeezed(view.sizes, view.strides)]
        leaf = group.graph.input(f"{view.buffer.name} {view.offset} {place}")
        group.leaves[leaf] = view
        return leaf

    def flush(self, group: Group) -> None:
        """Write a group's loop: of its values, those that are used outside."""
        self._groups = {key: each for key, each in self._groups.items() if each is not group}
        wanted: dict[Expression, list[Node]] = {}
        for node, lazy in group.members.items():
            if any(user not in group.members and user.name not in _SKIPPED for user in node.users):
                wanted.setdefault(lazy.expression, []).append(node)
        targets = {
            expression: next((t for t in map(self._target, nodes) if t is not None), None)
            or self.temporary(group.level, group.members[nodes[0]].sizes, label_of(nodes[0]))
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
        given = {
            leaf: _as_float(view, text)
            for (leaf, view), text in zip(group.leaves.items(), read, strict=True)
        }
        body = Body(targets, given, {}, self.functions)
        texts = [body.compute(expression) for expression in targets]
        body.lines += [f"{place} = {text};" for place, text in zip(stored, texts, strict=True)]
        self.emit(group.level, *loops.around(body.lines))


def _with_sizes(view: View, sizes: tuple[int, ...]) -> View:
    """The view, whose sizes but for ones are ``sizes``, with the ones where these have them."""
    strides = iter([stride for _, stride in squeezed(view.sizes, view.strides)])
    return View(view.buffer, view.offset, sizes, tuple(0 if size == 1 else next(strides) for size in sizes))


FLAT = frozenset("view _unsafe_view reshape _reshape_alias unsqueeze squeeze alias detach".split())  # noqa: SIM905


def pieces_at(value: Cat, target: View) -> list[tuple[Value, View]]:
    """The pieces, each with its place in ``target``."""
    found: list[tuple[Value, View]] = []
    start = 0
    for piece in value.pieces:
        sizes = sizes_of(piece)
        if value.dim < 0:  # one after the other in memory
            found.append((piece, View.whole(target.buffer, sizes)._replace(offset=target.offset + start)))
            start += _numel(sizes)
        else:
            offset = target.offset + start * target.strides[value.dim]
            found.append((piece, View(target.buffer, offset, sizes, target.strides)))
            start += sizes[value.dim]
    return found


def part_of(value: Cat, region: View) -> View | Cat | None:
    """The pieces of a concatenation, or the part of one, that a view of the whole is; None where they have gaps."""
    leaves = _leaves(value, View.whole(region.buffer, value.sizes))
    if leaves is None or not region.is_contiguous:
        return None
    found = []
    for piece, start in sorted(leaves, key=lambda leaf: leaf[1]):
        first, last = max(start, region.offset), min(start + piece.numel, region.offset + region.numel)
        if first < last:
            found.append(View.whole(piece.buffer, [last - first])._replace(offset=piece.offset + first - start))
    return found[0].reshaped(region.sizes) if len(found) == 1 else Cat(tuple(found), -1, region.sizes)


def _leaves(value: Value, place: View) -> list[tuple[View, int]] | None:
    """The views that a concatenation is made of, and where they begin; None where one has gaps or is a constant."""
    if isinstance(value, Cat):
        each = [_leaves(piece, at) for piece, at in pieces_at(value, place)]
        return None if None in each else [leaf for leaves in each for leaf in leaves or ()]
    whole = isinstance(value, View) and value.is_contiguous and place.is_contiguous
    return [(value, place.offset)] if whole and isinstance(value, View) else None


def _is_flat(value: Cat) -> bool:
    """Whether the pieces stand one after the other in memory."""
    return value.dim < 0 or all(size == 1 for size in value.sizes[: value.dim])


def sizes_of(value: Value) -> tuple[int, ...]:
    return tuple(value.tensor.shape) if isinstance(value, Constant) else value.sizes


def _numel(sizes: Sequence[int]) -> int:
    return View.whole(Buffer("", 0, None), sizes).numel


def _squeezed(sizes: Sequence[int]) -> tuple[int, ...]:
    return tuple(size for size in sizes if size != 1)


def _value_of(graph: Graph, result: Any) -> Expression:
    return graph.value(result) if not isinstance(result, Expression) else result


def _as_float(view: View, text: str) -> str:
    return text if view.buffer.kind == "float" else f"(float){text}"


def _is_whole(node: Any) -> bool:
    return not node.meta["val"].dtype.is_floating_point


def operator_name(node: Node) -> str:
    """The operator's name without overload, "addmm"."""
    schema = getattr(node.target, "_schema", None)
    return str(node.target) if schema is None else schema.name.rpartition("::")[2]


def _arguments(node: Node) -> dict[str, Any]:
    """The arguments by name, those left out by their defaults."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {}
    found = {each.name: each.default_value for each in schema.arguments if each.has_default_value()}
    found |= {each.name: value for each, value in zip(schema.arguments, node.args, strict=False)}
    return found | dict(node.kwargs)


def path_of(node: Node) -> str:
    """The path of the module that the node comes from: "encoder.conv"."""
    stack = node.meta.get("nn_module_stack") or {}
    return next((path for path, _ in reversed(list(stack.values())) if path), "")


def label_of(node: Node) -> str:
    """A name for the node's value: that of its module and operator."""
    path = path_of(node).rpartition(".")[2]
    own = re.sub(r"_default|_tensor", "", node.name)
    return f"{path}_{own}" if path else own


def is_layer(node: Node) -> bool:
    return operator_name(node) in ("layer", "exported_layer") and "prnn" in str(node.target)


def _levels(graph: torch.fx.Graph) -> dict[Node, int]:
    """The pass over the frames in which each node is computed."""
    levels: dict[Node, int] = {}
    for node in graph.nodes:
        before = max((levels[each] for each in node.all_input_nodes), default=0)
        if node.target is operator.getitem:
            levels[node] = before
        elif is_layer(node):
            forward, backward = passes_of(node, before)
            levels[node] = max(level for level in (forward, backward) if level is not None)
        else:
            levels[node] = before + before % 2
    return levels


def passes_of(node: Node, before: int) -> tuple[int | None, int | None]:
    """The passes in which a layer's forward and reversed direction are computed, after one for its input."""
    arguments = _arguments(node)
    ascending, descending = before + before % 2, before + (before + 1) % 2
    if arguments["weight_hh_reverse"] is not None:
        return ascending, descending
    return (None, descending) if arguments["reverse"] else (ascending, None)
