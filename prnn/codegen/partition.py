"""Which values the forward pass saves for the backward pass: as few as possible, by a minimum cut.

What the backward pass needs is a value that does not depend on incoming gradients and meets one that does, or is a
gradient itself. Such a value is saved, or computed again from others. At hand without being saved are the new h, the
previous h, parameters and per-step inputs; a previous state, where the new one is saved, since it is read from the step
before. Functions in ``EXPENSIVE`` that the forward pass computes are not computed twice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import combinations

from prnn.codegen.expressions import EXPENSIVE, Expression, reachable
from prnn.codegen.trace import Trace

# Among cuts of one size, those through values that the forward pass computes anyway.
_SAVED, _SAVED_EXTRA, _UNLIMITED = 1000, 1001, 10**9
_MOST_STATES = 6  # whose sets are all tried


@dataclass(frozen=True)
class Partition:
    """``saved``: the values, in the order of their places. ``state_at``: for each state besides h, the place of its new
    value, if the backward pass reads the previous one, else -1.
    """

    saved: tuple[Expression, ...]
    state_at: tuple[int, ...]


def partition(trace: Trace) -> Partition:
    """The partition with the fewest saved values; deterministic."""
    graph, names = trace.graph, trace.signature.states[1:]
    forward, tangents = reachable(trace.results), _tangent_dependent(trace)
    backward = reachable(trace.grads.values())
    needed = {arg for expression in backward & tangents for arg in expression.args} | set(trace.grads.values())
    needed -= tangents
    previous = [graph.input(f"state {name}") for name in names]
    new = trace.results[1 : len(trace.signature.states)]
    at_hand = {graph.input("state h")}
    if trace.results[0].op != "in":  # a gate or a state as the new h is one whose gradient has its own place
        at_hand.add(trace.results[0])
    at_hand |= {e for e in graph.expressions if e.op == "const" or str(e.value).startswith(("param ", "input "))}

    def saved_with(kept: Collection[int]) -> tuple[Expression, ...]:
        free = at_hand | {previous[k] for k in kept} | {new[k] for k in kept}
        cut = _minimum_cut(needed, free, forward)
        return tuple(sorted({*cut, *(new[k] for k in kept)}, key=lambda expression: expression.index))

    candidates = [k for k in range(len(names)) if previous[k] in reachable(needed)]
    sizes = range(len(candidates) + 1) if len(candidates) <= _MOST_STATES else [len(candidates)]
    choices = [(saved_with(kept), kept) for size in sizes for kept in combinations(candidates, size)]
    saved, kept = min(choices, key=lambda choice: sum(_weight(value, forward) for value in choice[0]))
    return Partition(saved, tuple(saved.index(new[k]) if k in kept else -1 for k in range(len(names))))


def _tangent_dependent(trace: Trace) -> set[Expression]:
    found: set[Expression] = set()
    for expression in trace.graph.expressions:  # arguments come first
        is_tangent = expression.op == "in" and str(expression.value).startswith("grad ")
        if is_tangent or any(arg in found for arg in expression.args):
            found.add(expression)
    return found


def _weight(expression: Expression, forward: Collection[Expression]) -> int:
    return _SAVED if expression in forward else _SAVED_EXTRA


def _minimum_cut(
    needed: Iterable[Expression], free: Collection[Expression], forward: Collection[Expression]
) -> list[Expression]:
    """The values of least weight that separate ``needed`` from what cannot be computed again.

    Flow goes from the sources (inputs that are not free, expensive functions) along the graph to the needed values; an
    expression is an edge from (it, 0) to (it, 1) of its weight. Of several minimum cuts, the one nearest the needed
    values, which leaves the backward pass the least to compute.
    """
    capacity: dict[object, dict[object, int]] = {"source": {}, "sink": {}}

    def edge(a: object, b: object, size: int) -> None:
        capacity.setdefault(a, {})[b] = size
        capacity.setdefault(b, {}).setdefault(a, 0)

    expressions = sorted(reachable(needed, free) - set(free), key=lambda e: e.index)
    for e in expressions:
        edge((e, 0), (e, 1), _weight(e, forward))
        if e.op == "in" or (e.op in EXPENSIVE and e in forward):
            edge("source", (e, 0), _UNLIMITED)
        for arg in e.args:
            if arg not in free:
                edge((arg, 1), (e, 0), _UNLIMITED)
    for e in sorted(set(needed) - set(free), key=lambda e: e.index):
        edge((e, 1), "sink", _UNLIMITED)
    while path := _augmenting_path(capacity):
        flow = min(capacity[a][b] for a, b in path)
        for a, b in path:
            capacity[a][b] -= flow
            capacity[b][a] += flow
    behind = _reaches_sink(capacity)
    return [e for e in expressions if (e, 1) in behind and (e, 0) not in behind]


def _augmenting_path(capacity: dict[object, dict[object, int]]) -> list[tuple[object, object]]:
    """A shortest path with capacity left from the source to the sink, as its edges; empty if there is none."""
    came_from: dict[object, object] = {"source": None}
    queue: list[object] = ["source"]
    for node in queue:
        for following, left in capacity[node].items():
            if left > 0 and following not in came_from:
                came_from[following] = node
                queue.append(following)
    path: list[tuple[object, object]] = []
    node = "sink"
    while came_from.get(node) is not None:
        path.append((came_from[node], node))
        node = came_from[node]
    return path[::-1]


def _reaches_sink(capacity: dict[object, dict[object, int]]) -> set[object]:
    found: set[object] = {"sink"}
    queue: list[object] = ["sink"]
    for node in queue:
        for before in capacity[node]:  # each edge has its opposite
            if capacity[before][node] > 0 and before not in found:
                found.add(before)
                queue.append(before)
    return found
