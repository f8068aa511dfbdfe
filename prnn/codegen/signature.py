"""What a cell function takes and returns, and the validation of what it returned.

Shapes: B batch, H hidden size, G gates.
"""

from __future__ import annotations

import functools
import inspect
import keyword
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

from torch import Tensor

from prnn.errors import UserError

# (gx: G of [B,H], gh: G of [B,H], state, p, inputs: read by attribute) -> {name: [B,H]}
CellFunction = Callable[[tuple[Tensor, ...], tuple[Tensor, ...], "Named", "Named", "Named"], Mapping[str, Tensor]]


RECURRENT = ("dense", "diagonal", "none")


class Named:
    """Read-only values by attribute; an unknown name is an AttributeError that lists the names there are."""

    __slots__ = ("_kind", "_values")
    _kind: str
    _values: dict[str, Tensor]

    def __init__(self, kind: str, values: Mapping[str, Tensor]) -> None:
        object.__setattr__(self, "_kind", kind)
        object.__setattr__(self, "_values", dict(values))

    def __getattr__(self, name: str) -> Tensor:
        if name in Named.__slots__:  # of an object that is not initialised yet, as torch.compile and copy make them
            raise AttributeError(name)
        try:
            return self._values[name]
        except KeyError:
            known = f", only {', '.join(self._values)}" if self._values else ""
            raise AttributeError(f"the cell has no {self._kind} {name!r}{known}") from None

    def __getitem__(self, name: object) -> Tensor:
        raise TypeError(f"a cell's {self._kind} is read as an attribute, by its name, got [{name!r}]")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a cell's {self._kind} {name!r} can only be read: return the new values in the dict")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __repr__(self) -> str:
        return f"{self._kind}: {', '.join(self._values)}"


@dataclass(frozen=True)
class Signature:
    """The names and numbers of a cell.

    ``gates`` is G. ``states`` are the names of the state tensors, the first of which is h, what meets ``weight_hh``;
    ``params`` those of the learnable values for each unit, ``inputs`` those of the values for each step, sample and
    unit. ``output`` is what the layer returns: a state, or one more key of the function's result. ``recurrent``: which
    units' h meet a unit's gates: "dense" all, "diagonal" its own, "none" none, so that gh is zero.
    """

    gates: int
    states: tuple[str, ...] = ("h",)
    params: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    output: str = "h"
    recurrent: str = "dense"

    def __post_init__(self) -> None:
        if not isinstance(self.gates, int) or isinstance(self.gates, bool) or self.gates < 1:
            raise UserError(f"a cell has gates={self.gates!r}: expected a whole number, at least 1")
        if self.states[:1] != ("h",):
            raise UserError(f"a cell has states={self.states}: expected 'h', the layer's hidden state, first")
        for field, names in (("states", self.states), ("params", self.params), ("inputs", self.inputs)):
            if len(set(names)) != len(names) or not all(map(_can_be_attribute, names)):
                raise UserError(f"a cell has {field}={names}: expected different names that can be attributes")
        if self.recurrent not in RECURRENT:
            raise UserError(f"a cell has recurrent={self.recurrent!r}: expected one of {', '.join(RECURRENT)}")
        if not (isinstance(self.output, str) and self.output.isidentifier()):
            raise UserError(f"a cell has output={self.output!r}: expected the name of a state or of another result")

    @property
    def pseudo_state(self) -> str | None:
        """The output, if it is not a state: forward() writes it like one, and never reads it."""
        return None if self.output in self.states else self.output

    @property
    def results(self) -> tuple[str, ...]:
        """The keys of the function's result: the states, then the output if it is not one of them."""
        return self.states if self.pseudo_state is None else (*self.states, self.output)


def call(
    function: CellFunction,
    signature: Signature,
    gates_x: Sequence[Tensor],
    gates_h: Sequence[Tensor],
    states: Sequence[Tensor],
    params: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor],
) -> tuple[Tensor, ...]:
    """The function's results in the order of ``signature.results``, each [B,H] as ``gates_x[0]``; UserError if not."""
    arguments = (
        tuple(gates_x),
        tuple(gates_h),
        Named("state", dict(zip(signature.states, states, strict=True))),
        Named("parameter", params),
        Named("per-step input", inputs),
    )
    try:
        returned = function(*arguments)
    except IndexError as error:
        where = f"{location(function)}: the cell {name_of(function)} with gates={signature.gates}"
        raise UserError(f"{where} takes an index of gx, gh or another tuple that is not there: {error}") from error
    return validate(function, signature, returned, tuple(gates_x[0].shape))


def validate(
    function: CellFunction, signature: Signature, returned: object, shape: tuple[int, ...]
) -> tuple[Tensor, ...]:
    """``returned`` in the order of ``signature.results``; UserError where it is not what a cell returns."""
    expected, where = signature.results, f"{location(function)}: the cell {name_of(function)}"
    if not isinstance(returned, Mapping):
        raise UserError(f"{where} returned a {type(returned).__name__}: expected a dict with {', '.join(expected)}")
    if missing := [name for name in expected if name not in returned]:
        raise UserError(f"{where} returned no {missing[0]!r}: expected a dict with {', '.join(expected)}")
    if unknown := [name for name in returned if name not in expected]:
        raise UserError(f"{where} returned an unknown {unknown[0]!r}: expected a dict with {', '.join(expected)}")
    for name in expected:
        value = returned[name]
        if not isinstance(value, Tensor):
            raise UserError(f"{where} returned a {type(value).__name__} as {name!r}: expected a tensor [B,H]")
        if tuple(value.shape) != shape:
            raise UserError(
                f"{where} returned {name!r} of shape {list(value.shape)}: expected [B,H], here {list(shape)}"
            )
        if not value.dtype.is_floating_point:
            raise UserError(f"{where} returned {name!r} of type {value.dtype}: expected floating-point numbers")
    return tuple(returned[name] for name in expected)


def _can_be_attribute(name: object) -> bool:
    return isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name) and not name.startswith("_")


def name_of(function: Callable[..., Any]) -> str:
    """The function's name, or that of its class."""
    function = _unwrapped(function)
    return getattr(function, "__name__", type(function).__name__)


def code_of(function: Callable[..., Any]) -> CodeType | None:
    """The code that runs: that of the function itself, of what it wraps, or of its class's __call__."""
    function = _unwrapped(function)
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    return code if isinstance(code, CodeType) else None


def location(function: Callable[..., Any]) -> str:
    """``file:line`` of the function's definition."""
    code = code_of(function)
    return name_of(function) if code is None else short_location(code.co_filename, code.co_firstlineno)


def short_location(file: str, line: int) -> str:
    """``file:line``, relative to the working directory where that is shorter."""
    path = Path(file)
    return f"{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}:{line}"


def _unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    function = inspect.unwrap(function)
    while isinstance(function, functools.partial):
        function = inspect.unwrap(function.func)
    return function
