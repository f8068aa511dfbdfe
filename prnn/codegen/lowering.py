"""The rules from ATen operators, derivatives among them, to expressions.

A rule has the operator's name, without overload and without the underscore of the in-place variant, and takes its
arguments: ``Expression`` for a tensor, Python numbers as they are. Where a formula could be written in several ways,
it is the one whose values at NaN and at infinity are torch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from prnn.codegen.expressions import Expression, Number

X = Expression
RULES: dict[str, Callable[..., Any]] = {}


def _rule(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def _apply(op: str, *operands: X | Number) -> X:
    graph = next(operand.graph for operand in operands if isinstance(operand, Expression))
    return graph.make(op, *operands)


def _where(mask: X, a: X | Number, b: X | Number) -> X:
    return _apply("where", mask, a, b)


def _function(op: str) -> Callable[..., X]:
    return lambda *operands: _apply(op, *operands)


_tanh, _sigmoid, _exp, _expm1, _log, _log1p, _sqrt, _erf, _floor, _trunc = map(
    _function, ("tanh", "sigmoid", "exp", "expm1", "log", "log1p", "sqrt", "erf", "floor", "trunc")
)
_maximum, _minimum, _eq, _ne, _fmod = map(_function, ("maximum", "minimum", "eq", "ne", "fmod"))

_OPERATIONS = """neg abs exp expm1 log log1p sqrt sin cos tanh sigmoid atan erf erfc floor trunc maximum minimum
    gt ge lt le eq ne where pow fmod"""
for _name in _OPERATIONS.split():
    RULES[_name] = _function(_name)


# Arithmetic.
@_rule("add")
def _add(a: X, b: X | Number, alpha: Number = 1) -> X:
    return _apply("or", a, b) if _both_masks(a, b) else _apply("add", a, _apply_or_number("mul", b, alpha))


@_rule("sub")
def _sub(a: X, b: X | Number, alpha: Number = 1) -> X:
    return _apply("sub", a, _apply_or_number("mul", b, alpha))


@_rule("rsub")
def _rsub(a: X, b: X | Number, alpha: Number = 1) -> X:
    return _apply("sub", b, _apply_or_number("mul", a, alpha))


@_rule("mul")
def _mul(a: X, b: X | Number) -> X:
    return _apply("and" if _both_masks(a, b) else "mul", a, b)


@_rule("div")
def _div(a: X, b: X | Number, rounding_mode: str | None = None) -> X:
    if rounding_mode == "floor":
        return _floor_divide(a, b)
    quotient = _apply("div", a, b)
    return quotient if rounding_mode is None else _trunc(quotient)


@_rule("floor_divide")
def _floor_divide(x: X | Number, y: X | Number) -> X:
    """By the exact remainder: the quotient may be rounded up to a whole number."""
    remainder = _fmod(x, y)
    quotient = _apply("div", _apply("sub", x, remainder), y)
    whole = _apply("round", _where(_signs_differ(remainder, y), quotient - 1, quotient))
    if not isinstance(y, Expression):
        return whole if y else _apply("div", x, y)
    return _where(_eq(y, 0), _apply("div", x, y), whole)


@_rule("remainder")
def _remainder(x: X | Number, y: X | Number) -> X:
    remainder = _fmod(x, y)
    return _where(_signs_differ(remainder, y), remainder + y, remainder)


def _signs_differ(remainder: X, y: X | Number) -> X:
    """Of a remainder that is not 0."""
    if not isinstance(y, Expression):
        return remainder < 0 if y > 0 else remainder > 0
    return ((remainder < 0) & (y > 0)) | ((remainder > 0) & (y < 0))


def _apply_or_number(op: str, a: X | Number, b: Number) -> X | Number:
    return a if b == 1 else _apply(op, a, b) if isinstance(a, Expression) else a * b


def _both_masks(a: X | Number, b: X | Number) -> bool:
    return all(x.is_mask if isinstance(x, Expression) else isinstance(x, bool) for x in (a, b))


RULES["reciprocal"] = lambda x: 1 / x
RULES["rsqrt"] = lambda x: 1 / _sqrt(x)
RULES["addcmul"] = lambda x, a, b, value=1: x + _apply_or_number("mul", a * b, value)
RULES["addcdiv"] = lambda x, a, b, value=1: x + _apply_or_number("mul", a / b, value)


@_rule("lerp")
def _lerp(a: X, b: X, weight: X | Number) -> X:
    near, far = a + weight * (b - a), b - (b - a) * (1 - weight)
    if isinstance(weight, Expression):
        return _where(abs(weight) < 0.5, near, far)
    return near if abs(weight) < 0.5 else far


# Exponentials, logarithms, trigonometry.
RULES["exp2"] = lambda x: _exp(x * math.log(2))
RULES["log2"] = lambda x: _log(x) * (1 / math.log(2))
RULES["log10"] = lambda x: _log(x) * (1 / math.log(10))
RULES["tan"] = lambda x: _apply("sin", x) / _apply("cos", x)
RULES["sinc"] = lambda x: _where(_eq(x, 0), 1, _apply("sin", x * math.pi) / (x * math.pi))
RULES["logaddexp"] = lambda a, b: _where(_eq(a, b), a + math.log(2), _maximum(a, b) + _log1p(_exp(-abs(a - b))))


@_rule("cosh")
def _cosh(x: X) -> X:
    root = _exp(abs(x) / 2)  # exp(x) overflows before cosh(x)
    return (root / 2) * root + (0.5 / root) / root


@_rule("sinh")
def _sinh(x: X) -> X:
    return _where(abs(x) > 80, _where(x > 0, _cosh(x), -_cosh(x)), (_expm1(x) - _expm1(-x)) / 2)


@_rule("hypot")
def _hypot(a: X, b: X) -> X:
    """By the ratio, since squares overflow."""
    large, small = _maximum(abs(a), abs(b)), _minimum(abs(a), abs(b))
    ratio = small / large
    found = _where(_eq(large, 0), large, large * _sqrt(1 + ratio * ratio))
    return _where(_eq(abs(a), math.inf) | _eq(abs(b), math.inf), math.inf, found)


# Signs, rounding, comparisons, masks.
@_rule("sign", "sgn")
def _sign(x: X) -> X:
    return _where(x > 0, 1, _where(x < 0, -1, 0))


@_rule("round")
def _round(x: X, decimals: int = 0) -> X:
    return _apply("round", x) if decimals == 0 else _apply("round", x * 10.0**decimals) / 10.0**decimals


@_rule("nan_to_num")
def _nan_to_num(x: X, nan: float | None = None, posinf: float | None = None, neginf: float | None = None) -> X:
    largest = 3.4028234663852886e38  # a float's
    above = _where(_eq(x, math.inf), largest if posinf is None else posinf, x)
    below = _where(_eq(x, -math.inf), -largest if neginf is None else neginf, above)
    return _where(_ne(x, x), nan or 0.0, below)


RULES["ceil"] = lambda x: -_floor(-x)
RULES["frac"] = lambda x: x - _trunc(x)
RULES["heaviside"] = lambda x, at_zero: _where(_eq(x, 0), at_zero, _where(x > 0, 1, 0))
RULES["isnan"] = lambda x: _ne(x, x)
RULES["isinf"] = lambda x: _eq(abs(x), math.inf)
RULES["masked_fill"] = lambda x, mask, value: _where(mask, value, x)
RULES["logical_and"] = RULES["bitwise_and"] = _function("and")
RULES["logical_or"] = RULES["bitwise_or"] = _function("or")
RULES["logical_xor"] = RULES["bitwise_xor"] = _function("xor")
RULES["logical_not"] = RULES["bitwise_not"] = _function("not")


@_rule("clamp")
def _clamp(x: X, min: X | Number | None = None, max: X | Number | None = None) -> X:
    x = x if min is None else _maximum(x, min)
    return x if max is None else _minimum(x, max)


RULES["clamp_min"] = lambda x, min: _clamp(x, min)
RULES["clamp_max"] = lambda x, max: _clamp(x, None, max)


# Activations and their derivatives.
RULES["relu"] = lambda x: _where(x <= 0, 0, x)
RULES["threshold"] = lambda x, threshold, value: _where(x <= threshold, value, x)
RULES["threshold_backward"] = lambda grad, x, threshold: _where(x <= threshold, 0, grad)
RULES["tanh_backward"] = lambda grad, y: grad * (1 - y * y)
RULES["sigmoid_backward"] = lambda grad, y: grad * (y * (1 - y))
RULES["hardtanh"] = lambda x, low=-1, high=1: _clamp(x, low, high)
RULES["hardtanh_backward"] = lambda grad, x, low, high: _where((x > low) & (x < high), grad, 0)
RULES["hardsigmoid"] = lambda x: _clamp(x + 3, 0, 6) / 6
RULES["hardsigmoid_backward"] = lambda grad, x: _where((x > -3) & (x < 3), grad / 6, 0)
RULES["hardswish"] = lambda x: x * _clamp(x + 3, 0, 6) / 6
RULES["hardswish_backward"] = lambda grad, x: _where(x <= -3, 0, _where(x >= 3, grad, grad * (x / 3 + 0.5)))
RULES["silu"] = lambda x: x * _sigmoid(x)
RULES["silu_backward"] = lambda grad, x: grad * (_sigmoid(x) * (1 + x * (1 - _sigmoid(x))))
RULES["softshrink"] = lambda x, size=0.5: _where(x > size, x - size, _where(x < -size, x + size, x * 0))
RULES["hardshrink"] = lambda x, size=0.5: _where((x >= -size) & (x <= size), 0, x)
RULES["softshrink_backward"] = RULES["hardshrink_backward"] = lambda grad, x, size: _where(
    (x < -size) | (x > size), grad, 0
)
RULES["log_sigmoid_backward"] = lambda grad, x, buffer: grad * _sigmoid(-x)


@_rule("log_sigmoid_forward")
def _log_sigmoid(x: X) -> tuple[X, X]:
    buffer = _exp(-abs(x))
    return _minimum(x, 0) - _log1p(buffer), buffer


@_rule("leaky_relu")
def _leaky_relu(x: X, slope: Number = 0.01) -> X:
    return _where(x > 0, x, x * slope)


@_rule("leaky_relu_backward")
def _leaky_relu_backward(grad: X, x: X, slope: Number, is_result: bool) -> X:
    return _where(x > 0, grad, grad * slope)


@_rule("elu")
def _elu(x: X, alpha: Number = 1, scale: Number = 1, input_scale: Number = 1) -> X:
    return _where(x <= 0, _expm1(x * input_scale) * (alpha * scale), x * scale)


@_rule("elu_backward")
def _elu_backward(grad: X, alpha: Number, scale: Number, input_scale: Number, is_result: bool, x: X) -> X:
    slope = x + alpha * scale if is_result else _exp(x * input_scale) * (alpha * scale)
    return _where(x > 0, grad * scale, grad * (input_scale * slope))


RULES["celu"] = lambda x, alpha=1.0: _elu(x, alpha, 1, 1 / alpha)


@_rule("gelu")
def _gelu(x: X, approximate: str = "none") -> X:
    if approximate == "tanh":
        return 0.5 * x * (1 + _tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))))
    return x * (0.5 * (1 + _erf(x * math.sqrt(0.5))))


@_rule("gelu_backward")
def _gelu_backward(grad: X, x: X, approximate: str = "none") -> X:
    if approximate == "tanh":
        scale = math.sqrt(2 / math.pi)
        t = _tanh(scale * (x + 0.044715 * (x * x * x)))
        return grad * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * (scale * (1 + 3 * 0.044715 * (x * x))))
    return grad * (0.5 * (1 + _erf(x * math.sqrt(0.5))) + x * _exp(x * x * -0.5) * (1 / math.sqrt(2 * math.pi)))


@_rule("softplus")
def _softplus(x: X, beta: Number = 1, threshold: Number = 20) -> X:
    return _where(x * beta > threshold, x, _log1p(_exp(x * beta)) / beta)


@_rule("softplus_backward")
def _softplus_backward(grad: X, x: X, beta: Number, threshold: Number) -> X:
    return _where(x * beta > threshold, grad, grad * _sigmoid(x * beta))


@_rule("mish")
def _mish(x: X) -> X:
    return x * _tanh(_softplus(x))


@_rule("mish_backward")
def _mish_backward(grad: X, x: X) -> X:
    t = _tanh(_softplus(x))
    return grad * (t + x * _sigmoid(x) * (1 - t * t))
