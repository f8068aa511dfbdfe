"""Errors to plant in the results of a target, which the checks must find."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.gpu.targets import Target

Spoil = Callable[[Tensor], Tensor]
# Where the operands and results of ``tests.ops.problems.layer`` stand.
OPERANDS = ("x", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "h0", "c0")
RESULTS = ("output", "h_n", "c_n")


def one_percent(value: Tensor) -> Tensor:
    return value * 1.01


def one_ulp(value: Tensor) -> Tensor:
    """One ulp of bfloat16 further from zero, whatever the dtype; zeros stay."""
    mantissa, exponent = torch.frexp(value.float())
    return (value.float() + torch.sign(mantissa) * torch.ldexp(torch.ones_like(mantissa), exponent - 8)).to(value.dtype)


def not_a_number(value: Tensor) -> Tensor:
    value = value.clone()
    value.view(-1)[-1] = float("nan")
    return value


def one_unit(value: Tensor) -> Tensor:
    """The last unit is left out."""
    value = value.clone()
    value[..., -1] = 0
    return value


def every_other_time(spoil: Spoil) -> Spoil:
    """Of two runs one differs."""
    times = itertools.count()
    return lambda value: spoil(value) if next(times) % 2 else value


def spoiled(target: Target, what: str, spoil: Spoil) -> Target:
    """The target with one result or gradient ("grad_" and the operand's name) of its layers spoiled."""

    def layer(*operands: Any, **options: Any) -> tuple[Any, ...]:
        if what.startswith("grad_"):
            number = OPERANDS.index(what.removeprefix("grad_"))
            operands = (*operands[:number], _Spoiled.apply(operands[number], spoil), *operands[number + 1 :])
            return target.layer(*operands, **options)
        ends = target.layer(*operands, **options)
        return tuple(_Kept.apply(end, spoil) if name == what else end for name, end in zip(RESULTS, ends, strict=True))

    return replace(target, layer=layer)


class _Spoiled(torch.autograd.Function):
    """The value as it is, its gradient spoiled."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, spoil: Spoil) -> Tensor:
        ctx.spoil = spoil
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.spoil(grad), None


class _Kept(torch.autograd.Function):
    """The value spoiled, its gradient as it is."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, spoil: Spoil) -> Tensor:
        return spoil(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
