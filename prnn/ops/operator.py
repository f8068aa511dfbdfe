"""A layer as an operator: ``prnn::layer`` and ``prnn::layer_backward``, with derivatives of every order.

An implementation is two functions, ``forward`` and ``backward``, that record no graph (``IMPLEMENTATIONS``). Eager
calls reach them through one ``torch.autograd.Function``, before which the parameters of a cell in Python are derived;
whatever traces, counts or transforms calls (torch.compile, export, dispatch modes, vmap) through two dispatcher
operators that are opaque to it. The backward pass of the backward pass goes through the reference equations, which
autograd can differentiate to any order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import compress
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from prnn.cell_table import Cell, lookup
from prnn.cuda_plan import REGIMES
from prnn.native import constant_when_traced
from prnn.ops import cpu, cuda, gradients, reference, stepwise, vendor
from prnn.ops.autocast import without_autocast
from prnn.ops.operands import WEIGHTS, Gradients, Incoming, Needs, Operands, Results, Saved, schema_of
from prnn.ops.reuse import outputs

_PLAIN = (Tensor, torch.nn.Parameter)
_OPERANDS = len(Operands._fields)
_IS_WEIGHT = tuple(name in WEIGHTS for name in Operands._fields)
Derived = tuple[Tensor | None, Tensor | None]  # of each direction; None of a cell without
_NOT_DIFFERENTIABLE = (None,) * (_OPERANDS - len(Gradients._fields))


class Implementation(NamedTuple):
    """``forward(operands, cell, reverse, save)`` and ``backward(incoming, operands, results, cell, reverse, needs)``;
    ``saved`` gives uninitialised tensors like what the forward pass saves. Of both directions in one call
    (``bidirectional``), or of one alone. ``keeps_state`` says that the backward pass needs h_n and c_n.
    """

    forward: Callable[[Operands, Cell, bool, bool], Results]
    backward: Callable[[Incoming, Operands, Results, Cell, bool, Needs], Gradients]
    saved: Callable[[Operands, Cell, bool], Saved]
    bidirectional: bool = False
    keeps_state: bool = False


IMPLEMENTATIONS = {
    "stepwise": Implementation(stepwise.forward, stepwise.backward, stepwise.like_saved),
    "onednn": Implementation(vendor.onednn_forward, vendor.onednn_backward, vendor.like_onednn_saved, keeps_state=True),
    "cudnn": Implementation(vendor.cudnn_forward, vendor.cudnn_backward, vendor.like_cudnn_saved),
    "cpu": Implementation(cpu.forward, cpu.backward, cpu.like_saved, bidirectional=True),
    "cuda": Implementation(cuda.forward, cuda.backward, cpu.like_saved, bidirectional=True),
}
for _regime in REGIMES:  # "cuda:grid": the best plan of this regime, whatever the planner's choice is
    IMPLEMENTATIONS[f"cuda:{_regime}"] = Implementation(
        partial(cuda.forward, regime=_regime),
        partial(cuda.backward, regime=_regime),
        cpu.like_saved,
        bidirectional=True,
    )


class Call(NamedTuple):
    """What a call is besides its tensors."""

    cell: str
    reverse: bool
    implementation: str
    save: bool


def run(operands: Operands, cell: str, reverse: bool, name: str) -> Results:
    """The layer by ``Choice.implementation`` (but "aten", which ``layer`` calls itself), differentiable."""
    transformed = torch._C._are_functorch_transforms_active()
    # The other implementations have no forward-mode derivative, and would drop the tangents of dual tensors.
    if name == "reference" or (transformed and _derivative_by_functorch()) or forward_ad._current_level >= 0:
        return reference.layer(operands, lookup(cell), reverse)
    implementation = IMPLEMENTATIONS[name]
    if operands.weight_hh_reverse is not None and not implementation.bidirectional:
        return _one_direction_at_a_time(operands, cell, name)
    wanted = [x is not None and x.requires_grad for x in operands] if torch.is_grad_enabled() else []
    # What vmap has batched does not say whether a gradient is wanted.
    save = any(wanted) or (transformed and torch.is_grad_enabled())
    if traced(operands.x, operands.weight_hh):
        # A graph that torch.jit.trace records may be given gradients later on, whatever mode it is traced in.
        call = Call(_name_in_graph(cell, operands.x.dtype), reverse, name, save or torch.jit.is_tracing())
        results = Results(*torch.ops.prnn.layer.default(*call, *operands))
        return results if operands.c0 is not None else results._replace(c_n=None)
    derived = derived_of(operands, lookup(cell))
    if save:
        # Only tensors that require a gradient are arguments: each costs 2,400 instructions (benchmarks/NOTES.md).
        wanted += [x is not None and x.requires_grad for x in derived]
        arguments = compress((*operands, *derived), wanted)
        return Results(*_Layer.apply(Call(cell, reverse, name, save), operands, derived, wanted, *arguments))
    return implementation.forward(with_derived(operands, derived), lookup(cell), reverse, False)


def derived_of(operands: Operands, cell: Cell) -> Derived:
    """The parameters that a kernel takes, in each direction."""
    if operands.params is None:
        return None, None
    other = operands.params_reverse
    return cell.derived(operands.params), None if other is None else cell.derived(other)


def with_derived(operands: Operands, derived: Derived) -> Operands:
    """The operands of an implementation: ``derived`` in the place of the parameters."""
    return operands if operands.params is None else operands._replace(params=derived[0], params_reverse=derived[1])


@constant_when_traced
def _name_in_graph(cell: str, dtype: torch.dtype) -> str:
    return lookup(cell).name_in_graph(dtype)


def _one_direction_at_a_time(operands: Operands, cell: str, name: str) -> Results:
    first, second = (run(one, cell, d == 1, name) for d, one in enumerate(operands.each_direction()))
    c_n = None if first.c_n is None or second.c_n is None else torch.cat((first.c_n, second.c_n))
    output = torch.cat((first.output, second.output), dim=-1)
    return Results(output, torch.cat((first.h_n, second.h_n)), c_n)


def _derivative_by_functorch() -> bool:
    """Whether torch.func takes a derivative, forward or backward; a vmap alone is none."""
    stack = torch._C._functorch.get_interpreter_stack() or []
    return any(level.key() != torch._C._functorch.TransformType.Vmap for level in stack)


def traced(x: Tensor, weight_hh: Tensor) -> bool:
    """Whether a tracer or transform is active, or tensors have no data or a dispatch of their own: they must see one
    operator and not what an implementation calls.
    """
    return (
        torch.compiler.is_compiling()  # also True during torch.export
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or x.is_meta
        or type(x) not in _PLAIN
        or type(weight_hh) not in _PLAIN
    )


class _Layer(torch.autograd.Function):
    """The derivatives registered for the operator below, at a quarter of a call's cost (benchmarks/NOTES.md)."""

    @staticmethod
    def forward(
        ctx: Any, call: Call, operands: Operands, derived: Derived, differentiable: list[bool], *_: Tensor
    ) -> Any:
        given = with_derived(operands, derived)
        results = IMPLEMENTATIONS[call.implementation].forward(given, lookup(call.cell), call.reverse, True)
        _keep(ctx, call, operands, with_lazy_clone(results), derived)
        ctx.differentiable = differentiable
        return results.output, results.h_n, results.c_n

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = iter(ctx.needs_input_grad[4:])
        wanted = [given and next(needed) for given in ctx.differentiable]
        kept = Kept.of(ctx.saved_tensors)
        return None, None, None, None, *compress(differentiate(ctx.call, kept, grads, wanted), ctx.differentiable)


def with_lazy_clone(results: Results) -> Results:
    """The results as the backward pass gets them. The caller may write to the output before that, which needs it: a
    copy is made when that happens. The caller gets the original, whose users `outputs` counts.
    """
    if not results.output.is_cpu:
        return results
    clone = torch._lazy_clone(results.output)
    outputs.share(results.output, clone)
    return Results(clone, *results[1:])


class Kept(NamedTuple):
    """What autograd saves of a layer's call."""

    operands: Operands
    results: Results
    derived: Derived

    @classmethod
    def of(cls, tensors: Sequence[Tensor | None]) -> Kept:
        """From a flat list, as ``flat`` gives it."""
        first, second = tensors[-2:]
        return cls(Operands._make(tensors[:_OPERANDS]), Results._make(tensors[_OPERANDS:-2]), (first, second))

    def flat(self, implementation: str) -> tuple[Tensor | None, ...]:
        output, h_n, c_n, *saved = self.results
        state = (h_n, c_n) if IMPLEMENTATIONS[implementation].keeps_state else (None, None)
        return *self.operands, output, *state, *saved, *self.derived

    def given(self) -> Operands:
        """The operands of an implementation."""
        return with_derived(self.operands, self.derived)


LENGTH = _OPERANDS + len(Results._fields) + 2  # of a flat ``Kept``


def _keep(ctx: Any, call: Call, operands: Operands, results: Results, derived: Derived) -> None:
    ctx.call = call
    ctx.save_for_backward(*Kept(operands, results, derived).flat(call.implementation))
    ctx.set_materialize_grads(False)


def differentiate(
    call: Call, kept: Kept, grads: Sequence[Tensor | None], wanted: Sequence[bool]
) -> Sequence[Tensor | None]:
    """The gradients of the operands, in their order, and of the two derived parameters; perhaps of some besides that
    are not ``wanted``. Where the operator computes them, the layer's own parameters have one, and no derived one has.
    """
    operands, results, _ = kept
    incoming = incoming_of(operands, grads)
    if is_absent(incoming):
        return (None,) * len(wanted)
    name, cell, reverse = call.implementation, call.cell, call.reverse
    if through_operator(kept, incoming):
        twice, of = torch.is_grad_enabled(), Operands._make(wanted[:_OPERANDS])
        needs = needs_of(wanted, bool(of.params or of.params_reverse), twice)
        filled = _filled(operands.x, results)
        computed = torch.ops.prnn.layer_backward.default(cell, reverse, name, *needs, *incoming, *filled, *operands)
        every = (*computed, *_NOT_DIFFERENTIABLE, None, None)
        return [grad if want else None for grad, want in zip(every, wanted, strict=True)]
    needs = needs_of(wanted, any(wanted[_OPERANDS:]))
    with without_autocast(operands.x):  # the operands have been cast already
        backward = IMPLEMENTATIONS[name].backward
        computed = backward(incoming, kept.given(), results, lookup(cell), reverse, needs)
    return in_order(operands, computed, wanted)


def incoming_of(operands: Operands, grads: Sequence[Tensor | None]) -> Incoming:
    """From the gradients of output, h_n and c_n, of which only a cell with states besides h has the last."""
    grad_output, grad_h_n, grad_c_n, *_ = grads
    return Incoming(grad_output, grad_h_n, None if operands.c0 is None else grad_c_n)


def is_absent(incoming: Incoming) -> bool:
    return incoming.output is None and incoming.h_n is None and incoming.c_n is None


def through_operator(kept: Kept, incoming: Incoming) -> bool:
    """Whether a backward pass must be one call of the registered operator: it is to be differentiated in turn, or is
    traced, or what it is to be given is not what a kernel takes.
    """
    operands, _, derived = kept
    return (
        torch.is_grad_enabled()
        or _is_batched(incoming)
        or traced(operands.x, operands.weight_hh)
        # The registered operator derives parameters within it, and has none to give.
        or (operands.params is not None and derived[0] is None)
    )


def needs_of(wanted: Sequence[bool], params: bool, everything: bool = False) -> Needs:
    """By which operands are ``wanted``, and whether parameters are."""
    of = Operands._make(wanted[:_OPERANDS])
    return Needs(
        everything or bool(of.x),
        everything or any(compress(wanted, _IS_WEIGHT)),
        everything or bool(of.inputs),
        everything or params,
    )


def in_order(operands: Operands, computed: Gradients, wanted: Sequence[bool]) -> Sequence[Tensor | None]:
    """What an implementation has computed, in the order of the operands and the two derived parameters."""
    if operands.params is None:
        return *computed, *_NOT_DIFFERENTIABLE, None, None
    of, (of_params, of_params_reverse) = Operands._make(wanted[:_OPERANDS]), wanted[_OPERANDS:]
    # Zero, as the operator has it, for parameters on which no derived one depends.
    params, params_reverse = (
        torch.zeros_like(x) if x is not None and want and not depends else None
        for x, want, depends in (
            (operands.params, of.params, of_params),
            (operands.params_reverse, of.params_reverse, of_params_reverse),
        )
    )
    of_operands = computed._replace(params=params, params_reverse=params_reverse)
    return *of_operands, *_NOT_DIFFERENTIABLE, computed.params, computed.params_reverse


def _is_batched(incoming: Incoming) -> bool:
    """Whether ``is_grads_batched`` is on, whose tensors a kernel must not be given."""
    is_batched = torch._C._functorch.is_legacy_batchedtensor
    return any(is_batched(grad) for grad in incoming if grad is not None)


def _filled(like: Tensor, tensors: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """An operator gives tensors: an empty one, each of its own, for None."""
    return tuple(like.new_empty(0) if x is None else x for x in tensors)


def _forward(cell: str, reverse: bool, implementation: str, save: bool, *operands: Any) -> tuple[Tensor, ...]:
    named, of = Operands(*operands), lookup(cell)
    with without_autocast(named.x):
        given = with_derived(named, derived_of(named, of))
        results = IMPLEMENTATIONS[implementation].forward(given, of, reverse, save)
    return _filled(results.output, results)


def _backward(cell: str, reverse: bool, implementation: str, *rest: Any) -> tuple[Tensor, ...]:
    needs, incoming, results, operands = _parts(rest)
    of = lookup(cell)
    with without_autocast(operands.x):
        first, second = (
            (None, None)
            if params is None
            else gradients.pulled_back(of.derived, params)
            if needs.params
            else (of.derived(params), None)
            for params in (operands.params, operands.params_reverse)
        )
        given = with_derived(operands, (first[0], second[0]))
        computed = IMPLEMENTATIONS[implementation].backward(incoming, given, results, of, reverse, needs)
        for name, (_, gradient) in (("params", first), ("params_reverse", second)):
            if gradient is not None:
                computed = computed._replace(**{name: gradient(getattr(computed, name))})
    return _filled(operands.x, computed)


def _parts(rest: Sequence[Any]) -> tuple[Needs, Incoming, Results, Operands]:
    """The arguments of ``layer_backward`` after the first three."""
    arguments = iter(rest)

    def take(kind: Any) -> Any:
        return kind(*(next(arguments) for _ in kind._fields))

    return take(Needs), take(Incoming), take(Results), take(Operands)


def _fake_forward(cell: str, reverse: bool, implementation: str, save: bool, *tensors: Any) -> tuple[Tensor, ...]:
    operands = Operands(*tensors)
    x, h0, c0 = operands.x, operands.h0, operands.c0
    output = x.new_empty((*x.shape[:2], h0.shape[0] * h0.shape[2]))
    c_n = None if c0 is None else c0.new_empty(c0.shape)
    saved = IMPLEMENTATIONS[implementation].saved(operands, lookup(cell), save)
    return _filled(x, (output, h0.new_empty(h0.shape), c_n, *saved))


def _fake_backward(cell: str, reverse: bool, implementation: str, *rest: Any) -> tuple[Tensor, ...]:
    needs, _, _, operands = _parts(rest)
    wanted = zip(operands, needs.of(operands), strict=False)
    return _filled(operands.x, [x.new_empty(x.shape) if x is not None and want else None for x, want in wanted])


def _setup_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    count = len(Call._fields)
    results = Results(*output)
    _keep(ctx, Call(*inputs[:count]), Operands._make(inputs[count:]), results, (None, None))
    ctx.mark_non_differentiable(results.saved, results.auxiliary)


def _differentiate_forward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    wanted = (*ctx.needs_input_grad[-_OPERANDS:], False, False)
    found = differentiate(ctx.call, Kept.of(ctx.saved_tensors), grads, wanted)
    return *(None,) * len(Call._fields), *found[:_OPERANDS]


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.cell, ctx.reverse, _, *rest = inputs
    needs, incoming, _, operands = _parts(rest)
    ctx.save_for_backward(*incoming, *operands)
    ctx.mark_non_differentiable(*(grad for grad, want in zip(output, needs.of(operands), strict=True) if not want))
    ctx.set_materialize_grads(False)


def _differentiate_backward(ctx: Any, *grads_of_grads: Tensor | None) -> tuple[Any, ...]:
    """Second order: the gradient of the backward pass, as a function of its incoming gradients and of the operands.

    The forward pass's results are functions of the operands too: the reference recomputes them, so the operands get
    the total derivative, and those get none.
    """
    tensors = iter(ctx.saved_tensors)
    incoming = [next(tensors) for _ in Incoming._fields]
    operands = Operands(*tensors)
    cell, reverse = lookup(ctx.cell), ctx.reverse

    def equations(*variables: Any) -> Sequence[Tensor | None]:
        named = dict(zip(Gradients._fields, variables, strict=True))
        return reference.layer(operands._replace(**named), cell, reverse)[: len(Incoming._fields)]

    variables = [getattr(operands, name) for name in Gradients._fields]
    of_incoming, of_operands = gradients.second_order(equations, variables, incoming, grads_of_grads)
    call = len(Call._fields) - 1 + len(Needs._fields)
    absent = (None,) * call, (None,) * len(Results._fields)
    return *absent[0], *of_incoming, *absent[1], *of_operands, *_NOT_DIFFERENTIABLE


def _one_by_one(operator: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Any]:
    """The batching rule of vmap: the kernels take one element after the other."""

    def rule(info: Any, in_dims: Sequence[int | None], *arguments: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        pairs = list(zip(arguments, in_dims, strict=True))
        each = [operator(*(x if dim is None else x.select(dim, i) for x, dim in pairs)) for i in range(info.batch_size)]
        if not each:  # the shapes are those of any element
            each = [operator(*(x if dim is None else x.new_zeros(x.movedim(dim, 0).shape[1:]) for x, dim in pairs))]
        stacked = (torch.stack(results)[: info.batch_size] for results in zip(*each, strict=True))
        return tuple(stacked), (0,) * len(each[0])

    return rule


def _register() -> None:
    call = ("str cell", "bool reverse", "str implementation")
    incoming = [f"Tensor? grad_{name}" for name in Incoming._fields]
    results = [f"Tensor {name}" for name in Results._fields]
    needs = [f"bool needs_{name}" for name in Needs._fields]
    schemas = {
        "prnn::layer": schema_of((*call, "bool save"), len(Results._fields)),
        "prnn::layer_backward": schema_of((*call, *needs, *incoming, *results), len(Gradients._fields)),
    }
    parts = {
        "prnn::layer": (_forward, _fake_forward, _differentiate_forward, _setup_forward),
        "prnn::layer_backward": (_backward, _fake_backward, _differentiate_backward, _setup_backward),
    }
    for name, schema in schemas.items():
        implementation, fake, differentiate, setup = parts[name]
        torch.library.define(name, schema)
        torch.library.impl(name, "CompositeExplicitAutograd", implementation)
        torch.library.register_fake(name)(fake)
        torch.library.register_autograd(name, differentiate, setup_context=setup)
        torch.library.register_vmap(name, _one_by_one(getattr(torch.ops.prnn, name.removeprefix("prnn::")).default))


_register()
