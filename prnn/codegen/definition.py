"""``prnn.cell``: a recurrent cell written in Python, with the names of its states, parameters and inputs.

Shapes: B batch, H hidden size, G gates, N parameters, M per-step inputs.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pickle
import re
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from prnn import native
from prnn.cell_table import Cell, SavedSizes, register, unused_name
from prnn.codegen import CellFunction, Emitted, Prologue, Signature, build, call, generate, gpu
from prnn.codegen.hoist import Reference
from prnn.codegen.signature import location, name_of
from prnn.errors import UserError

if TYPE_CHECKING:
    from prnn.cell_table import Step
    from prnn.check import Report

_ARGUMENTS = ("gx", "gh", "state", "p", "inputs")
Value = float | Tensor | Callable[[Tensor], Any]


class Initial(NamedTuple):
    """A parameter's initial ``value``: a number, a tensor [H], or a function that fills the tensor it is given, such as
    those of ``torch.nn.init``, or returns a value. ``shared``: one value for all units.
    """

    value: Value
    shared: bool = False
    requires_grad: bool = True


def scalar(value: Value, requires_grad: bool = True) -> Initial:
    """A parameter of one value, shared by all units of a layer.

    Example::

        @prnn.cell(gates=1, params={"decay": prnn.scalar(0.9), "gain": 1.0})
    """
    return Initial(value, True, requires_grad)


def per_unit(value: Value, requires_grad: bool = True) -> Initial:
    """A parameter of one value for each unit, as a plain number is; ``requires_grad=False`` keeps it from training."""
    return Initial(value, False, requires_grad)


_compiling = threading.RLock()  # one cell at a time, and once
_NEVER = 'native="never" was given'


@dataclass(frozen=True)
class UserCell(Cell):
    """A cell written in Python as the layer operator takes it. Its kernels are compiled when they are first asked for.

    ``states`` contain, last, an output that is none of the function's states.
    """

    function: CellFunction = field(kw_only=True)
    signature: Signature = field(kw_only=True)
    native: bool = field(kw_only=True)
    _kernels: dict[torch.dtype, int | str] = field(default_factory=dict, kw_only=True, compare=False, repr=False)
    _not_compiled: dict[Any, str] = field(default_factory=dict, kw_only=True, compare=False, repr=False)

    def step(
        self,
        gates_x: Tensor,
        gates_h: Tensor,
        h_prev: Tensor,
        states: tuple[Tensor, ...],
        params: Tensor | None,
        inputs: Tensor | None,
    ) -> Step:
        H, signature = h_prev.shape[-1], self.signature
        own = states[: len(signature.states) - 1]
        values = () if params is None else params.unbind(0)
        at_step = () if inputs is None else inputs.split(H, dim=-1)
        results = call(
            self.function,
            signature,
            gates_x.split(H, dim=-1),
            gates_h.split(H, dim=-1),
            (h_prev, *own),
            dict(zip(signature.params, values, strict=True)),
            dict(zip(signature.inputs, at_step, strict=True)),
        )
        return results[0], results[1:], results[signature.results.index(signature.output)], ()

    @functools.cached_property
    def generated(self) -> tuple[Emitted, Prologue]:
        """The struct, the same for every dtype, and what computes its parameters; UserError for what is refused."""
        return generate(self.function, self.signature, struct_name(self.function))

    def refused(self, dtype: torch.dtype) -> str | None:
        kernel = self._kernel(dtype)
        return kernel if isinstance(kernel, str) else None

    def native_number(self, dtype: torch.dtype) -> int | None:
        kernel = self._kernel(dtype)
        if isinstance(kernel, str):
            raise UserError(f"the cell {name_of(self.function)} has no kernel for {dtype}: {kernel}")
        return kernel

    def cuda_number(self, device: int) -> int | None:
        if (refusal := _refused_by_compiler(device)) is not None:  # without which there is no plan
            raise UserError(refusal)
        return self._cuda_number

    def compile_for_gpu(self, key: tuple[int, bool, int], dtype: torch.dtype, device: int) -> None:
        kernel = dtype, *key, device
        with _compiling:
            if kernel not in self._not_compiled:
                try:
                    return gpu.load(self._cuda_number, self._cuda_source, dtype, gpu.KernelKey(*key), device)
                except build.CannotCompile as error:
                    self._not_compiled[kernel] = _not_compiled(error)
                    build.warn(f"the cell {name_of(self.function)} runs as a Python loop: {self._not_compiled[kernel]}")
            raise UserError(self._not_compiled[kernel])

    def refused_on_gpu(self, dtype: torch.dtype, device: int) -> str | None:
        if not self.native:
            return _NEVER
        if torch.version.cuda is None:
            return "cells written in Python have kernels for CUDA alone"
        _ = self._cuda_source  # UserError for what a kernel cannot compute
        return _refused_by_compiler(device)

    @functools.cached_property
    def _cuda_number(self) -> int:
        with _compiling:
            return self._cuda_source.define()

    @functools.cached_property
    def _cuda_source(self) -> gpu.Source:
        return gpu.Source(self.generated[0], struct_name(self.function), _in_source(self.function))

    def name_in_graph(self, dtype: torch.dtype) -> str:
        emitted, prologue = self.generated
        name = f"{self.name}@{emitted.digest}-{prologue.digest}"
        register(self, name)
        return name

    def saved_sizes(self, dtype: torch.dtype) -> SavedSizes:
        emitted = self.generated[0]
        return SavedSizes(emitted.saved, torch.float32, emitted.output >= 0)

    def derived(self, params: Tensor) -> Tensor | None:
        prologue, names, H = self.generated[1], self.signature.params, params.shape[1]
        if prologue.derived == tuple(Reference(param=name) for name in names):  # the parameters themselves
            return params.float()
        found = prologue.evaluate(dict(zip(names, params.unbind(0), strict=True)))
        values = [value if value.shape == (H,) else value.reshape(-1).expand(H) for value in found]
        return torch.stack(values).float() if values else None

    def _kernel(self, dtype: torch.dtype) -> int | str:
        """The number of the CPU kernel in the native library, or why there is none."""
        if dtype not in self._kernels:
            with _compiling:
                if dtype not in self._kernels:
                    self._kernels[dtype] = self._build(dtype)
        return self._kernels[dtype]

    def _build(self, dtype: torch.dtype) -> int | str:
        if not self.native:
            return _NEVER
        loaded, reason = native.status()
        if not loaded:
            return f"native library: {reason}"
        if dtype not in (torch.float32, torch.bfloat16):
            return f"the native kernels take float32 and bfloat16, not {str(dtype).removeprefix('torch.')}"
        struct = struct_name(self.function)
        text = build.source(self.generated[0], struct, _in_source(self.function), dtype)
        try:
            file = build.compiled(text, struct)
            return native.load_cell(file)
        except (build.CannotCompile, RuntimeError, OSError) as error:
            build.warn(f"the cell {name_of(self.function)} runs as a Python loop: {_not_compiled(error)}")
            return _not_compiled(error)


def _not_compiled(error: Exception) -> str:
    return f"it was not compiled: {getattr(error, 'strerror', None) or error}"


def _refused_by_compiler(device: int) -> str | None:
    """Why nothing can be compiled for a GPU; None where it can."""
    try:
        gpu.architecture(device)
    except build.CannotCompile as error:
        return _not_compiled(error)
    return None


def struct_name(function: Callable[..., Any]) -> str:
    """The function's name as that of a C++ struct."""
    words = re.sub(r"\W", "", name_of(function), flags=re.ASCII).split("_")
    return "Cell" + "".join(word[:1].upper() + word[1:] for word in words)


def _in_source(function: Callable[..., Any]) -> str:
    """The function's name for a comment and a string of C++."""
    return "".join(c if c.isprintable() and c not in '"\\' else "_" for c in name_of(function))


class CellDefinition:
    """What ``prnn.cell`` makes of a function; ``prnn.Recurrent`` makes layers of it. Still callable as the function."""

    def __init__(
        self, function: CellFunction, signature: Signature, params: Mapping[str, Initial], native: str = "auto"
    ) -> None:
        if native not in ("auto", "never"):
            raise UserError(f'a cell has native={native!r}: expected "auto" or "never"')
        self.function, self.signature, self.params, self.native = function, signature, dict(params), native
        self.__name__ = self.__qualname__ = name_of(function)
        self.__doc__, self.__module__ = function.__doc__, function.__module__
        self.__wrapped__ = function
        self.cell = _registered(function, signature, native == "auto")
        self._other: CellDefinition | None = None  # with the other value of ``native``

    def __call__(self, gx: Any, gh: Any, state: Any, p: Any, inputs: Any) -> Mapping[str, Tensor]:
        return self.function(gx, gh, state, p, inputs)

    def __repr__(self) -> str:
        return f"<cell {self.__name__}: {self.signature}>"

    @property
    def source(self) -> str:
        """The C++ that it becomes on this machine, for float32. UserError where it cannot be compiled, and why."""
        return build.source(
            self.cell.generated[0], struct_name(self.function), _in_source(self.function), torch.float32
        )

    def check(self, **options: Any) -> Report:
        """The conformance suite for layers of this cell: ``prnn.check``, which explains the options."""
        return importlib.import_module("prnn.check").check(self, **options)

    def with_native(self, native: str) -> CellDefinition:
        """The same cell with or without kernels."""
        if native == self.native:
            return self
        if self._other is None:
            self._other = CellDefinition(self.function, self.signature, self.params, native)
        return self._other

    def __deepcopy__(self, memo: Any) -> CellDefinition:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """By reference: the module and the name under which it stands there."""
        module, name = self.function.__module__, getattr(self.function, "__qualname__", "")
        found: Any = sys.modules.get(module)
        for part in name.split("."):
            found = getattr(found, part, None)
        if not isinstance(found, CellDefinition) or found.function is not self.function:
            raise pickle.PicklingError(
                f"the cell {name} ({location(self.function)}) cannot be pickled: expected it as {name} in {module}"
            )
        return _referenced, (module, name, self.native)


def _referenced(module: str, name: str, native: str) -> CellDefinition:
    __import__(module)
    found: Any = sys.modules[module]
    for part in name.split("."):
        found = getattr(found, part)
    return found.with_native(native)


def _registered(function: CellFunction, signature: Signature, native: bool) -> UserCell:
    cell = UserCell(
        unused_name(name_of(function)),
        signature.gates,
        signature.results,
        0,
        True,
        _no_forward,
        None,
        params=signature.params,
        inputs=signature.inputs,
        function=function,
        signature=signature,
        native=native,
    )
    register(cell)
    return cell


def _no_forward(*_: Any) -> Any:
    raise NotImplementedError("a cell written in Python is computed by its step()")


def cell(
    gates: int,
    states: Sequence[str] = ("h",),
    params: Mapping[str, Value | Initial] | None = None,
    inputs: Sequence[str] = (),
    output: str = "h",
    recurrent: str = "dense",
    native: str = "auto",
) -> Callable[[CellFunction], CellDefinition]:
    """Make a recurrent cell of a function of one time step, for ``prnn.Recurrent``.

    The function is called ``function(gx, gh, state, p, inputs)`` and returns the new states in a dictionary. It
    computes unit by unit: every tensor has one value for each sample and unit, [B,H].

    - gx, gh: tuples of G tensors, the input's and the recurrent share of each gate, biases included;
    - state, p, inputs: the previous states, the parameters [H] and the inputs of this step, by attribute.

    Args:
        gates: G, the rows of blocks of the weights.
        states: names; the first is "h", which meets ``weight_hh`` at the next step.
        params: learnable values for each unit: an initial number, tensor [H] or function that fills a tensor;
            ``prnn.scalar(...)`` for one value of all units.
        inputs: names of values that the layer is given for each step, sample and unit, such as noise or masks.
        output: what the layer returns at each step: a state, or one more key of the dictionary.
        recurrent: "dense" for a weight_hh [G*H,H]; "diagonal" where each unit meets its own h alone, weight_hh [G*H];
            "none" for no recurrent weight, gh zero.
        native: "auto" compiles the function to kernels, for the CPU or the GPU, at the first use, and refuses in one
            sentence what cannot be compiled; "never" runs it as a Python loop.

    Raises UserError for names and values that do not fit.

    Example::

        @prnn.cell(gates=1, states=("h", "v"), params={"beta": 0.9, "threshold": 1.0})
        def lif(gx, gh, state, p, inputs):
            v = p.beta.clamp(0, 1) * state.v + gx[0] + gh[0] - state.h * p.threshold
            return {"h": prnn.spike(v - p.threshold, slope=25.0), "v": v}

        layer = prnn.Recurrent(lif, input_size=64, hidden_size=128)
    """
    if callable(gates):
        raise UserError("prnn.cell takes the number of gates: write @prnn.cell(gates=1)")
    if params is not None and not isinstance(params, Mapping):
        raise UserError(f"params is {params!r}: expected a dictionary of names and initial values")
    initial = {name: value if isinstance(value, Initial) else per_unit(value) for name, value in (params or {}).items()}
    for name, (value, _, _) in initial.items():
        if not isinstance(value, (Real, Tensor)) and not callable(value):
            raise UserError(f"params[{name!r}] is {value!r}: expected a number, a tensor or a function that fills one")
    for what, names in (("states", states), ("inputs", inputs)):
        if isinstance(names, str):
            raise UserError(f"{what} is the text {names!r}: expected a tuple of names, such as ({names!r},)")
        if not isinstance(names, Iterable):
            raise UserError(f"{what} is {names!r}: expected a tuple of names")
    signature = Signature(gates, tuple(states), tuple(initial), tuple(inputs), output, recurrent)

    def define(function: CellFunction) -> CellDefinition:
        if not callable(function) or isinstance(function, type):
            raise UserError(f"prnn.cell got {function!r}: expected a function")
        try:
            inspect.signature(function).bind(*_ARGUMENTS)
        except (TypeError, ValueError) as error:
            called = f"{name_of(function)}({', '.join(_ARGUMENTS)})"
            raise UserError(f"{location(function)}: a cell is called as {called}: {error}") from None
        return CellDefinition(function, signature, initial, native)

    return define
