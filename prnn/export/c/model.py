"""From a step's program to the parts of a model in C."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from prnn.errors import UserError
from prnn.export.c import convolution, layers, operators, plan, reductions
from prnn.export.c.builder import Builder, Declaration
from prnn.export.c.constants import Constants
from prnn.export.c.expressions import RESERVED, identifier
from prnn.export.c.values import Cat, Constant, pieces_at
from prnn.export.c.views import Buffer, View
from prnn.export.program import Step
from prnn.ops import memory

__all__ = ["Model", "compile_step", "convolution", "layers", "operators", "reductions"]  # the latter register operators

_STACK = 16384  # floats of temporaries that step() has on its stack, 64 KiB; of more, all are in the state's scratch
_TYPES = {torch.float32: "float", torch.int64: "int32_t"}


@dataclass
class Model:
    """A model's parts, from which its files are written; shapes are those of a frame, ``scratch`` is in floats."""

    name: str
    builder: Builder
    input: Buffer
    output: Buffer
    states: list[tuple[str, Any]]  # the member's name and the initial value
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    scratch: int = 0

    @property
    def reversed(self) -> bool:
        """Whether a layer runs backwards, so that there is no step."""
        return len(self.builder.code) > 1

    @property
    def state_floats(self) -> int:
        return sum(initial.numel() for _, initial in self.states)


def compile_step(name: str, step: Step, weights: str) -> Model:
    """The parts of a model in C; UserError, in one sentence, for what C has not."""
    if not re.fullmatch(r"[A-Za-z]\w*", name, flags=re.ASCII) or name in RESERVED:
        raise UserError(f"name={name!r}: expected an identifier of C, such as 'model'")
    table = torch.export.default_decompositions()
    table.pop(torch.ops.prnn.exported_layer.default)  # ``layers`` writes it
    table[torch.ops.prnn.exported_memory.default] = memory.unrolled
    table[torch.ops.aten.copy.default] = lambda to, source, non_blocking=False: source.to(to.dtype).expand_as(to)
    program = step.program.run_decompositions(table)
    nodes = list(program.graph.nodes)
    # Letters of loops, and what the functions of a model are given or declare.
    taken = {*"ijklmncgopqrstu", "row", "column", "found", "sum", "squares", "count", "token", "inputs", "outputs"}
    taken |= {name, f"{name}_state", f"{name}_init", f"{name}_step", f"{name}_run"}
    b = Builder(program.graph, Constants(weights, taken), taken)
    given = _weights(program, b)
    first, *old = [node for node in nodes if node.op == "placeholder" and node not in given]
    (end,) = [node for node in nodes if node.op == "output"]
    result, *new = end.args[0]
    if len(old) != len(step.states) or len(new) != len(step.states):
        raise UserError(f"the program takes {len(old)} states and gives {len(new)}: Step.states has {len(step.states)}")
    value, of_output = first.meta["val"], result.meta["val"]
    if value.dtype not in _TYPES:
        raise UserError(f"the input is of {value.dtype}: expected float32 or int64")
    model_input = Buffer("input", value.numel(), None, _TYPES[value.dtype])
    output = Buffer("output", of_output.numel(), None)
    b.values[first] = View.whole(model_input, value.shape)
    members = _states(step, old, b)
    b.to_state = plan.to_state(nodes, end)
    b.hints = plan.wanted_at(result, output) if result not in new else {}
    needed = plan.needed(end)
    b.build(node for node in nodes if node in needed)
    _finish(b, result, View.whole(output, of_output.shape))
    _store_states(b, new, members)
    states = [
        (member.buffer.name.removeprefix("state->"), state.initial.detach().float())
        for member, state in zip(members, step.states, strict=True)
    ]
    total = sum(line.buffer.size for code in b.code for line in code if isinstance(line, Declaration))
    scratch = total if total > _STACK else 0
    return Model(name, b, model_input, output, states, _without_ones(value), _without_ones(of_output), scratch)


def _without_ones(value: torch.Tensor) -> tuple[int, ...]:
    """The shape of a frame: that of T = B = 1 without them."""
    return tuple(size for size in value.shape if size != 1) or (1,)


def _states(step: Step, nodes: Sequence[Node], b: Builder) -> list[View]:
    """The members of the state, each as its node's tensor; layers may overwrite those that they alone read."""
    taken: set[str] = set()
    members = []
    for node, state in zip(nodes, step.states, strict=True):
        buffer = Buffer(f"state->{identifier(state.name, taken)}", state.initial.numel(), 0)
        b.values[node] = member = View.whole(buffer, node.meta["val"].shape)
        members.append(member)
    b.in_place = plan.in_place(list(zip(nodes, members, strict=True)))
    return members


def _weights(program: torch.export.ExportedProgram, b: Builder) -> set[Node]:
    """Gives the builder the parameters, buffers and other tensors of the program; their nodes."""
    signature = program.graph_signature
    targets = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    targets |= dict(signature.inputs_to_lifted_tensor_constants)
    written = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
    if written:
        raise UserError(f"the model writes to {', '.join(written)}: expected one whose state is all that changes")
    tensors = {**program.constants, **program.state_dict}
    given = set()
    b.root = _common(list(signature.inputs_to_parameters.values()))
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in targets:
            target = targets[node.name]
            b.values[node] = Constant(tensors[target].detach().cpu(), target.removeprefix(b.root))
            given.add(node)
    return given


def _common(names: list[str]) -> str:
    """The path that all parameters begin with, of the module that wraps the model: "model."."""
    first = {name.partition(".")[0] for name in names if "." in name}
    whole = len(first) == 1 and all("." in name for name in names)
    return f"{first.pop()}." if whole and len(names) > 1 else ""


def _finish(b: Builder, result: Node, target: View) -> None:
    """Write the output."""
    level, value = b.levels[result], b.values[result]
    b.store(value if isinstance(value, Constant) else b.view(result, level), target, level)


def _store_states(b: Builder, nodes: Sequence[Node], members: Sequence[View]) -> None:
    """Write the new states, where a layer has not done it; those that are made of states are copied first."""
    moved = []
    for node, place in zip(nodes, members, strict=True):
        value = b.values[node]
        if not isinstance(value, Constant) and node not in b.to_state:
            value = b.view(node, None)
        moved += _moves(value, place)
    if len(b.code) > 1 and any(_level(source) not in (0, None) for source, _ in moved):
        raise UserError(
            "the model has a layer that runs backwards, and a state that is computed after it: expected a state of the "
            "layers alone"
        )
    safe = []
    for source, place in moved:
        if isinstance(source, View) and source.buffer.name.startswith("state->"):
            source = b.copy(source, 0, "moved")
        safe.append((source, place))
    for source, place in safe:
        b.store(source, place, 0)


def _level(value: Any) -> int | None:
    return value.buffer.level if isinstance(value, View) else None


def _moves(value: Any, place: View) -> list[tuple[Any, View]]:
    """The parts of a value that do not stand in their place yet."""
    if isinstance(value, Cat):
        return [move for piece, at in pieces_at(value, place) for move in _moves(piece, at)]
    return [] if isinstance(value, View) and value.same_place(place) else [(value, place)]
