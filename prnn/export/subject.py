"""A model as it is exported: a copy in evaluation mode whose state is an argument, and what is found out by running it.

Letters: T frames, B streams, I input size, H hidden size, L layers, D directions.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prnn.errors import UserError
from prnn.export.program import State
from prnn.nn.conversion import convert
from prnn.nn.layers import RecurrentLayers
from prnn.nn.recurrent import GRU, LSTM, RNN
from prnn.nn.stack import ListRNN, StackRNN, memories_of, state_before

_CELLS: dict[type[nn.Module], type[RecurrentLayers]] = {nn.RNNCell: RNN, nn.GRUCell: GRU, nn.LSTMCell: LSTM}
_CONTRACT = "a model is called as model(input, state) and returns (output, state), or output alone"


class Explicit(nn.Module):
    """``module(input, state) -> (output, state)`` as ``(input, *tensors) -> (output, *tensors)``."""

    def __init__(self, module: nn.Module, tree: pytree.TreeSpec | None) -> None:
        super().__init__()
        self.module, self.tree = module, tree

    def forward(self, input: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        if self.tree is None:
            return (self.module(input),)
        output, state = self.module(input, pytree.tree_unflatten(list(states), self.tree))
        return output, *pytree.tree_leaves(state)


class Subject:
    """``model`` on inputs like ``example``, an input, or an input and the state before the first frame.

    ``single`` and ``double`` are its copies in float32 and float64. ``input``: the argument's name. ``frames`` and
    ``streams``: the dimensions of the input that are T and B; ``frames_out`` and ``streams_out`` of the output, whose
    frames are None where it has none. ``carries``: a call continues where the last one ended; if not, ``why`` says so.

    Raises UserError for a model that is called otherwise.
    """

    def __init__(self, model: nn.Module, example: Any, batch_first: bool | None = None) -> None:
        if not isinstance(model, nn.Module):
            raise UserError(f"prnn.export takes a torch.nn.Module, got {type(model).__name__}")
        self.kind = type(model).__name__
        module = _prepared(model)
        example, state = example if isinstance(example, (tuple, list)) and len(example) == 2 else (example, None)
        self.example = _example(module, example)
        self.streams = 0 if _batch_first(module, batch_first) else 1
        self.frames = 1 - self.streams
        self.input = next(iter(inspect.signature(module.forward).parameters), "input")
        self.generator = torch.Generator().manual_seed(0)
        self._module = module
        self._find_layout(state)
        self.single = Explicit(module, self.tree)
        self.double = Explicit(copy.deepcopy(module).double(), self.tree)
        self._check_initial()
        self.carries, self.why = self._find_out_whether_it_carries()

    def values(self, T: int, B: int) -> Tensor:
        """An input of another size: values of the example in another order, or normal ones where it has only one."""
        shape = list(self.example.shape)
        shape[self.frames], shape[self.streams] = T, B
        known = self.example.flatten()
        if self.example.is_floating_point() and (known == known[0]).all():
            return torch.randn(shape, generator=self.generator)
        return known[torch.randint(len(known), shape, generator=self.generator)]

    def initial(self, B: int) -> tuple[Tensor, ...]:
        """The state of B streams before the first frame."""
        return tuple(state.initial.repeat_interleave(B, state.dim) for state in self.states)

    @torch.no_grad()
    def run(self, input: Tensor, states: Sequence[Tensor], double: bool) -> tuple[Tensor, ...]:
        """The training code in float64 or float32: (output, *states)."""
        if not double:
            return self.single(input, *states)
        given = [each.double() if each.is_floating_point() else each for each in (input, *states)]
        return self.double(*given)

    def piece(self, input: Tensor, start: int, stop: int) -> Tensor:
        """Some frames of an input."""
        return input.narrow(self.frames, start, stop - start)

    def join(self, outputs: Sequence[Tensor]) -> Tensor:
        """The outputs of several calls as that of one."""
        return outputs[-1] if self.frames_out is None else torch.cat(list(outputs), self.frames_out)

    @torch.no_grad()
    def _call(self, T: int, B: int) -> tuple[Tensor, Any]:
        """The output, and the state, which is None of a model without one."""
        input = self.values(T, B)
        try:
            returned = self._module(input)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UserError(
                f"{self.kind} fails on an input {list(input.shape)} of {input.dtype} ({reason}): give example=, an "
                "input of the model, and batch_first= where that is not found"
            ) from error
        output, state = returned if isinstance(returned, (tuple, list)) and len(returned) == 2 else (returned, None)
        leaves = [output, *pytree.tree_leaves(state)]
        if not all(isinstance(leaf, Tensor) for leaf in leaves if leaf is not None) or output is None:
            raise UserError(f"{self.kind} returned {_described(returned)}: {_CONTRACT}, of tensors")
        return output, state

    def _find_layout(self, given: Any) -> None:
        (output, state), (longer, _), (wider, wide_state) = self._call(3, 2), self._call(4, 2), self._call(3, 5)
        self.tree: pytree.TreeSpec | None = None
        self.frames_out = _changed(output, longer)
        streams_out = _changed(output, wider)
        if streams_out is None:
            raise UserError(f"{self.kind} returned an output {list(output.shape)} for any number of streams")
        self.streams_out = streams_out
        self.states: tuple[State, ...] = ()
        if state is None:
            if given is not None:
                raise UserError(f"example has a state, and {self.kind} returns none: {_CONTRACT}")
            return
        leaves, self.tree = pytree.tree_flatten(state)
        names = _state_names(state, self._module)
        initial = pytree.tree_leaves(state_before(self._module, state) if given is None else given)
        if len(initial) != len(leaves):
            raise UserError(f"example has a state of {len(initial)} tensors, {self.kind} returns {len(leaves)}")
        wide = pytree.tree_leaves(wide_state)
        states = []
        for name, leaf, other, first in zip(names, leaves, wide, initial, strict=True):
            dim = _changed(leaf, other)
            if dim is None:
                raise UserError(f"the state {name!r} of {self.kind} is {list(leaf.shape)} for any number of streams")
            if (
                first.dim() != leaf.dim()
                or first.shape[:dim] + first.shape[dim + 1 :] != leaf.shape[:dim] + leaf.shape[dim + 1 :]
            ):
                raise UserError(
                    f"the state {name!r} of the example is {list(first.shape)}, {self.kind} returns {list(leaf.shape)}"
                )
            states.append(State(name, first.narrow(dim, 0, 1).detach().clone(), dim))
        self.states = tuple(states)

    def _check_initial(self) -> None:
        """That a call without a state begins with the initial one."""
        if not self.states:
            return
        input = self.values(3, 2)
        with torch.no_grad():
            output, _ = self._module(input)
        if not torch.allclose(output, self.run(input, self.initial(2), False)[0], 1e-4, 1e-5, equal_nan=True):
            raise UserError(
                f"{self.kind} without a state computes something else than with one of zeros: give example=(input, "
                "state), the state before the first frame"
            )

    def _find_out_whether_it_carries(self) -> tuple[bool, str]:
        for module in self._module.modules():
            if isinstance(module, nn.RNNBase) and module.bidirectional:
                return False, "a layer runs in both directions"
        if not self.states:
            return False, "the model returns no state"
        T, B = 6, 2
        input = self.values(T, B)
        whole = self.run(input, self.initial(B), True)
        outputs, states = [], self.initial(B)
        for start, stop in ((0, 1), (1, 3), (3, T)):
            try:
                output, *states = self.run(self.piece(input, start, stop), states, True)  # type: ignore[assignment]
            except RuntimeError as error:
                return False, f"a call of {stop - start} frames fails ({str(error).splitlines()[0]})"
            outputs.append(output)
        joined = (self.join(outputs), *states)
        same = all(
            a.shape == b.shape and torch.allclose(a, b, 1e-7, 1e-9, equal_nan=True)
            for a, b in zip(joined, whole, strict=True)
        )
        return same, "" if same else "frames in several calls give another output than in one"


def _prepared(model: nn.Module) -> nn.Module:
    """A copy on the CPU, in float32, in evaluation mode, torch.nn's recurrent layers replaced by prnn's."""
    try:
        module = copy.deepcopy(model)
    except Exception as error:
        raise UserError(f"{type(model).__name__} cannot be copied ({error})") from error
    for cell, layer in _CELLS.items():
        if type(module) is cell:
            module = _as_layer(module, layer)
    return convert(module.cpu().float().eval().requires_grad_(False), verbose=False)


def _as_layer(cell: nn.Module, kind: type[RecurrentLayers]) -> RecurrentLayers:
    """The layer of which a cell is a step."""
    options = {"nonlinearity": cell.nonlinearity} if isinstance(cell, nn.RNNCell) else {}
    layer = kind(cell.input_size, cell.hidden_size, bias=cell.bias, **options)  # type: ignore[arg-type]
    layer.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items()})
    return layer


def _batch_first(module: nn.Module, given: bool | None) -> bool:
    if given is not None:
        return given
    found = {each.batch_first for each in module.modules() if isinstance(each, nn.RNNBase)}
    if len(found) == 2:
        raise UserError(f"{type(module).__name__} has layers with and without batch_first: give batch_first=")
    return found == {True}


def _example(module: nn.Module, given: Any) -> Tensor:
    if given is None:
        if not isinstance(module, (RecurrentLayers, StackRNN, ListRNN)):
            raise UserError(f"{type(module).__name__} needs example=, an input of the model with its T and B first")
        return torch.randn(4, 2, module.input_size, generator=torch.Generator().manual_seed(0))
    if not isinstance(given, Tensor) or given.dim() < 2 or not given.numel():
        raise UserError(f"example must be an input, a tensor of frames and streams, got {_described(given)}")
    return given.detach().cpu().float() if given.is_floating_point() else given.detach().cpu()


def _state_names(state: Any, module: nn.Module) -> list[str]:
    """One for each tensor: keys and fields, joined by "_"; h of a single tensor, h and c of two in a tuple."""
    if memories_of(module) is not None:
        return ["h", "memory"]
    return [re.sub(r"\W", "_", name) for name in _names(state, "")]


def _names(state: Any, prefix: str) -> Iterator[str]:
    """In the order in which pytree flattens it."""
    if isinstance(state, Tensor):
        yield prefix or "h"
        return
    if isinstance(state, Mapping):
        parts = {str(key): value for key, value in state.items()}
    elif hasattr(state, "_fields"):
        parts = state._asdict()
    elif len(state) == 2 and all(isinstance(each, Tensor) for each in state):
        parts = dict(zip(("h", "c"), state, strict=True))
    else:
        parts = {str(number): value for number, value in enumerate(state)}
    for part, value in parts.items():
        yield from _names(value, f"{prefix}_{part}" if prefix else part if part[0].isalpha() else f"h_{part}")


def _changed(a: Tensor, b: Tensor) -> int | None:
    """The first dimension in which two shapes differ."""
    return next((dim for dim, (m, n) in enumerate(zip(a.shape, b.shape, strict=False)) if m != n), None)


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {value.dtype}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
