"""Recurrent layers: a function of C for each cell, and the statements of a layer's step.

Letters: I input size, H hidden size (units), P projected size, G gates.
"""

from __future__ import annotations

import textwrap
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Node

from prnn.cell_table import lookup
from prnn.codegen.expressions import Expression, reachable
from prnn.codegen.hoist import Prologue
from prnn.codegen.signature import Signature, name_of
from prnn.codegen.trace import Trace, trace
from prnn.export.c.builder import Builder, Cat, Constant, Value, operator_of, passes_of, part_of
from prnn.export.c.cells import function_of
from prnn.export.c.constants import packed_size
from prnn.export.c.expressions import Body, identifier
from prnn.export.c.operators import matrix, product_of
from prnn.export.c.plan import is_owned
from prnn.export.c.views import Buffer, View
from prnn.ops.operands import Operands, Weights

_NOTHING = (None, None)  # what was saved for a backward pass


class CellFunction(NamedTuple):
    """A cell as a function of C; ``params`` are the derived parameters that it takes, by their place among all.

    ``updates``: the states that it takes, in their order; the others are not, and a cell without the recurrent share
    does not take ``gates_h``.
    """

    name: str
    text: str
    signature: Signature
    prologue: Prologue
    params: tuple[int, ...]
    takes_gates_h: bool


@operator_of("layer", "exported_layer")
def _layer(b: Builder, node: Node, arguments: dict[str, Any]) -> Any:
    operands = Operands(*(arguments[name] for name in Operands._fields))
    refused = {"lengths": operands.lengths, "resets": operands.resets, "per-step inputs": operands.inputs}
    for what, given in refused.items():
        if given is not None:
            takes = "takes" if what == "per-step inputs" else "is given"
            return b.refuse(node, f", whose layer {takes} {what}, which the C format has not,")
    before = max((b.levels[each] for each in node.all_input_nodes), default=0)
    passes = passes_of(node, before)
    if arguments["reverse"] and operands.weight_hh_reverse is None:
        directions = [(0, passes[1])]
    else:
        directions = [(d, level) for d, level in enumerate(passes) if level is not None]
    found = [_Direction(b, node, arguments["cell"], operands, d, level).run() for d, level in directions]  # type: ignore[arg-type]
    if len(found) == 1:
        return [*found[0], *_NOTHING]
    (first, h, c), (second, h_reverse, c_reverse) = found
    meta = node.meta["val"]
    output = Cat((first, second), meta[0].dim() - 1, tuple(meta[0].shape))
    h_n = Cat((h, h_reverse), 0, tuple(meta[1].shape))
    if c is None or c_reverse is None:
        return [output, h_n, None, *_NOTHING]
    return [output, h_n, Cat((c, c_reverse), meta[2].dim() - 3, tuple(meta[2].shape)), *_NOTHING]


class _Direction:
    """One direction of a layer."""

    def __init__(self, b: Builder, node: Node, cell: str, operands: Operands, d: int, level: int) -> None:
        self.b, self.node, self.level, self.d, self.operands = b, node, level, d, operands
        weights = (Weights(*operands[1:7]), Weights(*operands[7:13]))[d]
        self.given = Weights(*(None if each is None else b.values[each] for each in weights))
        self.function = cell_function(b, cell)
        self.G = self.function.signature.gates
        self.H = self.given.weight_hh.tensor.shape[0] // self.G
        self.width = node.args[1]

    def run(self) -> tuple[Value, Value, Value | None]:
        """Its output, final h and other final states."""
        b, H, G = self.b, self.H, self.G
        for name, each in self.given._asdict().items():
            if each is not None and not isinstance(each, Constant):
                return b.refuse(self.node, f" with a {name} that is computed") or (None, None, None)
        h, others = self._states()
        x = b.contiguous(self.operands.x, self.level)
        reverse = ", backwards" if self.level % 2 else ""
        heads = self._heads
        b.emit(self.level, f"/* {self.function.name}: {x.numel} -> {H} units{heads}{reverse} */")
        gates_x = self._gates_x(x)
        arguments = [str(H), gates_x.pointer]
        if self.function.takes_gates_h:
            arguments.append(self._gates_h(h).pointer)
        arguments += self._params()
        projected = self.given.weight_hr is not None
        hidden = b.temporary(self.level, [H], "hidden") if projected else h
        signature = self.function.signature
        states = [hidden, *others]
        arguments += [each.pointer for each in states]
        b.emit(self.level, f"{self.function.name}({', '.join(arguments)});")
        if projected:
            matrix(b, self.level, self.given.weight_hr, None, hidden, h)
        output = states[signature.results.index(signature.output)]
        output = h if output is hidden else output
        shape = (1, 1, output.numel)
        return View.whole(output.buffer, shape)._replace(offset=output.offset), *self._final(h, others)

    @property
    def _heads(self) -> str:
        columns = self.given.weight_hh.tensor.shape[1]
        if columns in (0, self.H) or self.given.weight_hr is not None:
            return ""
        return " that meet themselves" if columns == 1 else f" in {self.H // columns} heads"

    def _states(self) -> tuple[View, list[View]]:
        """Where h and the other states stand, which the step updates: the model's own where nobody else reads them."""
        h0, c0 = self.operands.h0, self.operands.c0
        h = self._own(h0, "h", self.d)
        if c0 is None:
            return h, []
        names = self.function.signature.results[1:]
        if c0.meta["val"].dim() == 3:
            return h, [self._own(c0, names[0], self.d)]
        return h, [self._own(c0, name, k, self.d) for k, name in enumerate(names)]

    def _own(self, node: Any, name: str, *places: int) -> View:
        """The part of an initial state at ``places``; a copy where it is not for this layer to overwrite."""
        value = self.b.values[node]
        view = View.whole(Buffer("", 0, None), node.meta["val"].shape) if isinstance(value, Cat) else None
        view = view or self.b.view(node, None)
        for place in places:
            view = View(view.buffer, view.offset + place * view.strides[0], view.sizes[1:], view.strides[1:])
        if isinstance(value, Cat):
            piece = part_of(value, view)
            if not isinstance(piece, View):
                self.b.view(node, None)
                return self._own(node, name, *places)
            view = piece
        if is_owned(view, self.b.in_place):
            return view._replace(buffer=Buffer(view.buffer.name, view.buffer.size, self.level))
        return self.b.copy(view, self.level, f"{name}_before")

    def _final(self, h: View, others: list[View]) -> tuple[Value, Value | None]:
        def as_tensor(view: View, *sizes: int) -> View:
            return View.whole(view.buffer, [*sizes, view.numel])._replace(offset=view.offset)

        h_n = as_tensor(h, 1, 1)
        if len(others) < 2:
            return h_n, as_tensor(others[0], 1, 1) if others else None
        pieces = tuple(as_tensor(each, 1, 1, 1) for each in others)
        return h_n, Cat(pieces, 0, (len(others), 1, 1, self.H))

    def _gates_x(self, x: View) -> View:
        if self.given.weight_ih is None:
            return x
        gates = self.b.temporary(self.level, [self.G * self.H], "gates_x")
        matrix(self.b, self.level, self.given.weight_ih, self.given.bias_ih, x, gates)
        return gates

    def _gates_h(self, h: View) -> View:
        """The recurrent share, by a matrix, by one for each head, unit by unit, or the bias alone."""
        b, weight, bias = self.b, self.given.weight_hh, self.given.bias_hh
        rows, K = weight.tensor.shape
        gates = b.temporary(self.level, [rows], "gates_h")
        if h.numel == K:
            matrix(b, self.level, weight, bias, h, gates)
            return gates
        added = "NULL" if bias is None else b.constant(bias).pointer
        plus = "" if bias is None else f" + {b.constant(bias).element(['i'])}"
        loop = f"for (int i = 0; i < {rows}; i++)"
        if K == 0:
            value = b.constant(bias).element(["i"]) if bias is not None else "0.0f"
            b.emit(self.level, loop, f"  {gates.element(['i'])} = {value};")
        elif K == 1:
            own = b.constant(weight._replace(tensor=weight.tensor.squeeze(1)))
            x = f"{h.buffer.name}[{f'{h.offset} + ' if h.offset else ''}i % {self.H}]"
            b.emit(self.level, loop, f"  {gates.element(['i'])} = {own.element(['i'])} * {x}{plus};")
        else:
            packed = b.constants.matrices(weight.name, list(weight.tensor.split(K)))
            steps = (packed_size(K, K), K)
            weights = [f"{name} + i * {step}" for name, step in zip(packed, steps, strict=False)]
            added = added if bias is None else f"{added} + i * {K}"
            x, y = f"{h.pointer} + i % {self.H // K} * {K}", f"{gates.pointer} + i * {K}"
            b.emit(self.level, f"for (int i = 0; i < {rows // K}; i++) /* gate i / {self.H // K} of head i % {self.H // K} */")
            b.emit(self.level, f"  {product_of(b)}({K}, {K}, {', '.join(weights)}, {added}, {x}, {y});")
        return gates

    def _params(self) -> list[str]:
        """The arrays of the derived parameters, computed here."""
        if self.given.params is None or not self.function.params:
            return []
        signature, prologue, given = self.function.signature, self.function.prologue, self.given.params
        named = dict(zip(signature.params, given.tensor.unbind(0), strict=True))
        with torch.no_grad():
            values = prologue.evaluate(named)
        prefix = given.name.rpartition(".")[0]
        suffix = given.name.rpartition("_l")[2] if "_l" in given.name else ""
        names = []
        for k in self.function.params:
            array: Tensor = values[k].reshape(-1).expand(self.H)
            label = ".".join(filter(None, (prefix, f"{prologue.names[k]}_l{suffix}" if suffix else prologue.names[k])))
            names.append(self.b.constants.plain(label, array))
        return names


def cell_function(b: Builder, name: str) -> CellFunction:
    """The function of a cell, once in a source."""
    cell = lookup(name)
    function, signature = function_of(cell)
    if name not in b.known_cells:
        traced = trace(function, signature)
        b.known_cells[name] = _emit(b, traced, name_of(function))
    return b.known_cells[name]


def _emit(b: Builder, traced: Trace, name: str) -> CellFunction:
    signature, graph = traced.signature, traced.graph
    function = identifier(name, b.taken)
    used = reachable(traced.results)
    params = tuple(k for k, param in enumerate(traced.params) if param in used)
    takes_h = any(graph.input(f"gates_h {g}") in used for g in range(signature.gates))
    taken: set[str] = {"gates_x", "gates_h", "j", "units"}
    arrays = {state: identifier(state, taken) for state in signature.results}
    given: dict[Expression, str] = {}
    for kind in ("gates_x", "gates_h"):
        for g in range(signature.gates):
            given[graph.input(f"{kind} {g}")] = f"{kind}[{('', 'units + ')[min(g, 1)] if g < 2 else f'{g} * units + '}j]"
    names: dict[Expression, str] = {}
    for state in signature.states:
        leaf = graph.input(f"state {state}")
        given[leaf], names[leaf] = f"{arrays[state]}[j]", identifier(f"{state}_prev", taken)
    of_param = {}
    for k in params:
        param = traced.params[k]
        of_param[k] = identifier(traced.prologue.names[k], taken)
        given[param] = f"{of_param[k]}[j]"
    for expression, label in sorted(traced.names.items(), key=lambda item: item[0].index):
        if expression.op != "in" and expression in used and expression not in names:
            names[expression] = identifier(f"{label}_new" if label in signature.results else label, taken)
    for state, result in zip(signature.results, traced.results, strict=True):
        if result.op not in ("in", "const") and result not in names:
            names[result] = identifier(f"{state}_new", taken)
    body = Body(traced.results, given, names, b.functions)
    texts = [body.compute(result) for result in traced.results]  # all states are read before the first is written
    body.lines += [f"{arrays[state]}[j] = {text};" for state, text in zip(signature.results, texts, strict=True)]
    arguments = ["int units", "const float *restrict gates_x"]
    arguments += ["const float *restrict gates_h"] if takes_h else []
    arguments += [f"const float *restrict {each}" for each in of_param.values()]
    arguments += [f"float *restrict {arrays[state]}" for state in signature.results]
    head = textwrap.fill(f"static void {function}({', '.join(arguments)}) {{", 110, subsequent_indent="    ")
    text = "\n".join([head, "  for (int j = 0; j < units; j++) {", *(f"    {line}" for line in body.lines), "  }", "}"])
    b.cells[function] = text
    return CellFunction(function, text, signature, traced.prologue, params, takes_h)

