"""What a check works with: a subject, values for its calls, and comparisons with the equations.

Shapes: T steps, B batch, I input size, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from prnn.check.subject import Subject, on_grid
from prnn.check.values import FLOOR, Given, Loss, NotSupported, Results, distance, everything, results
from prnn.ops.reference import resets_within

ROUNDED = 3e-2  # what steps of bfloat16 add up to; beyond it something has changed sides


class Case(NamedTuple):
    """One comparison: the call, the error, and the tensor with the largest."""

    words: str
    error: float
    where: str


Cases = Iterator[Case]


@dataclass
class Suite:
    """A subject, and values for its calls."""

    subject: Subject
    generator: torch.Generator

    def given(
        self,
        T: int,
        B: int,
        *,
        module: nn.Module | None = None,
        lengths: bool = False,
        resets: bool = False,
        state: bool = True,
        scale: float = 1.0,
    ) -> Given:
        """Values for a call of ``module``; there are some in the padding too."""
        subject, module = self.subject, self.subject.module if module is None else module
        x = self._values(torch.randn(T, B, subject.input_size, generator=self.generator)) * scale
        given = Given(x.to(subject.dtype))
        if state:
            zeros = subject.zero_state(module, B)
            given = replace(given, state={name: self._like(zero) for name, zero in zeros.items()})
        if lengths:
            least = 0 if subject.own else 1
            drawn = torch.randint(least, T + 1, (B,), generator=self.generator)
            drawn[B // 2] = T if B > 1 else max(T // 2, 1)
            given = replace(given, lengths=drawn)
        if resets:
            drawn = torch.rand(T, B, generator=self.generator) < 0.3
            # Those in the padding have no effect in prnn; what they mean to others is not known.
            given = replace(given, resets=drawn if subject.own else resets_within(drawn, given.lengths))
        shape = (T, B, int(getattr(module, "hidden_size", subject.hidden_size)))
        inputs = {name: self._values(torch.rand(shape, generator=self.generator)) for name in subject.inputs}
        return replace(given, inputs=inputs)

    def _values(self, x: Tensor) -> Tensor:
        return on_grid(x) if self.subject.gridded else x

    def _like(self, zero: Tensor) -> Tensor:
        return self._values(torch.rand(zero.shape, generator=self.generator)).to(zero.dtype)

    def compare(
        self, words: str, given: Given, module: nn.Module | None = None, loss: Loss = everything, floor: float = FLOOR
    ) -> Case:
        """The module against its equations; in bfloat16, where rounding takes a ReLU to its other side, against the
        nearer of the float64 equations and those computed in bfloat16.
        """
        module = self.subject.module if module is None else module
        computed = results(self.subject.run, module, given, loss)
        case = self.judged(words, computed, self.exact(given, module, loss), floor)
        if self.subject.dtype == torch.float32 or case.error < ROUNDED:
            return case
        rounded = self.judged(words, computed, results(self.subject.exact, module, given, loss), floor)
        return min(case, rounded, key=lambda each: each.error)

    def exact(self, given: Given, module: nn.Module | None = None, loss: Loss = everything, order: int = 1) -> Results:
        """What is right."""
        copied = self.subject.exact_module(self.subject.module if module is None else module)
        try:
            return results(self.subject.exact, copied, given.double(), loss, order)
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            reason = str(error).splitlines() or [type(error).__name__]
            raise NotSupported(f"its float64 copy does not run: {reason[0]}") from None

    def judged(self, words: str, computed: Results, right: Results, floor: float = FLOOR) -> Case:
        """Computed values against the right ones, with a word about spikes. In bfloat16 gradients are left out where an
        output is zero on one side alone: rounding has taken a ReLU to its other side.
        """
        ours, output = computed.get("the output"), right.get("the output")
        if ours is None or output is None or ours.shape != output.shape:
            return Case(words, *distance(computed, right, floor))
        rounds = self.subject.dtype == torch.bfloat16 and not self.subject.gridded
        if rounds and ((ours == 0) != (output == 0)).any():
            right = {name: tensor for name, tensor in right.items() if "gradient" not in name}
        error, where = distance(computed, right, floor)
        if self.subject.gridded and where and (flipped := (ours.double() - output.double()).abs() > 0.5).any():
            where += f"; {flipped.sum()} of {flipped.numel()} spikes differ, as where a value is at the threshold"
        return Case(words, error, where)

    def own(self, given: Given, loss: Loss = everything) -> Results:
        """What the module computes."""
        return results(self.subject.run, self.subject.module, given, loss)

    def need(self, lengths: bool = False, resets: bool = False) -> None:
        """NotSupported where the module takes no lengths or no resets."""
        if lengths and not self.subject.lengths:
            raise NotSupported("forward has no argument lengths")
        if resets and not self.subject.resets:
            raise NotSupported("forward has no argument resets")


def slopes(
    suite: Suite, module: nn.Module, given: Given, value: Callable[[nn.Module, Given], Tensor], step: float = 1e-6
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, derivative of ``value`` along a direction, and the direction, four for each parameter and value."""

    def direction(tensor: Tensor) -> Tensor:
        return torch.randint(0, 2, tensor.shape, generator=suite.generator).double() * 2 - 1

    for name, parameter in module.named_parameters():
        for _ in range(4 if parameter.requires_grad else 0):
            along, ends, before = direction(parameter), [], parameter.detach().clone()
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.copy_(before + sign * step * along)
                ends.append(value(module, given))
            with torch.no_grad():
                parameter.copy_(before)
            yield name, (ends[0] - ends[1]) / (2 * step), along
    for name in ("x", *(f"initial {state}" for state in given.state or {})):
        for _ in range(4):
            along = direction(_named(given, name))
            ends = [value(module, _moved(given, name, sign * step * along)) for sign in (1, -1)]
            yield name, (ends[0] - ends[1]) / (2 * step), along


def _named(given: Given, name: str) -> Tensor:
    return given.x if name == "x" else (given.state or {})[name.removeprefix("initial ")]


def _moved(given: Given, name: str, by: Tensor) -> Given:
    return given.map(lambda each, tensor: tensor + by if each == name else tensor)
