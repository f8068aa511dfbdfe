"""A cell function's forward and backward pass as expressions.

The function runs once, on small tensors of shape ``SHAPE``, and torch.autograd differentiates it. Every ATen operator
that either pass runs arrives at ``Tracer``, which computes it and finds its expression by the rule of ``lowering``.
(Not ``torch.fx``'s ``make_fx``, whose import takes seconds.)

An expression belongs to a tensor's storage rather than to the tensor: what shares the storage is the same values in
the same places, since only views are let through that keep every element where it is; an in-place operator gives the
storage another expression.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from prnn.codegen.expressions import Expression, Graph, reachable
from prnn.codegen.gradients import differentiate
from prnn.codegen.hoist import Prologue, Recorder, Reference
from prnn.codegen.lowering import RULES
from prnn.codegen.signature import CellFunction, Signature, call, code_of, location, name_of, short_location
from prnn.errors import UserError

# Batch and hidden size of the run that is traced, different, so that a transposition is noticed; and of another run,
# whose equations are the same unless they depend on sizes.
SHAPE, OTHER_SHAPE = (3, 5), (4, 7)
_VIEWS = frozenset("alias detach view _unsafe_view _reshape_alias expand unsqueeze squeeze lift_fresh".split())  # noqa: SIM905
_CONSTANTS = {"zeros": 0.0, "ones": 1.0, "empty": float("nan"), "zero": 0.0, "_efficientzerotensor": 0.0}
_READS = frozenset(("_local_scalar_dense", "item", "is_nonzero", "equal"))
_INTERNAL = tuple(f"{Path(file).parent}/" for file in (torch.__file__, __file__))
_LOOP = 'or run the Python loop with native="never"'


@dataclass(frozen=True)
class Trace:
    """A cell's equations. Inputs are called "gates_x 0", "gates_h 0", "state v", "param beta", "input keep", "grad v".

    ``results``: in the order of ``signature.results``; the gradients of these are the inputs "grad NAME". ``grads``:
    by the name of the input, for all inputs but these. ``params``: the derived parameters, inputs whose values
    ``prologue`` computes. ``names``: of expressions, after the user's local variables.
    """

    graph: Graph
    signature: Signature
    results: tuple[Expression, ...]
    grads: Mapping[str, Expression]
    params: tuple[Expression, ...]
    names: Mapping[Expression, str]
    prologue: Prologue


class _Unsupported(Exception):
    """An operator without an expression, and the sentence about it."""


class Tracer(TorchDispatchMode):
    """Finds the expression of each tensor that is computed while this mode is on."""

    def __init__(self, function: CellFunction, shape: tuple[int, int]) -> None:
        super().__init__()
        self.shape = shape
        self.graph = Graph()
        self.backward = False
        self.unsupported: dict[Expression, str] = {}
        self._hoisting = False
        self._function = function
        # By storage, with a tensor that keeps it alive, so that no identity is used again.
        self._values: dict[int, tuple[Tensor, Expression]] = {}
        self._summed: set[int] = set()  # storages of sums over the batch

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # skipping it means to import it, which takes seconds

    def bind(self, tensor: Tensor, expression: Expression) -> Tensor:
        self._values[tensor.untyped_storage()._cdata] = tensor, expression
        return tensor

    def expression(self, tensor: Tensor) -> Expression | None:
        """The tensor's expression; None if it was not computed while tracing."""
        return self._values.get(tensor.untyped_storage()._cdata, (None, None))[1]

    def hoist(self, run: Callable[[], Any]) -> Any:
        """``run()``, a function of parameters alone: an unknown operator is an error only if its result is used."""
        self._hoisting = True
        try:
            return run()
        finally:
            self._hoisting = False

    def refuse(self, sentence: str) -> NoReturn:
        raise UserError(f"{self.where()}: {sentence}")

    def where(self) -> str:
        """``file:line`` of the user's code that runs; that of the cell function where autograd runs alone."""
        frame = sys._getframe(1)
        while frame is not None and frame.f_code is not _trace.__code__:
            if not frame.f_code.co_filename.startswith(_INTERNAL):
                return short_location(frame.f_code.co_filename, frame.f_lineno)
            frame = frame.f_back  # type: ignore[assignment]
        return f"{location(self._function)}: in the derivative of {name_of(self._function)}"

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.rpartition("::")[2]
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.refuse(f"{name} draws random numbers, which a kernel does not: give the noise as a per-step input")
        if name in _READS:
            self.refuse(f"{name} reads a tensor's values, which differ at run time: use torch.where")
        if name == "lift_fresh":
            return self._literal(func(*args, **kwargs))
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor) and self.expression(tensor) is None:
                self._refuse_foreign(tensor)
        out = func(*args, **kwargs)
        try:
            self._record(name, func, args, kwargs, out)
        except _Unsupported as unsupported:
            if not self._hoisting:
                raise UserError(f"{self.where()}: {unsupported}") from None
            for tensor in tree_leaves(out):
                if isinstance(tensor, Tensor):
                    unknown = self.graph.input(f"unsupported {len(self.unsupported)}")
                    self.unsupported[unknown] = f"{self.where()}: {unsupported}"
                    self.bind(tensor, unknown)
        return out

    def _literal(self, tensor: Tensor) -> Tensor:
        """A tensor that the function made from numbers."""
        number = _one_number(tensor)
        if number is None:
            self.refuse(f"a tensor of {tensor.numel()} numbers differs between units: make it a parameter")
        return self.bind(tensor, self.graph.constant(number))

    def _refuse_foreign(self, tensor: Tensor) -> NoReturn:
        self.refuse(
            f"a tensor of shape {list(tensor.shape)} comes from outside the cell function: make it a parameter, a "
            "per-step input or a Python number"
        )

    def _record(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(out)):
            return  # sizes and the like
        self._follow_sums(name, (args, kwargs), out)
        if name in _VIEWS:
            self._check(name, out, self._known(out))
            return
        in_place = name.endswith("_") and not name.endswith("__")
        outs = (args[0],) if in_place else _tuple(out)
        if (numbers := self._of_constants((args, kwargs), outs)) is not None:
            for tensor, number in zip(outs, numbers, strict=True):
                self.bind(tensor, self.graph.mask(number) if tensor.dtype == torch.bool else number)
            return
        for tensor, lowered in zip(outs, _tuple(self._lower(name, func, args, kwargs)), strict=True):
            expression = self.graph.mask(lowered) if tensor.dtype == torch.bool else self.graph.value(lowered)
            if expression.op == "const" and not (tensor.dtype.is_floating_point or expression.is_zero):
                rounded = _one_number(tensor)  # of full_like(x, 2.7, dtype=torch.int32), 2
                expression = expression if rounded is None else self.graph.constant(rounded)
            self._check(name, tensor, expression)
            self.bind(tensor, expression)

    def _of_constants(self, operands: Any, outs: Sequence[Tensor]) -> list[Expression] | None:
        """The results of an operator whose tensors are all constants, as torch computed them; None of another one."""
        known = [self.expression(leaf) for leaf in tree_leaves(operands) if isinstance(leaf, Tensor)]
        if not known or any(each is None or each.op != "const" or each.is_zero for each in known):
            return None
        numbers = [_one_number(tensor) for tensor in outs]
        return None if None in numbers else [self.graph.constant(number) for number in numbers if number is not None]

    def _follow_sums(self, name: str, operands: Any, out: Any) -> None:
        """Refuses what brings a sum over the batch, a parameter's gradient, back to each sample."""
        if not self.backward:
            return
        tensors = [leaf for leaf in tree_leaves(operands) if isinstance(leaf, Tensor)]
        if name == "sum" or any(tensor.untyped_storage()._cdata in self._summed for tensor in tensors):
            for tensor in (leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)):
                if tuple(size for size in tensor.shape if size != 1) == self.shape:
                    raise _Unsupported(f"sum works across samples, and a cell is computed unit by unit: {_ELSE}")
                self._summed.add(tensor.untyped_storage()._cdata)

    def _lower(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The expression, or several, of an operator's result."""
        base = name.rstrip("_") if not name.startswith("__") else name
        factory = base.removeprefix("new_").removesuffix("_like").removesuffix("_permuted").removesuffix("_strided")
        if factory in _CONSTANTS:
            number = _CONSTANTS[factory]
            return self.graph.zero if self.backward and number == 0 else self.graph.constant(number)
        if factory in ("full", "fill"):
            return self._known(args[-1]) if isinstance(args[-1], Tensor) else self.graph.constant(args[-1])
        if base == "scalar_tensor":
            return self.graph.constant(args[0])
        if base in ("clone", "_to_copy", "to"):
            return self._known(args[0])
        if base == "sum" and self.backward:
            return self._known(args[0])  # of a parameter's gradient over the batch, which the engine does
        if base == "copy":
            return self._known(args[1])
        if base == "index_put" and not (len(args) > 3 and args[3]):
            return self._masked_assignment(*args[:3])
        if base not in RULES:
            if torch.Tag.pointwise in func.tags:
                raise _Unsupported(f"a kernel cannot compute {base}: use other functions, {_LOOP}")
            raise _Unsupported(f"a kernel, which computes each unit of each sample by itself, has no {base}: {_ELSE}")
        operands, options = tree_map_only(Tensor, self._known, (args, kwargs))
        try:
            return RULES[base](*operands, **options)
        except TypeError:
            raise _Unsupported(f"a kernel cannot compute this form of {base}: use other functions, {_LOOP}") from None

    def _known(self, tensor: Tensor) -> Expression:
        expression = self.expression(tensor)
        assert expression is not None
        return expression

    def _masked_assignment(self, target: Tensor, indices: Sequence[Tensor | None], source: Tensor) -> Expression:
        """target[mask] = number."""
        if len(indices) != 1 or indices[0] is None or indices[0].dtype != torch.bool or source.numel() != 1:
            raise _Unsupported(f"an indexed assignment works across units or samples: use torch.where, {_LOOP}")
        return self.graph.make("where", self._known(indices[0]), self._known(source), self._known(target))

    def _check(self, name: str, tensor: Tensor, expression: Expression) -> None:
        """Refuses what is not one float32 or boolean for each unit, of each sample or of all (what parameters make);
        numbers are let through.
        """
        if expression.op == "const":
            return
        if tuple(size for size in tensor.shape if size != 1) not in (self.shape, self.shape[1:]):
            raise _Unsupported(f"{name} works across units or samples, and a cell is computed unit by unit: {_ELSE}")
        if tensor.dtype not in (torch.float32, torch.bool):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise _Unsupported(
                f"{name} gives {kind} numbers, and a kernel computes in float32: write numbers as 1.0 and leave out "
                f"conversions, {_LOOP}"
            )


_ELSE = f"compute it outside the cell, {_LOOP}"


def trace(function: CellFunction, signature: Signature, shape: tuple[int, int] = SHAPE) -> Trace:
    """The equations of ``function``; UserError, in one sentence with the line, for what a kernel cannot compute."""
    with _TRACING:
        return _trace_apart(function, signature, shape)


_TRACING = threading.Lock()  # anomaly detection is switched off for all threads


def _trace_apart(function: CellFunction, signature: Signature, shape: tuple[int, int]) -> Trace:
    results: list[Trace | BaseException] = []

    def run() -> None:
        try:
            with torch.autograd.set_detect_anomaly(False):  # not of one thread, as the caller's other modes are
                results.append(_trace(function, signature, shape))
        except BaseException as error:
            results.append(error)

    # A thread of its own, where none of the caller's modes is on: inference, autocast, a device, torch.func, profilers.
    thread = threading.Thread(target=run, name="prnn-trace")
    thread.start()
    thread.join()
    (result,) = results
    if isinstance(result, UserError):
        raise UserError(str(result)) from None  # without the frames of torch
    if isinstance(result, Exception) and (place := _place(function, result)) is not None:
        text = (str(result).splitlines() or [""])[0]
        raise UserError(
            f"{place}: the cell {name_of(function)} fails when it is called with tensors [B,H] of {list(shape)}: "
            f"{type(result).__name__}: {text}"
        ) from result
    if isinstance(result, BaseException):
        raise result
    return result


def _place(function: CellFunction, error: Exception) -> str | None:
    """``file:line`` of the cell's code that failed, where others' code that it calls did; None where prnn's did."""
    frames = traceback.extract_tb(error.__traceback__)
    if any(frame.name == Tracer._record.__name__ for frame in frames):
        return None
    code = code_of(function)
    own = [frame for frame in frames if code is not None and frame.filename == code.co_filename]
    return short_location(own[-1].filename, own[-1].lineno or 0) if own else None


def _trace(function: CellFunction, signature: Signature, shape: tuple[int, int]) -> Trace:
    tracer = Tracer(function, shape)

    def tensor(name: str) -> Tensor:
        size = shape[1:] if name.startswith("param ") else shape
        return tracer.bind(torch.full(size, 0.5, dtype=torch.float32), tracer.graph.input(name))

    def group(kind: str, names: Sequence[str | int]) -> list[Tensor]:
        return [tensor(f"{kind} {name}").requires_grad_() for name in names]

    gates_x, gates_h = (group(kind, range(signature.gates)) for kind in ("gates_x", "gates_h"))
    states, params, inputs = (
        group(kind, names)
        for kind, names in (("state", signature.states), ("param", signature.params), ("input", signature.inputs))
    )
    arguments = [*gates_x, *gates_h, *states, *inputs]

    def make_leaf(value: Tensor) -> Tensor:
        if value.numel() not in (1, shape[1]) or value.shape[-1:].numel() != value.numel():
            tracer.refuse(
                f"an expression of parameters has shape {list(value.shape)}: expected one number for each unit"
            )
        if not value.dtype.is_floating_point:
            tracer.refuse(f"an expression of parameters has type {value.dtype}: expected floating-point numbers")
        with torch.enable_grad():
            name = recorder.describe(recorder.reference(value))
            return tensor(f"param {_unique(name, taken)}").requires_grad_()

    taken = set(signature.params)
    named = dict(zip(signature.params, params, strict=True))
    recorder = Recorder(named, arguments, make_leaf, tracer.hoist, tracer.refuse)
    with tracer, recorder, _local_variables(function) as variables:
        returned = call(
            function, signature, gates_x, gates_h, states, named, dict(zip(signature.inputs, inputs, strict=True))
        )
    results = tuple(_result(tracer, value) for value in returned)
    tangents = [tensor(f"grad {name}") for name in signature.results]
    leaves = [*arguments, *params, *recorder.leaves.values()]
    with recorder:
        grads = _gradients(tracer, returned, tangents, leaves)

    used = reachable([*results, *grads.values()])
    for expression in used & tracer.unsupported.keys():
        raise UserError(tracer.unsupported[expression])
    references = [*(Reference(param=name) for name in signature.params), *recorder.leaves]
    candidates = zip(references, (*params, *recorder.leaves.values()), strict=True)
    derived = {
        reference: expression
        for reference, expression in ((reference, _result(tracer, leaf)) for reference, leaf in candidates)
        if expression in used or not grads[str(expression.value)].is_zero
    }
    prologue = recorder.prologue(
        {reference: str(leaf.value).removeprefix("param ") for reference, leaf in derived.items()}
    )
    names = _names(tracer, recorder, variables, signature, results)
    return Trace(tracer.graph, signature, results, grads, tuple(derived.values()), names, prologue)


def _gradients(
    tracer: Tracer, returned: Sequence[Tensor], tangents: Sequence[Tensor], leaves: Sequence[Tensor]
) -> dict[str, Expression]:
    """The gradient of each of ``leaves``, by its name."""
    pairs = [pair for pair in zip(returned, tangents, strict=True) if pair[0].requires_grad]
    grads: Sequence[Tensor | None] = [None] * len(leaves)
    names = [str(_result(tracer, leaf).value) for leaf in leaves]
    tracer.backward = True
    if pairs:
        try:
            with tracer:
                outputs, grad_outputs = zip(*pairs, strict=True)
                grads = differentiate(outputs, grad_outputs, leaves)
        except RuntimeError as error:
            reason = str(error).splitlines()[0].partition(": [")[0].rstrip(".")  # without the tensor's version
            tracer.refuse(f"torch cannot differentiate it ({reason})")
    zero = tracer.graph.zero
    return {name: zero if grad is None else _result(tracer, grad) for name, grad in zip(names, grads, strict=True)}


def _result(tracer: Tracer, tensor: Tensor) -> Expression:
    expression = tracer.expression(tensor)
    if expression is None:
        tracer._refuse_foreign(tensor)
    return expression


def _names(
    tracer: Tracer,
    recorder: Recorder,
    variables: Mapping[str, object],
    signature: Signature,
    results: Sequence[Expression],
) -> dict[Expression, str]:
    """The user's names: the new states first, then the local variables."""
    names: dict[Expression, str] = {}
    for name, result in zip(signature.results, results, strict=True):
        names.setdefault(result, name)
    for name, value in variables.items():
        expression = tracer.expression(recorder.stand_in(value)) if isinstance(value, Tensor) else None
        if expression is not None and expression.op != "const":
            names.setdefault(expression, name)
    return names


@contextmanager
def _local_variables(function: CellFunction) -> Iterator[dict[str, object]]:
    """The function's local variables when it returned."""
    code, found = code_of(function), {}

    def at_return(frame: Any, event: str, argument: object) -> None:
        if event == "return" and frame.f_code is code:
            found.update(frame.f_locals)

    before = sys.getprofile()  # one of all threads: the names only make the C++ readable
    if before is not None:
        yield found
        return
    sys.setprofile(at_return)
    try:
        yield found
    finally:
        sys.setprofile(None)


def _unique(name: str, taken: set[str]) -> str:
    """The name, numbered if it is taken."""
    number, unique = 1, name
    while unique in taken:
        number, unique = number + 1, f"{name}_{number + 1}"
    taken.add(unique)
    return unique


def _one_number(tensor: Tensor) -> float | None:
    """The number that all elements of a tensor are; None where they differ, or are complex."""
    with torch._C.DisableTorchFunction():  # what the recorder refuses to the user
        values = tensor.detach().flatten()
        if tensor.is_complex() or not values.numel():
            return None
        return float(values[0]) if (values == values[0]).all() or values.isnan().all() else None


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)
