"""A model as it is exported: a copy in evaluation mode whose state is an argument, and what is found out by running it.

Letters: T frames, B streams, I input size, H hidden size, L layers, D directions.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prnn import ops
from prnn.errors import UserError
from prnn.export.program import State
from prnn.nn.conversion import convert
from prnn.nn.layers import RecurrentLayers
from prnn.nn.recurrent import GRU, LSTM, RNN
from prnn.nn.stack import ListRNN, StackRNN, memories_of, state_before

_CELLS: dict[type[nn.Module], type[RecurrentLayers]] = {nn.RNNCell: RNN, nn.GRUCell: GRU, nn.LSTMCell: LSTM}
_CONTRACT = "a model is called as model(input, state) and returns (output, state), or output alone"


class Explicit(nn.Module):
    """``module(input, state) -> (output, state)`` as ``(input, *tensors) -> (output, *tensors)``; ``state``: one that
    the module returned, whose values that are no tensors stay what they are. None: the module has no state. ``copies``:
    the module writes to the state that it is given.
    """

    def __init__(self, module: nn.Module, state: Any) -> None:
        super().__init__()
        self.module, self.state, self.copies = module, state, False

    def forward(self, input: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        if self.state is None:
            returned = self.module(input)
            return (returned[0] if isinstance(returned, (tuple, list)) else returned,)
        leaves, tree = pytree.tree_flatten(self.state)
        given = iter([each.clone() for each in states] if self.copies else states)
        filled = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        output, state = self.module(input, pytree.tree_unflatten(filled, tree))
        return output, *tensors_of(in_order(state, self.state))


class CellSteps(nn.Module):
    """torch.nn's cell, step by step: input [T,B,I] and the state of its layer, [1,B,H] each."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, input: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        now, outputs = None if state is None else pytree.tree_map(lambda each: each[0], state), []
        for x in input:
            now = self.cell(x) if now is None else self.cell(x, now)
            outputs.append(now[0] if isinstance(now, tuple) else now)
        return torch.stack(outputs), pytree.tree_map(lambda each: each[None], now)


class Subject:
    """``model`` on inputs like ``example``, an input, or an input and the state before the first frame.

    ``single`` is the copy that is exported, in float32. ``input``: the argument's name. ``frames`` and ``streams``: the
    dimensions of the input that are T and B; ``frames_out`` and ``streams_out`` of the output, whose frames are None
    where it has none. ``carries``: a call continues where the last one ended; if not, ``reason`` says why.

    Raises UserError for a model that is called otherwise.
    """

    def __init__(self, model: nn.Module, example: Any, batch_first: bool | None = None) -> None:
        if not isinstance(model, nn.Module):
            raise UserError(f"prnn.export takes a torch.nn.Module, got {type(model).__name__}")
        self.kind = type(model).__name__
        original = _copy(model)
        self._module = _exportable(original)
        if type(original) in _CELLS:
            original = CellSteps(original)
        given = example if isinstance(example, (tuple, list)) and len(example) == 2 else (example, None)
        self.example = _example(self._module, given[0])
        self.streams = 0 if _batch_first(self._module, batch_first) else 1
        self.frames = 1 - self.streams
        self.reversed = any(isinstance(each, nn.RNNBase) and each.bidirectional for each in self._module.modules())
        self.generator = torch.Generator().manual_seed(0)
        state = self._find_layout(given[1])
        first = next(iter(inspect.signature(self._module.forward).parameters), "input")
        taken = {"output", *(name for each in self.states for name in (each.given, each.final))}
        self.input = first if first.isidentifier() and first not in taken else "input"
        self.single = Explicit(self._module, state)
        self._original = Explicit(original, state)
        self._double: Explicit | None = copy.deepcopy(self._original).double()
        self._check_initial()
        self.independent = False  # a model without a state whose frames do not depend on each other
        self.carries, self.reason = self._carries()

    @property
    def compared_in_double(self) -> bool:
        """Whether the training code runs in float64: a model may make float32 values of its own."""
        return self._double is not None

    def values(self, T: int, B: int) -> Tensor:
        """An input of another size: values drawn from the example, or normal ones where it has only one."""
        shape = list(self.example.shape)
        shape[self.frames], shape[self.streams] = T, B
        known = self.example.flatten()
        if self.example.is_floating_point() and (known == known[0]).all():
            return torch.randn(shape, generator=self.generator)
        return known[torch.randint(len(known), shape, generator=self.generator)]

    def initial(self, B: int) -> tuple[Tensor, ...]:
        """The state of B streams before the first frame."""
        return tuple(state.initial.repeat_interleave(B, state.dim) for state in self.states)

    def run(self, input: Tensor, states: Sequence[Tensor], double: bool) -> tuple[Tensor, ...]:
        """The training code, in float64 if ``double`` and where it runs in it: (output, *states)."""
        if double and self._double is not None:
            given = [each.double() if each.is_floating_point() else each.clone() for each in (input, *states)]
            torch.set_default_dtype(torch.float64)  # of what the model makes
            try:
                return self._called(self._double, given)
            except UserError:
                self._double = None
            finally:
                torch.set_default_dtype(torch.float32)
        return self._called(self._original, [input.clone(), *(each.clone() for each in states)])

    def piece(self, input: Tensor, start: int, stop: int) -> Tensor:
        """Some frames of an input."""
        return input.narrow(self.frames, start, stop - start)

    def join(self, outputs: Sequence[Tensor]) -> Tensor:
        """The outputs of several calls as that of one."""
        return outputs[-1] if self.frames_out is None else torch.cat(list(outputs), self.frames_out)

    @torch.no_grad()
    def _called(self, module: nn.Module, arguments: Sequence[Any]) -> Any:
        """What the module returns; UserError where it fails."""
        try:
            return module(*arguments)
        except UserError:
            raise
        except Exception as error:
            input, reason = arguments[0], f"{type(error).__name__}: {str(error) or 'no message'}".splitlines()[0]
            raise UserError(
                f"{self.kind} fails on an input {list(input.shape)} of {str(input.dtype).removeprefix('torch.')} "
                f"({reason}): example= is an input of the model, batch_first= its layout, frames= the largest T"
            ) from error

    def _call(self, T: int, B: int) -> tuple[Tensor, Any]:
        """The output, and the state, which is None of a model without one."""
        returned = self._called(self._module, [self.values(T, B)])
        output, state = returned if isinstance(returned, (tuple, list)) and len(returned) == 2 else (returned, None)
        if not isinstance(output, Tensor) or (state is not None and not tensors_of(state)):
            raise UserError(f"{self.kind} returned {_described(returned)}: {_CONTRACT}, of tensors")
        return output, state

    def _find_layout(self, given: Any) -> Any:
        """Finds the dimensions, and the states; the state as the model returns it."""
        T = max(2, self.example.shape[self.frames])
        (output, state), (longer, long_state), (wider, wide_state) = (
            self._call(T, 2),
            self._call(T + 1, 2),
            self._call(T, 5),
        )
        self.frames_out, streams_out = _changed(output, longer), _changed(output, wider)
        if streams_out is None:
            raise UserError(f"{self.kind} returned an output {list(output.shape)} for any number of streams")
        self.streams_out = streams_out
        self.states: tuple[State, ...] = ()
        if state is None:
            if given is not None:
                raise UserError(f"example has a state, and {self.kind} returns none: {_CONTRACT}")
            return None
        before = state_before(self._module, state) if given is None else in_order(given, state)
        found = list(
            zip(
                _state_names(state, self._module),
                *map(tensors_of, (state, long_state, wide_state, before)),
                strict=False,
            )
        )
        if len(tensors_of(before)) != len(tensors_of(state)):
            raise UserError(
                f"example has a state of {len(tensors_of(before))} tensors, {self.kind} returns {len(found)}"
            )
        states = []
        for name, leaf, longer, wider, first in found:
            dim = _changed(leaf, wider)
            if dim is None or leaf.shape != longer.shape:
                sizes = (
                    f"{list(leaf.shape)}, {list(longer.shape)} of one frame more and {list(wider.shape)} of 5 streams"
                )
                raise UserError(f"the state {name!r} of {self.kind} is {sizes}: expected one that grows with B alone")
            if first.dim() != leaf.dim() or _without(first, dim) != _without(leaf, dim):
                raise UserError(
                    f"the state {name!r} of the example is {list(first.shape)}, {self.kind} returns {list(leaf.shape)}"
                )
            states.append(State(name, first.narrow(dim, 0, 1).detach().cpu().clone(), dim))
        self.states = tuple(states)
        return state

    def _check_initial(self) -> None:
        """That a call repeats, and that one without a state begins with the initial one."""
        T = self.example.shape[self.frames]
        input, module = self.values(T, 2), self._original.module
        first, again = (self._called(module, [input.clone()]) for _ in range(2))
        first, again = (each[0] if isinstance(each, (tuple, list)) else each for each in (first, again))
        if not torch.allclose(first, again, 1e-4, 1e-5, equal_nan=True):
            raise UserError(
                f"{self.kind} computes something else when it is called again: random numbers, or values that it keeps"
            )
        if not self.states:
            return
        states = [each.clone() for each in self.initial(2)]
        before = [each._version for each in states]
        begun, *_ = self._called(self._original, [input.clone(), *states])
        self.single.copies = before != [each._version for each in states]
        if not torch.allclose(first, begun, 1e-4, 1e-5, equal_nan=True):
            raise UserError(
                f"{self.kind} without a state computes something else than with one of zeros: give example=(input, "
                "state), the state before the first frame"
            )

    def _carries(self) -> tuple[bool, str]:
        if self.reversed:
            return False, "a layer runs in both directions"
        same, reason = self._same_in_pieces()
        self.independent = same and not self.states
        return (same, reason) if self.states else (False, "the model returns no state")

    def _same_in_pieces(self) -> tuple[bool, str]:
        """Whether calls of few frames give what one call does; if not, why."""
        T, B = 6, 2
        input, lengths = self.values(T, B), (1, 2, 3)
        outputs, states = [], self.initial(B)
        try:
            whole = self.run(input, states, True)
            for start, length in zip((0, 1, 3), lengths, strict=True):
                output, *rest = self.run(self.piece(input, start, start + length), states, True)
                outputs.append(output)
                states = tuple(rest)
        except UserError as error:
            return False, f"calls of few frames fail: {error}"
        same = all(
            a.shape == b.shape and torch.allclose(a, b, 1e-5, 1e-6, equal_nan=True)
            for a, b in zip((self.join(outputs), *states), whole, strict=True)
        )
        return same, "" if same else "frames in several calls give another output than in one"


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Nothing that a program has set for its own tensors and layers holds for an export."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"), torch.autocast("cpu", enabled=False), ops.backend(None):
            yield
    finally:
        torch.set_default_dtype(dtype)


def tensors_of(state: Any) -> list[Tensor]:
    """The tensors of a state, in the order of pytree."""
    return [leaf for leaf in pytree.tree_leaves(state) if isinstance(leaf, Tensor)]


def in_order(state: Any, like: Any) -> Any:
    """A state with the keys of its dictionaries in the order of another one."""
    if isinstance(like, Mapping):
        if not isinstance(state, Mapping) or state.keys() != like.keys():
            raise UserError(f"the state is {_described(state)}: expected one with the keys {', '.join(map(str, like))}")
        return type(like)({key: in_order(state[key], value) for key, value in like.items()})  # type: ignore[call-arg]
    if type(like) in (tuple, list) and isinstance(state, (tuple, list)) and len(state) == len(like):
        return type(like)(in_order(each, part) for each, part in zip(state, like, strict=True))
    return state


def _copy(model: nn.Module) -> nn.Module:
    """A copy on the CPU, in float32, in evaluation mode."""
    try:
        return copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{type(model).__name__} cannot be copied to the CPU in float32 ({reason})") from error


def _exportable(original: nn.Module) -> nn.Module:
    """A copy in which torch.nn's recurrent layers are prnn's, a cell its layer."""
    kind = _CELLS.get(type(original))
    if kind is None:
        return convert(copy.deepcopy(original), verbose=False)
    options = {"nonlinearity": original.nonlinearity} if isinstance(original, nn.RNNCell) else {}
    layer = kind(original.input_size, original.hidden_size, bias=original.bias, **options)  # type: ignore[arg-type]
    layer.load_state_dict({f"{name}_l0": value for name, value in original.state_dict().items()})
    return layer.eval().requires_grad_(False)


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
    if not isinstance(given, Tensor) or given.dim() < 2 or not given.numel() or given.is_meta or given.is_sparse:
        raise UserError(f"example must be an input, a dense tensor of frames and streams, got {_described(given)}")
    return given.detach().cpu().float() if given.is_floating_point() else given.detach().cpu()


def _state_names(state: Any, module: nn.Module) -> list[str]:
    """A different one for each tensor: keys and fields, joined by "_"; h of a single one, h and c of an LSTM's two."""
    if memories_of(module, state) is not None:
        return ["h", "memory"]
    of_lstm = [isinstance(each, nn.LSTM) for each in module.modules() if isinstance(each, nn.RNNBase)]
    names: list[str] = []
    for name in _names(state, "", all(of_lstm)):
        plain = re.sub(r"\W", "_", name)
        same = sum(re.fullmatch(rf"{plain}(_\d+)?", other) is not None for other in names)
        names.append(f"{plain}_{same + 1}" if same else plain)
    return names


def _names(state: Any, prefix: str, pairs: bool) -> Iterator[str]:
    """In the order in which pytree flattens it; ``pairs``: a tuple of two tensors is an LSTM's state."""
    if isinstance(state, Tensor):
        yield prefix or "h"
        return
    if isinstance(state, Mapping):
        parts = {str(key): value for key, value in state.items()}
    elif hasattr(state, "_fields"):
        parts = state._asdict()
    elif not isinstance(state, (tuple, list)):
        return  # no tensor
    elif pairs and len(state) == 2 and all(isinstance(each, Tensor) for each in state):
        parts = dict(zip(("h", "c"), state, strict=True))
    else:
        parts = {str(number): value for number, value in enumerate(state)}
    for part, value in parts.items():
        yield from _names(value, f"{prefix}_{part}" if prefix else part if part[:1].isalpha() else f"h_{part}", pairs)


def _changed(a: Tensor, b: Tensor) -> int | None:
    """The first dimension in which two shapes differ."""
    return next((dim for dim, (m, n) in enumerate(zip(a.shape, b.shape, strict=False)) if m != n), None)


def _without(tensor: Tensor, dim: int) -> tuple[int, ...]:
    """A shape without one of its dimensions."""
    return (*tensor.shape[:dim], *tensor.shape[dim + 1 :])


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
