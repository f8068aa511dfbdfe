"""The checks, each a small generator of cases: what was called, the error, and which tensor has it.

Shapes: T steps, B batch, I input size, H hidden size.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import prnn
from prnn.check.subject import Subject, on_grid
from prnn.check.suite import Case, Cases, Suite, slopes
from prnn.check.values import (
    Given,
    Loss,
    NotSupported,
    Outputs,
    Results,
    Run,
    distance,
    everything,
    loss_of,
    padding,
    results,
    unequal,
)

SIZES = [(T, B) for T in (1, 2, 17) for B in (1, 5)]
HIDDEN = (1, 3, 17, 100)
_WEIGHTS = ("weight", "bias")


def sizes(suite: Suite) -> Cases:
    """Outputs, final states and all gradients against the float64 equations, with and without an initial state."""
    for T, B in SIZES:
        for state in (False, True):
            given = suite.given(T, B, state=state)
            yield suite.compare(given.words(), given)


def no_steps(suite: Suite) -> Cases:
    """A sequence of no steps: the state stays what it was."""
    yield from _if_taken(suite, suite.given(0, 3))


def empty_batch(suite: Suite) -> Cases:
    """A batch of no samples: empty outputs, and gradients that are zero."""
    yield from _if_taken(suite, suite.given(4, 0))


def _if_taken(suite: Suite, given: Given) -> Cases:
    try:
        computed = suite.own(given)
    except (RuntimeError, ValueError, IndexError) as error:
        raise NotSupported(str(error).splitlines()[0]) from None
    yield suite.judged(given.words(), computed, suite.exact(given))


def hidden_sizes(suite: Suite) -> Cases:
    """Hidden sizes that fill no vector register, and one beyond a tile."""
    for H in HIDDEN:
        module = suite.subject.variant(hidden_size=H)
        given = suite.given(6, 3, module=module)
        yield suite.compare(f"H {H}, {given.words()}", given, module)


def finite_differences(suite: Suite) -> Cases:
    """The gradients, and the float64 copy's, along random directions, against central differences in float64. Not for
    cells: autograd differentiates their equations, and a surrogate derivative is meant to differ.
    """
    subject = suite.subject
    if subject.own:
        raise NotSupported("the gradients of a cell are compared with autograd of its equations")
    if subject.gridded:
        raise NotSupported("the output is discontinuous")
    given = suite.given(5, 2)
    exact = subject.exact_module(subject.module)
    right = results(subject.run, exact, given.double())
    computed = suite.own(given)

    def value(module: nn.Module, at: Given) -> Tensor:
        with torch.no_grad():
            return loss_of(everything(*subject.run(module, at)))

    for name, slope, direction in slopes(suite, exact, given.double(), value):
        for label, found in (("", computed), ("float64: ", right)):
            grad = found[f"the gradient of {name}"].double()
            error = (((grad * direction).sum() - slope).abs() / grad.norm().clamp(min=1e-3)).item()
            yield Case(f"{label}{given.words()}", error, f"the gradient of {name}")


def losses(suite: Suite) -> Cases:
    """A loss that sees only some outputs: the output, one step of it, or one final state."""
    given = suite.given(7, 3)
    seen: dict[str, Loss] = {
        "the output": lambda output, final: [output],
        "the first step": lambda output, final: [output[0]],
        "the last step": lambda output, final: [output[-1]],
        "one step and a final state": lambda output, final: [output[3], *list(final.values())[-1:]],
    }
    for name in given.state or {}:
        seen[f"the final {name}"] = lambda output, final, name=name: [final[name]]  # type: ignore[misc]
    for name, loss in seen.items():
        yield suite.compare(f"the loss sees only {name}, {given.words()}", given, loss=loss)


def chained(suite: Suite) -> Cases:
    """The module's output through a matrix into the module again; and three layers, where they can be made."""
    subject, given = suite.subject, suite.given(6, 3)
    computed = results(_twice(subject.run), subject.module, given)
    right = results(_twice(subject.exact), subject.exact_module(subject.module), given.double())
    yield suite.judged(f"twice, {given.words()}", computed, right)
    with contextlib.suppress(NotSupported):
        module = subject.variant(num_layers=3)
        given = suite.given(6, 3, module=module)
        yield suite.compare(f"three layers, {given.words()}", given, module)


def _twice(run: Run) -> Run:
    def both(module: nn.Module, given: Given) -> Outputs:
        output, final = run(module, given)
        rows, columns = output.shape[-1], given.x.shape[-1]
        matrix = on_grid(torch.cos(torch.arange(rows * columns, dtype=torch.float64))).view(rows, columns)
        again, last = run(module, replace(given, x=output @ matrix.to(output.dtype), state=None))
        return again, final | {f"{name} of the second": tensor for name, tensor in last.items()}

    return both


def lengths(suite: Suite) -> Cases:
    """Samples of different lengths, with values in the padding: zero output there, and the state at each end."""
    suite.need(lengths=True)
    for T, B in ((1, 1), (6, 5), (17, 4)):
        given = suite.given(T, B, lengths=True)
        yield suite.compare(given.words(), given)


def padding_without_effect(suite: Suite) -> Cases:
    """NaN in the padding gives what zeros give, zero output and zero gradient there."""
    suite.need(lengths=True)
    given = suite.given(7, 5, lengths=True)
    assert given.lengths is not None
    dead = padding(7, given.lengths).unsqueeze(-1)

    def filled(value: float) -> Given:
        return given.map(lambda name, x: x if name.startswith("initial") else x.masked_fill(dead, value))

    computed = suite.own(filled(torch.nan))
    yield suite.judged(f"NaN in the padding, {given.words()}", computed, suite.own(filled(0)))
    for name in ("the output", "the gradient of x", *(f"the gradient of input {each}" for each in given.inputs)):
        there = computed[name].double().masked_fill(~dead, 0)
        yield Case(f"what stands in the padding, {given.words()}", there.nan_to_num(torch.inf).norm().item(), name)


def resets(suite: Suite) -> Cases:
    """Against the equations; after a reset all is as at a fresh start, and no gradient crosses it."""
    suite.need(resets=True)
    for T, B in ((1, 2), (9, 5)):
        given = suite.given(T, B, resets=True)
        yield suite.compare(given.words(), given)
    if suite.subject.lengths:
        given = suite.given(9, 5, resets=True, lengths=True)
        yield suite.compare(given.words(), given)
    T, at, both = 8, 3, suite.subject.directions == 2
    given = suite.given(T, 2, state=not both)
    given = replace(given, resets=(torch.arange(T) == at).unsqueeze(1).expand(T, 2).contiguous())
    computed = suite.own(given, lambda output, final: [output[at:]])
    fresh = suite.own(replace(given.steps(at), state=None, resets=None), lambda output, final: [output])
    after = {"the output": computed["the output"][at:]}
    after |= {name: tensor for name, tensor in computed.items() if name.startswith("the final") and not both}
    yield suite.judged("after a reset, as from a fresh start", after, {name: fresh[name] for name in after})
    for name, grad in computed.items():
        if name in ("the gradient of x", *(f"the gradient of initial {each}" for each in given.state or {})):
            before = grad[:at] if name.endswith(" x") else grad
            yield Case("the gradient of what came before a reset", before.double().norm().item(), name)


def both_directions(suite: Suite) -> Cases:
    """Two directions, also with lengths, where the reverse one starts at each sample's end, and resets."""
    subject = suite.subject
    if subject.directions == 2:
        module = subject.module
    else:
        module = subject.variant(bidirectional=True)
    for with_lengths, with_resets in ((False, False), (True, False), (False, True), (True, True)):
        if (with_lengths and not subject.lengths) or (with_resets and not subject.resets):
            continue
        given = suite.given(8, 4, module=module, lengths=with_lengths, resets=with_resets)
        yield suite.compare(given.words(), given, module)


def memory(suite: Suite) -> Cases:
    """Results that nobody wrote show: freed memory of the same sizes is full of NaN, and so is fresh memory."""
    given = suite.given(9, 5, lengths=bool(suite.subject.lengths), resets=suite.subject.resets)
    right = suite.own(given)
    _poison(right)
    yield Case(f"freed memory full of NaN, {given.words()}", *unequal(right, suite.own(given)))
    with _fresh_memory_of_nan():
        computed = suite.own(given)
    # Not the bits: torch's own algorithms are others under this switch.
    error, where = distance(computed, right)
    yield Case(f"fresh memory full of NaN, {given.words()}", 0.0 if error < 1e-5 else error, where)


def _poison(like: Results) -> None:
    """Allocate, fill and free tensors of many sizes, in the hope that the allocator gives them out again."""
    elements = {tensor.numel() * factor for tensor in like.values() for factor in (1, 2, 3, 4, 5, 8)}
    held = [torch.full((size,), torch.nan) for size in elements for _ in range(4)]
    del held


@contextlib.contextmanager
def _fresh_memory_of_nan() -> Iterator[None]:
    """torch.empty gives NaN, which torch does only under deterministic algorithms."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    fill = settings.fill_uninitialized_memory
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        settings.fill_uninitialized_memory = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = fill


def decays(suite: Suite) -> Cases:
    """A cell's own parameters near 1 and at 1, over 40 steps."""
    module = suite.subject.exact_module(suite.subject.module).to(suite.subject.dtype)
    own = [each for name, each in module.named_parameters() if not any(word in name for word in _WEIGHTS)]
    if not own or not isinstance(module, prnn.Recurrent):
        raise NotSupported("it has no parameters but weights and biases")
    for value in (0.875, 1.0) if suite.subject.gridded else (0.999, 1 - 1e-6, 1.0):
        with torch.no_grad():
            for parameter in own:
                parameter.fill_(value)
        given = suite.given(40, 2, module=module)
        yield suite.compare(f"parameters {value}, {given.words()}", given, module)


def magnitudes(suite: Suite) -> Cases:
    """Large and tiny inputs: finite where the equations are, and near them. In bfloat16 a large pre-activation is
    rounded by more than the width of a sigmoid, and its gradients are only looked at for being finite.
    """
    for scale in (1e4, 1e-30):
        given = suite.given(5, 3, scale=scale)
        computed, right = suite.own(given), suite.exact(given)
        if scale > 1 and suite.subject.dtype == torch.bfloat16:
            computed = {name: x.isfinite() * 1.0 if "gradient" in name else x for name, x in computed.items()}
            right = {name: x.isfinite() * 1.0 if "gradient" in name else x for name, x in right.items()}
        yield suite.judged(f"inputs of the order {scale:.0e}, {given.words()}", computed, right, floor=1.0)


def split(suite: Suite) -> Cases:
    """A sequence in two parts, with the state carried, equals one run, gradients included."""
    if suite.subject.directions == 2:
        raise NotSupported("the reverse direction needs the whole sequence")
    for T, at in ((2, 1), (11, 4)):
        given = suite.given(T, 3, resets=suite.subject.resets)

        def parts(module: nn.Module, given: Given, at: int = at) -> Outputs:
            output, middle = suite.subject.run(module, given.steps(0, at))
            rest, final = suite.subject.run(module, replace(given.steps(at), state=dict(middle)))
            return torch.cat((output, rest)), final

        computed = results(parts, suite.subject.module, given)
        yield suite.judged(f"{at} steps and {T - at}, {given.words()}", computed, suite.own(given))


def repeated(suite: Suite) -> Cases:
    """The same call twice gives the same bits."""
    for T, B in ((9, 5), (3, 64)):
        given = suite.given(T, B)
        yield Case(given.words(), *unequal(suite.own(given), suite.own(given)))


def threads(suite: Suite) -> Cases:
    """One and two threads give the same bits; at a hidden size that is divided among them, where it can be made."""
    subject, before = suite.subject, torch.get_num_threads()
    modules = [subject.module]
    with contextlib.suppress(NotSupported):
        modules.append(subject.variant(hidden_size=200))
    for module in modules:
        given, each = suite.given(9, 8, module=module), []
        try:
            for count in (1, 2):
                torch.set_num_threads(count)
                each.append(results(subject.run, module, given))
        finally:
            torch.set_num_threads(before)
        yield Case(given.words(), *unequal(*each))


def second_order(suite: Suite) -> Cases:
    """The gradients of the gradients against those of the float64 equations; of other modules than prnn's also against
    central differences of the float64 gradients.
    """
    subject, given = suite.subject, suite.given(5, 2)
    try:
        computed = results(subject.run, subject.module, given, order=2)
    except (RuntimeError, NotImplementedError) as reason:
        raise NotSupported(str(reason).splitlines()[0]) from None
    yield suite.judged(given.words(), computed, suite.exact(given, order=2))
    if subject.own or subject.gridded:
        return

    def value(module: nn.Module, at: Given) -> Tensor:
        return loss_of(_first(subject, module, at))

    for name, slope, direction in slopes(suite, subject.exact_module(subject.module), given.double(), value):
        grad = computed[f"the second-order gradient of {name}"].double()
        error = (((grad * direction).sum() - slope).abs() / grad.norm().clamp(min=1e-2)).item()
        yield Case(f"differences of float64 gradients, {given.words()}", error, f"the second-order gradient of {name}")


def _first(subject: Subject, module: nn.Module, given: Given) -> list[Tensor]:
    found = results(subject.run, module, given)
    return [tensor for name, tensor in found.items() if name.startswith("the gradient of")]


class Check(NamedTuple):
    """A row: its cases, and the bound of its errors in float32 and in bfloat16."""

    cases: Callable[[Suite], Cases]
    bound: float
    bound16: float

    def of(self, dtype: torch.dtype) -> float:
        return self.bound if dtype == torch.float32 else self.bound16


_ROUNDING = (2e-5, 1e-1)
_WIDER = (1e-2, 2e-1)  # a large pre-activation is rounded by as much as matters to a sigmoid

CHECKS: Mapping[str, Check] = {
    "sizes": Check(sizes, *_ROUNDING),
    "no steps": Check(no_steps, *_ROUNDING),
    "empty batch": Check(empty_batch, *_ROUNDING),
    "hidden sizes": Check(hidden_sizes, *_ROUNDING),
    "finite differences": Check(finite_differences, *_ROUNDING),
    "losses": Check(losses, *_ROUNDING),
    "chained": Check(chained, 2e-5, 2e-1),  # in bfloat16 h is rounded between the layers, and once more a ReLU may flip
    "lengths": Check(lengths, *_ROUNDING),
    "padding": Check(padding_without_effect, *_ROUNDING),
    "resets": Check(resets, *_ROUNDING),
    "both directions": Check(both_directions, *_ROUNDING),
    "memory": Check(memory, 0.0, 0.0),
    "decays": Check(decays, *_ROUNDING),
    "magnitudes": Check(magnitudes, *_WIDER),
    "split": Check(split, *_ROUNDING),
    "repeated": Check(repeated, 0.0, 0.0),
    "threads": Check(threads, 0.0, 0.0),
    "second order": Check(second_order, 1e-4, 2e-1),
}
