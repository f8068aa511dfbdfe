"""Cells as functions of C: from the equations that a cell's function was traced to, by its names.

Letters: H hidden size (units), G gates.
"""

from __future__ import annotations

import textwrap
from typing import NamedTuple

from prnn.cell_table import lookup
from prnn.codegen.expressions import Expression, reachable
from prnn.codegen.hoist import Prologue
from prnn.codegen.signature import Signature, name_of
from prnn.codegen.trace import Trace, trace
from prnn.export.c.builder import Builder
from prnn.export.c.cells import function_of
from prnn.export.c.expressions import Body, identifier


class CellFunction(NamedTuple):
    """A cell as a function of C, called with units, gates_x, gates_h if ``takes_gates_h``, the derived parameters of
    ``prologue`` that ``params`` are the places of, and the states, which it updates.
    """

    name: str
    signature: Signature
    prologue: Prologue
    params: tuple[int, ...]
    takes_gates_h: bool


def cell_function(b: Builder, name: str) -> CellFunction:
    """The function of a cell, written once in a source."""
    if name not in b.known_cells:
        function, signature = function_of(lookup(name))
        b.known_cells[name] = _written(b, trace(function, signature), identifier(name_of(function), b.taken))
    return b.known_cells[name]


def _written(b: Builder, traced: Trace, function: str) -> CellFunction:
    signature, graph = traced.signature, traced.graph
    used = reachable(traced.results)
    params = tuple(k for k, param in enumerate(traced.params) if param in used)
    takes_gates_h = any(graph.input(f"gates_h {g}") in used for g in range(signature.gates))
    taken = {"gates_x", "gates_h", "j", "units"}
    states = [identifier(state, taken) for state in signature.results]
    of_params = [identifier(traced.prologue.names[k], taken) for k in params]
    given = _given(traced, params, of_params, states)
    body = Body(traced.results, given, _names(traced, used, taken), b.functions)
    texts = [body.compute(result) for result in traced.results]  # all states are read before the first is written
    body.lines += [f"{state}[j] = {text};" for state, text in zip(states, texts, strict=True)]
    arguments = ["int units", "const float *restrict gates_x"]
    arguments += ["const float *restrict gates_h"] if takes_gates_h else []
    arguments += [f"const float *restrict {each}" for each in of_params]
    arguments += [f"float *restrict {state}" for state in states]
    start = f"static void {function}("
    unbroken = ", ".join(argument.replace(" ", "\0") for argument in arguments)  # lines break between arguments
    head = textwrap.fill(f"{start}{unbroken})\0{{", 116, subsequent_indent=" " * len(start)).replace("\0", " ")
    lines = ["  for (int j = 0; j < units; j++) {", *(f"    {line}" for line in body.lines), "  }", "}"]
    b.cells[function] = "\n".join([head, *lines])
    return CellFunction(function, signature, traced.prologue, params, takes_gates_h)


def _given(traced: Trace, params: tuple[int, ...], of_params: list[str], states: list[str]) -> dict[Expression, str]:
    """The C of the inputs: elements of the arrays."""
    graph, signature = traced.graph, traced.signature
    found = {}
    for g in range(signature.gates):
        start = ("", "units + ")[g] if g < 2 else f"{g} * units + "
        for kind in ("gates_x", "gates_h"):
            found[graph.input(f"{kind} {g}")] = f"{kind}[{start}j]"
    for name, state in zip(signature.states, states, strict=False):
        found[graph.input(f"state {name}")] = f"{state}[j]"
    for k, param in zip(params, of_params, strict=True):
        found[traced.params[k]] = f"{param}[j]"
    return found


def _names(traced: Trace, used: set[Expression], taken: set[str]) -> dict[Expression, str]:
    """Variables: the states before and after the step, and those of the Python source."""
    signature = traced.signature
    names = {traced.graph.input(f"state {state}"): identifier(f"{state}_prev", taken) for state in signature.states}
    for expression, label in sorted(traced.names.items(), key=lambda item: item[0].index):
        if expression.op != "in" and expression in used:
            names[expression] = identifier(f"{label}_new" if label in signature.results else label, taken)
    return names
