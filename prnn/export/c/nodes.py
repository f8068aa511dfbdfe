"""Nodes of a model's graph: their operators, arguments and modules, and when they are computed."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Node

# Operators that move nothing, those of them that keep the order of the elements, and copies.
VIEWS = frozenset(
    """view _unsafe_view reshape _reshape_alias permute transpose t select slice expand unsqueeze squeeze alias detach
    split split_with_sizes unbind""".split()  # noqa: SIM905
)
FLAT = frozenset("view _unsafe_view reshape _reshape_alias unsqueeze squeeze alias detach".split())  # noqa: SIM905
SAME = frozenset("clone _to_copy to contiguous lift_fresh lift_fresh_copy".split())  # noqa: SIM905
CHECKS = frozenset("_assert_tensor_metadata _assert_async _assert_scalar sym_constrain_range_for_size".split())  # noqa: SIM905
FILLED = frozenset("full_like zeros_like ones_like new_zeros new_ones new_full".split())  # noqa: SIM905


def operator_name(node: Node) -> str:
    """The operator's name without overload, "addmm"."""
    schema = getattr(node.target, "_schema", None)
    return str(node.target) if schema is None else schema.name.rpartition("::")[2]


def arguments_of(node: Node) -> dict[str, Any]:
    """The arguments by name, those left out by their defaults."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {}
    found = {each.name: each.default_value for each in schema.arguments if each.has_default_value()}
    found |= {each.name: value for each, value in zip(schema.arguments, node.args, strict=False)}
    return found | dict(node.kwargs)


def module_of(node: Node) -> tuple[str, bool]:
    """The path of the module that the node comes from, "encoder.conv", and whether that is one of torch's."""
    stack = node.meta.get("nn_module_stack") or {}
    path, kind = next(((path, kind) for path, kind in reversed(list(stack.values())) if path), ("", ""))
    return path, str(kind).startswith("torch.nn.modules")


def is_layer(node: Node) -> bool:
    return node.target == torch.ops.prnn.exported_layer.default


def levels_of(graph: torch.fx.Graph) -> dict[Node, int]:
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
    arguments = arguments_of(node)
    ascending, descending = before + before % 2, before + (before + 1) % 2
    if arguments["weight_hh_reverse"] is not None:
        return ascending, descending
    return (None, descending) if arguments["reverse"] else (ascending, None)
