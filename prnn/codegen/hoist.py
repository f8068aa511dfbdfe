"""Expressions of parameters alone, which are computed once in torch rather than at each step.

``Recorder`` watches a cell function run. A torch function whose tensors are all made of parameters is recorded; where
its result meets the rest, or is returned, a *derived parameter* takes its place in the trace. ``Prologue`` repeats the
recorded functions on actual parameters, as the user wrote them, so that autograd differentiates them as the user would
expect (a clamp's own gradient, ``detach``).

Inside ``torch.no_grad()``, and in a ``torch.autograd.Function``, which runs with gradients off, nothing is recorded:
the parameter itself is what the kernel reads, and the operations on it are traced like all others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

_BRANCHES = {
    "__bool__": "an `if` or `while`",
    "is_nonzero": "an `if` or `while`",
    "__contains__": "an `in`",
    "equal": "torch.equal",
    "allclose": "torch.allclose",
}
_CONVERSIONS = {
    "__float__": "float()",
    "__int__": "int()",
    "__index__": "an index",
    "__complex__": "complex()",
    "item": "item()",
    "tolist": "tolist()",
    "numpy": "numpy()",
    "__array__": "numpy",
}
_READS = {name: (what, "torch.where") for name, what in _BRANCHES.items()}
_READS |= {name: (what, "a tensor, torch.tanh and not math.tanh") for name, what in _CONVERSIONS.items()}


@dataclass(frozen=True)
class Reference:
    """A value of a prologue: tensor number ``position`` among the results of call number ``call``, or a parameter."""

    call: int = -1
    position: int = 0
    param: str = ""


@dataclass(frozen=True)
class Call:
    """One torch function; a ``Reference`` in ``args`` and ``kwargs`` stands for the tensor that it names."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @cached_property
    def is_flat(self) -> bool:
        """Whether no reference stands within a list or the like."""
        return not any(isinstance(value, (list, tuple, dict)) for value in (*self.args, *self.kwargs.values()))

    def references(self) -> list[Reference]:
        return [leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Reference)]


@dataclass(frozen=True)
class Prologue:
    """The derived parameters ``derived``, called ``names``, and the calls that compute them."""

    names: tuple[str, ...]
    derived: tuple[Reference, ...]
    calls: Mapping[int, Call]

    @cached_property
    def digest(self) -> str:
        """A hash of the calls, the same in every process."""
        calls = [(getattr(call.function, "__name__", ""), call.args, dict(call.kwargs)) for call in self.calls.values()]
        return hashlib.sha256(repr((self.derived, calls)).encode()).hexdigest()[:8]

    def evaluate(self, params: Mapping[str, Tensor]) -> list[Tensor]:
        """The derived parameters from the parameters, each [H] or [1]; of shapes that can be broadcast to [H].

        Differentiable, and in the parameters' type. The cell function does not run.
        """
        results: dict[int, list[Tensor]] = {}

        def value(given: Any) -> Any:
            if not isinstance(given, Reference):
                return given
            return params[given.param] if given.param else results[given.call][given.position]

        for index, call in self.calls.items():
            if call.is_flat:  # the usual case, at a tenth of the time of tree_map
                args, kwargs = [value(arg) for arg in call.args], {key: value(arg) for key, arg in call.kwargs.items()}
            else:
                args, kwargs = tree_map_only(Reference, value, (call.args, call.kwargs))
            result = call.function(*args, **kwargs)
            results[index] = [result] if isinstance(result, Tensor) else _tensors(result)
        return [value(reference) for reference in self.derived]


class Recorder(TorchFunctionMode):
    """Records the functions of parameters alone, and gives the others leaves in the place of their results.

    ``params`` are the tensors that the cell function sees, ``arguments`` the other tensors that it gets.
    ``make_leaf`` gives the tensor that stands for a derived parameter in the trace; ``run`` computes a function of
    parameters alone; ``refuse`` raises a sentence about the user's current line.
    """

    def __init__(
        self,
        params: Mapping[str, Tensor],
        arguments: Iterable[Tensor],
        make_leaf: Callable[[Tensor], Tensor],
        run: Callable[[Callable[[], Any]], Any],
        refuse: Callable[[str], NoReturn],
    ) -> None:
        super().__init__()
        self._make_leaf, self._run, self._refuse = make_leaf, run, refuse
        self._calls: list[Call] = []
        # By identity, with the tensors, so that no identity is used again.
        self._known = {id(tensor): (tensor, Reference(param=name)) for name, tensor in params.items()}
        arguments = list(arguments)
        self._arguments = {id(tensor): tensor for tensor in (*params.values(), *arguments)}
        self._shape = arguments[0].shape
        self._constants: dict[int, Tensor] = {}
        self.leaves: dict[Reference, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        tensors = _tensors((args, kwargs))
        if tensors and name in _READS:
            what, instead = _READS[name]
            self._refuse(f"{what} depends on a tensor's values, which differ at run time: use {instead}")
        self._refuse_in_place(name, args)
        if not tensors:
            return self._constant(func, args, kwargs)
        if not torch.is_grad_enabled():
            return func(*args, **kwargs)
        alone = all(id(tensor) in self._known for tensor in tensors)
        result = self._run(lambda: func(*args, **kwargs)) if alone else None
        results = _tensors(result)
        # One for each sample, as expand(gx[0].shape) makes it, is no parameter: it depends on the number of samples.
        if not alone or any(tensor.shape == self._shape for tensor in results):
            leaf_args, leaf_kwargs = tree_map_only(Tensor, self.leaf, (args, kwargs))
            return func(*leaf_args, **leaf_kwargs)
        if results:
            named = tree_map_only(Tensor, lambda tensor: self._known[id(tensor)][1], (args, kwargs))
            for position, tensor in enumerate(results):
                self._known.setdefault(id(tensor), (tensor, Reference(len(self._calls), position)))
                if all(id(operand) in self._constants for operand in tensors):
                    self._constants[id(tensor)] = tensor
            self._calls.append(Call(func, *named))
        return result

    def leaf(self, tensor: Tensor) -> Tensor:
        """The tensor to compute with where ``tensor`` meets the rest: itself, unless parameters made it."""
        _, reference = self._known.get(id(tensor), (None, None))
        if reference is None or reference.param or id(tensor) in self._constants:
            return tensor
        if tensor.dtype == torch.bool:  # a parameter is a number
            return self.leaf(self.__torch_function__(Tensor.float, (), (tensor,))) > 0.5
        if reference not in self.leaves:
            self.leaves[reference] = self._make_leaf(tensor)
        return self.leaves[reference]

    def stand_in(self, tensor: Tensor) -> Tensor:
        """The leaf in the place of ``tensor`` if there is one, else the tensor."""
        _, reference = self._known.get(id(tensor), (None, None))
        return tensor if reference is None else self.leaves.get(reference, tensor)

    def reference(self, tensor: Tensor) -> Reference:
        return self._known[id(tensor)][1]

    def describe(self, reference: Reference) -> str:
        """A name for a derived parameter: the last function and the parameter it begins with, as in sigmoid_tau."""
        if reference.param:
            return reference.param
        call = self._calls[reference.call]
        operands = [self.describe(operand) for operand in call.references()]
        return "_".join([getattr(call.function, "__name__", "").strip("_"), *operands[:1]])

    def prologue(self, derived: Mapping[Reference, str]) -> Prologue:
        """What computes these derived parameters, each with its name."""
        needed: set[int] = set()
        pending = [reference.call for reference in derived]
        while pending:
            call = pending.pop()
            if call >= 0 and call not in needed:
                needed.add(call)
                pending += [reference.call for reference in self._calls[call].references()]
        return Prologue(tuple(derived.values()), tuple(derived), {call: self._calls[call] for call in sorted(needed)})

    def _constant(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A number as a tensor may be among what parameters meet, and in no derived parameter by itself."""
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and result.dim() == 0 and torch.is_grad_enabled():
            self._constants[id(result)] = result
            self._known[id(result)] = (result, Reference(len(self._calls)))
            self._calls.append(Call(func, args, kwargs))
        return result

    def _refuse_in_place(self, name: str, args: tuple[Any, ...]) -> None:
        in_place = name.endswith("_") and not name.endswith("__")
        if not (in_place or name in ("__setitem__", "__set__") or (name.startswith("__i") and name in _IN_PLACE)):
            return
        target = args[0] if args else None
        if id(target) in self._constants and name != "__set__":
            del self._constants[id(target)], self._known[id(target)]  # no longer the number that it was
        elif id(target) in self._arguments or id(target) in self._known:
            self._refuse(f"{name} changes a parameter or an argument in place: make a new tensor")


_IN_PLACE = frozenset(
    f"__i{name}__"
    for name in "add sub mul truediv floordiv mod pow and or xor lshift rshift".split()  # noqa: SIM905
)


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
