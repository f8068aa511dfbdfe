"""What is known of a model's graph before its statements are written: where results are wanted, and which states a
layer may overwrite.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from prnn.export.c.nodes import CHECKS, FILLED, FLAT, SAME, VIEWS, is_layer, operator_name
from prnn.export.c.views import Buffer, View
from prnn.ops.operands import Operands

_H0, _C0 = (2 + Operands._fields.index(name) for name in ("h0", "c0"))


def needed(output: Node) -> set[Node]:
    """The nodes that the output is made of; others are there for checks."""
    found: set[Node] = set()
    pending = list(output.all_input_nodes)
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending += node.all_input_nodes
    return found


def to_state(nodes: Sequence[Node], output: Node) -> set[Node]:
    """Nodes that only new states are made of, by views and concatenation."""
    results: Any = output.args[0]
    result, *states = results
    found: set[Node] = set()
    for node in reversed(nodes):
        moves = node.target is operator.getitem or operator_name(node) in VIEWS | SAME | {"cat"}
        ends = node in states and node is not result
        users = [user for user in node.users if user is not output]
        only = (users or ends) and all(user in found for user in users)
        if node.op == "call_function" and node is not result and moves and only:
            found.add(node)
    return found


def wanted_at(node: Any, target: Buffer) -> dict[Node, View]:
    """``target`` for a node, and for those that it is a mere view of."""
    found: dict[Node, View] = {}
    while isinstance(node, Node) and node.op == "call_function":
        found[node] = View.whole(target, [target.size])
        if operator_name(node) not in FLAT:
            break
        node = node.args[0]
    return found


def in_place(states: Sequence[tuple[Node, View]]) -> set[tuple[str, int]]:
    """The elements of states that layers alone read, each one layer: the buffer's name and the index."""
    found: set[tuple[str, int]] = set()
    for node, place in states:
        views = _ends(node, place)
        elements = [index for view in views or () for index in _elements(view)]
        if len(set(elements)) == len(elements):
            found |= {(place.buffer.name, index) for index in elements}
    return found


def is_owned(view: View, owned: set[tuple[str, int]]) -> bool:
    """Whether a layer may overwrite the view of a state."""
    return view.is_contiguous and all((view.buffer.name, view.offset + i) in owned for i in range(view.numel))


def _ends(node: Node, view: View) -> list[View] | None:
    """The views of a state that layers take; None where something else reads it."""
    found: list[View] = []
    for user in node.users:
        name = operator_name(user)
        if user.op != "call_function":
            return None
        if name in CHECKS | FILLED:  # which read the shape alone
            continue
        if is_layer(user):
            taken = [place for place, each in enumerate(user.args) if each is node]
            if taken not in ([_H0], [_C0]):
                return None
            found.append(view)
        elif name == "cat" and _is_stack(user):
            found.append(view)
        elif name in VIEWS or name in SAME:
            target: Any = user.target
            try:
                applied: Any = view if name in SAME else view.apply(target, *user.args[1:], **user.kwargs)
            except RuntimeError:
                return None
            pairs = (
                [(user, applied)]
                if isinstance(applied, View)
                else [(item, applied[item.args[1]]) for item in user.users]
            )
            for each, of_it in pairs:
                further = _ends(each, of_it)
                if further is None:
                    return None
                found += further
        else:
            return None
    return found


def _is_stack(node: Node) -> bool:
    """Whether a concatenation is the states besides h of a layer, and nothing else."""
    users = list(node.users)
    while len(users) == 1 and operator_name(users[0]) in FLAT:
        node, users = users[0], list(users[0].users)
    return len(users) == 1 and is_layer(users[0]) and [p for p, a in enumerate(users[0].args) if a is node] == [_C0]


def _elements(view: View) -> list[int]:
    base = torch.arange(max(view.buffer.size, 1))
    return base.as_strided(view.sizes, view.strides, view.offset).flatten().tolist()
