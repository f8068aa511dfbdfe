"""Recurrent layers: the statements of a step.

Letters: I input size, H hidden size (units), P projected size, G gates, K columns of ``weight_hh``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Node

from prnn.export.c.builder import Builder, operator_of
from prnn.export.c.cell_functions import cell_function
from prnn.export.c.constants import packed_size
from prnn.export.c.nodes import passes_of
from prnn.export.c.operators import matrix, product_of
from prnn.export.c.plan import is_owned
from prnn.export.c.values import Cat, Constant, Value, part_of
from prnn.export.c.views import Buffer, View
from prnn.ops.operands import Weights

_REFUSED = {"lengths": "is given lengths", "resets": "is given resets", "inputs": "takes per-step inputs"}
_DIRECTIONS = (Weights._fields, tuple(f"{name}_reverse" for name in Weights._fields))


class _Weights(NamedTuple):
    """As ``Weights``, known at export."""

    weight_ih: Constant | None
    weight_hh: Constant
    bias_ih: Constant | None
    bias_hh: Constant | None
    weight_hr: Constant | None
    params: Constant | None


@operator_of("exported_layer")
def _layer(b: Builder, node: Node, arguments: dict[str, Any]) -> Any:
    for operand, what in _REFUSED.items():
        if arguments[operand] is not None:
            return b.refuse(node, f" that {what}")
    if isinstance(b.values[arguments["h0"]], Constant):
        return b.refuse(node, " whose state is not one of the model's: return (output, state) from it")
    before = max((b.levels[each] for each in node.all_input_nodes), default=0)
    found = []
    for level in passes_of(node, before):
        if level is None:
            continue
        d = int(level % 2 == 1 and arguments["weight_hh_reverse"] is not None)
        weights = {field: arguments[name] for field, name in zip(Weights._fields, _DIRECTIONS[d], strict=True)}
        values: dict[str, Any] = {field: None if each is None else b.values[each] for field, each in weights.items()}
        for field, value in values.items():
            if value is not None and not isinstance(value, Constant):
                return b.refuse(node, f" with a {field} that is computed")
        found.append(_Direction(b, arguments, _Weights(**values), d, level).run())
    if len(found) == 1:
        return list(found[0])
    (first, h, c), (second, h_reverse, c_reverse) = found
    of_output, of_h, of_c = node.meta["val"]
    output = Cat((first, second), of_output.dim() - 1, tuple(of_output.shape))
    h_n = Cat((h, h_reverse), 0, tuple(of_h.shape))
    c_n = None if c is None or c_reverse is None else Cat((c, c_reverse), of_c.dim() - 3, tuple(of_c.shape))
    return [output, h_n, c_n]


class _Direction:
    """One direction of a layer, number ``d`` of it, in pass ``level``."""

    def __init__(self, b: Builder, arguments: dict[str, Any], given: _Weights, d: int, level: int) -> None:
        self.b, self.given, self.d, self.level = b, given, d, level
        self.x, self.h0, self.c0 = (arguments[name] for name in ("x", "h0", "c0"))
        self.function = cell_function(b, arguments["cell"])
        self.rows, self.K = given.weight_hh.tensor.shape
        self.H = self.rows // self.function.signature.gates

    def run(self) -> tuple[Value, Value, Value | None]:
        """Its output, final h and other final states."""
        b, function = self.b, self.function
        h, others = self._states()
        x = b.contiguous(self.x, self.level)
        reverse = ", backwards" if self.level % 2 else ""
        b.emit(self.level, f"/* {function.name}: {x.numel} -> {self.H} units{self._heads}{reverse} */")
        arguments = [str(self.H), self._gates_x(x).pointer]
        arguments += [self._gates_h(h).pointer] if function.takes_gates_h else []
        hidden = h if self.given.weight_hr is None else b.temporary(self.level, [self.H], "hidden")
        states = [hidden, *others]
        arguments += [*self._params(), *(state.pointer for state in states)]
        b.emit(self.level, f"{function.name}({', '.join(arguments)});")
        if self.given.weight_hr is not None:
            matrix(b, self.level, self.given.weight_hr, None, hidden, h)
        output = states[function.signature.results.index(function.signature.output)]
        output = h if output is hidden else output
        return output.reshaped((1, 1, output.numel)), *_final(h, others)

    @property
    def _heads(self) -> str:
        if self.K in (0, self.H) or self.given.weight_hr is not None:
            return ""
        return ", each with its own weight" if self.K == 1 else f" in {self.H // self.K} heads"

    def _states(self) -> tuple[View, list[View]]:
        """Where h and the other states stand, which the step updates: the model's own where it alone reads them."""
        h, c0 = self._own(self.h0, "h", self.d), self.c0
        if c0 is None:
            return h, []
        signature, several = self.function.signature, c0.meta["val"].dim() == 4
        others = []
        for k, name in enumerate(signature.results[1:]):
            if name == signature.pseudo_state:  # which the cell gives and never reads
                others.append(self.b.temporary(self.level, [self.H], name))
            else:
                others.append(self._own(c0, name, *([k] if several else []), self.d))
        return h, others

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

    def _gates_x(self, x: View) -> View:
        if self.given.weight_ih is None:
            return x
        gates = self.b.temporary(self.level, [self.rows], "gates_x")
        matrix(self.b, self.level, self.given.weight_ih, self.given.bias_ih, x, gates)
        return gates

    def _gates_h(self, h: View) -> View:
        """The recurrent share, by a matrix, by one for each head, unit by unit, or the bias alone."""
        b, level, K, rows = self.b, self.level, self.K, self.rows
        weight, bias = self.given.weight_hh, self.given.bias_hh
        gates = b.temporary(level, [rows], "gates_h")
        added = None if bias is None else b.constant(bias)
        if h.numel == K:
            matrix(b, level, weight, bias, h, gates)
        elif K > 1:
            heads = self.H // K
            packed = b.constants.matrices(weight.name, list(weight.tensor.split(K)))
            given = [f"{name} + i * {step}" for name, step in zip(packed, (packed_size(K, K), K), strict=False)]
            given += ["NULL" if added is None else f"{added.pointer} + i * {K}"]
            given += [f"{h.pointer} + i % {heads} * {K}", f"{gates.pointer} + i * {K}"]
            b.emit(level, f"for (int i = 0; i < {rows // K}; i++) /* gate i / {heads} of head i % {heads} */")
            b.emit(level, f"  {product_of(b)}({K}, {K}, {', '.join(given)});")
        else:
            terms = [] if added is None else [added.element(["i"])]
            if K == 1:
                own = b.constant(weight._replace(tensor=weight.tensor.squeeze(1)))
                start = f"{h.offset} + " if h.offset else ""
                terms.insert(0, f"{own.element(['i'])} * {h.buffer.name}[{start}i % {self.H}]")
            b.emit(level, f"for (int i = 0; i < {rows}; i++)")
            b.emit(level, f"  {gates.element(['i'])} = {' + '.join(terms) or '0.0f'};")
        return gates

    def _params(self) -> list[str]:
        """The arrays of the derived parameters, computed here."""
        given, prologue = self.given.params, self.function.prologue
        if given is None or not self.function.params:
            return []
        named = dict(zip(self.function.signature.params, given.tensor.unbind(0), strict=True))
        with torch.no_grad():
            values: list[Tensor] = prologue.evaluate(named)
        path, _, name = given.name.rpartition(".")  # of the first parameter, "gru.decay_l0"
        suffix = f"_l{name.rpartition('_l')[2]}" if "_l" in name else ""
        labels = {k: ".".join(filter(None, (path, f"{prologue.names[k]}{suffix}"))) for k in self.function.params}
        return [self.b.constants.plain(label, values[k].reshape(-1).expand(self.H)) for k, label in labels.items()]


def _final(h: View, others: list[View]) -> tuple[Value, Value | None]:
    """h_n [1,1,P], and c_n [1,1,H] of one state besides, [K,1,1,H] of several."""
    h_n = h.reshaped((1, 1, h.numel))
    if len(others) < 2:
        return h_n, others[0].reshaped((1, 1, others[0].numel)) if others else None
    H = others[0].numel
    return h_n, Cat(tuple(each.reshaped((1, 1, 1, H)) for each in others), 0, (len(others), 1, 1, H))
