"""Scalar expressions of one unit of one sample: a directed acyclic graph without duplicates, simplified as it is built.

``Expression`` has Python's operators, so that a rule reads as the formula: ``grad * (1 - y * y)``. An expression is a
value or a mask, the result of a comparison; ``Graph.value`` and ``Graph.mask`` convert one into the other.

Simplifications keep the value for every argument, signs of zeros aside, with one exception: a *structural* zero, what
autograd gives where no gradient flows, makes each product with it zero, where inf * 0 would be NaN. A zero that the
user wrote does not.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Container, Iterable

Number = bool | int | float
Operand = "Expression | Number"

COMPARISONS = ("gt", "ge", "lt", "le", "eq", "ne")
MASKS = frozenset((*COMPARISONS, "and", "or", "xor", "not"))
COMMUTATIVE = frozenset(("add", "mul", "maximum", "minimum", "eq", "ne", "and", "or", "xor"))
LEAVES = frozenset(("in", "const"))
# What is worth a place in memory rather than a second computation.
EXPENSIVE = frozenset(
    "div exp expm1 log log1p sqrt sin cos tanh sigmoid atan erf erfc pow fmod".split()  # noqa: SIM905
)


class Expression:
    """One operation and its arguments. ``value``: the number of a constant, or the name of an input. ``index``: the
    order in which a graph's expressions were made; arguments come before what takes them.
    """

    __slots__ = ("args", "graph", "index", "op", "value")

    def __init__(self, graph: Graph, op: str, args: tuple[Expression, ...], value: float | str | None) -> None:
        self.graph, self.op, self.args, self.value = graph, op, args, value
        self.index = len(graph.expressions)

    @property
    def is_mask(self) -> bool:
        return self.op in MASKS

    @property
    def is_zero(self) -> bool:
        """A structural zero."""
        return self is self.graph.zero

    @property
    def number(self) -> float | None:
        """The number that a constant is; None for the rest."""
        return float(self.value) if self.op == "const" and self.value is not None else None

    def __add__(self, other: Expression | Number) -> Expression:
        return self.graph.make("add", self, other)

    def __radd__(self, other: Number) -> Expression:
        return self.graph.make("add", other, self)

    def __sub__(self, other: Expression | Number) -> Expression:
        return self.graph.make("sub", self, other)

    def __rsub__(self, other: Number) -> Expression:
        return self.graph.make("sub", other, self)

    def __mul__(self, other: Expression | Number) -> Expression:
        return self.graph.make("mul", self, other)

    def __rmul__(self, other: Number) -> Expression:
        return self.graph.make("mul", other, self)

    def __truediv__(self, other: Expression | Number) -> Expression:
        return self.graph.make("div", self, other)

    def __rtruediv__(self, other: Number) -> Expression:
        return self.graph.make("div", other, self)

    def __neg__(self) -> Expression:
        return self.graph.make("neg", self)

    def __abs__(self) -> Expression:
        return self.graph.make("abs", self)

    def __gt__(self, other: Expression | Number) -> Expression:
        return self.graph.make("gt", self, other)

    def __ge__(self, other: Expression | Number) -> Expression:
        return self.graph.make("ge", self, other)

    def __lt__(self, other: Expression | Number) -> Expression:
        return self.graph.make("lt", self, other)

    def __le__(self, other: Expression | Number) -> Expression:
        return self.graph.make("le", self, other)

    def __and__(self, other: Expression) -> Expression:
        return self.graph.make("and", self, other)

    def __or__(self, other: Expression) -> Expression:
        return self.graph.make("or", self, other)

    def __invert__(self) -> Expression:
        return self.graph.make("not", self)

    def __repr__(self) -> str:
        return str(self.value) if self.op in LEAVES else f"{self.op}({', '.join(map(repr, self.args))})"


class Graph:
    """The expressions of a cell, each made once."""

    def __init__(self) -> None:
        self.expressions: list[Expression] = []
        self._known: dict[tuple[object, ...], Expression] = {}
        self.zero = self._intern("const", (), 0.0, "structural")

    def input(self, name: str) -> Expression:
        return self._intern("in", (), name)

    def constant(self, number: Number) -> Expression:
        number = float(number)
        # By its text, since 0.0 == -0.0 and nan != nan.
        return self._intern("const", (), number, repr(number))

    def value(self, operand: Expression | Number) -> Expression:
        """The operand as a value: a number is a constant, a mask is 1 or 0."""
        if not isinstance(operand, Expression):
            return self.constant(operand)
        return self.make("where", operand, 1.0, 0.0) if operand.is_mask else operand

    def mask(self, operand: Expression | Number) -> Expression:
        """The operand as a mask: a value is true where it is not 0."""
        if isinstance(operand, Expression) and operand.is_mask:
            return operand
        return self.make("ne", operand, 0.0)

    def make(self, op: str, *operands: Expression | Number) -> Expression:
        """``op`` of the operands, in its simplest form."""
        if op in ("and", "or", "xor", "not"):
            args = tuple(self.mask(operand) for operand in operands)
        elif op == "where":
            args = (self.mask(operands[0]), *(self.value(operand) for operand in operands[1:]))
        else:
            args = tuple(self.value(operand) for operand in operands)
        folded = self._fold(op, args) if args and all(arg.op == "const" for arg in args) else None
        if folded is not None:
            return folded
        rule = _RULES.get(op)
        simpler = rule(self, *args) if rule else None
        if simpler is not None:
            return simpler
        if op in COMMUTATIVE:
            args = tuple(sorted(args, key=lambda arg: arg.index))
        return self._intern(op, args)

    def _fold(self, op: str, args: tuple[Expression, ...]) -> Expression | None:
        numbers = [arg.number for arg in args]
        if op not in _FOLDS or (op in ("mul", "div", "neg") and args[0].is_zero):
            return None
        try:
            return self.constant(_FOLDS[op](*numbers))
        except (ArithmeticError, ValueError):
            return None

    def _intern(
        self, op: str, args: tuple[Expression, ...], value: float | str | None = None, key: str | None = None
    ) -> Expression:
        known = (op, key or value, *(arg.index for arg in args))
        if known not in self._known:
            self._known[known] = Expression(self, op, args, value)
            self.expressions.append(self._known[known])
        return self._known[known]


def reachable(roots: Iterable[Expression], given: Container[Expression] = ()) -> set[Expression]:
    """The roots and all that they are made of; not what the ``given`` ones are made of."""
    found: set[Expression] = set()
    pending = list(roots)
    while pending:
        expression = pending.pop()
        if expression not in found:
            found.add(expression)
            pending += () if expression in given else expression.args
    return found


def _divide(a: float, b: float) -> float:
    return a / b if b else math.copysign(math.inf, a) * math.copysign(1, b) if a else math.nan


_FOLDS: dict[str, Callable[..., float]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": _divide,
    "neg": operator.neg,
    "abs": abs,
    "exp": math.exp,
    "expm1": math.expm1,
    "log": math.log,
    "log1p": math.log1p,
    "sqrt": math.sqrt,
    "sin": math.sin,
    "cos": math.cos,
    "tanh": math.tanh,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "atan": math.atan,
    "erf": math.erf,
    "erfc": math.erfc,
    "floor": math.floor,
    "round": round,
    "trunc": math.trunc,
    "maximum": lambda a, b: math.nan if a != a or b != b else max(a, b),
    "minimum": lambda a, b: math.nan if a != a or b != b else min(a, b),
    "pow": math.pow,
    "fmod": math.fmod,
}


def _add(graph: Graph, a: Expression, b: Expression) -> Expression | None:
    if a.number == 0:
        return b
    if b.number == 0:
        return a
    if b.op == "neg":
        return graph.make("sub", a, b.args[0])
    if a.op == "neg":
        return graph.make("sub", b, a.args[0])
    return None


def _sub(graph: Graph, a: Expression, b: Expression) -> Expression | None:
    if b.number == 0:
        return a
    if a.number == 0:
        return -b
    return a + b.args[0] if b.op == "neg" else None


def _mul(graph: Graph, a: Expression, b: Expression) -> Expression | None:
    for one, other in ((a, b), (b, a)):
        if one.is_zero:
            return graph.zero
        if one.number in (1, -1):
            return other if one.number == 1 else -other
        if one.op == "neg":
            return -(one.args[0] * other) if other.op != "const" else one.args[0] * -other
    return None


def _is_power_of_two(number: float) -> bool:
    """Of a normal float32, as its reciprocal is."""
    fraction, exponent = math.frexp(number)
    return abs(fraction) == 0.5 and abs(exponent - 1) <= 126


def _div(graph: Graph, a: Expression, b: Expression) -> Expression | None:
    if a.is_zero:
        return graph.zero
    if b.number and _is_power_of_two(b.number):
        return a * (1 / b.number)
    if a.op == "neg":
        return -(a.args[0] / b)
    return -(a / b.args[0]) if b.op == "neg" else None


def _neg(graph: Graph, a: Expression) -> Expression | None:
    if a.is_zero or a.op == "neg":
        return a if a.is_zero else a.args[0]
    if a.op == "sub":
        return a.args[1] - a.args[0]
    constants = [arg for arg in a.args if arg.op == "const"] if a.op == "mul" else []
    if constants:
        other = a.args[1] if a.args[0] is constants[0] else a.args[0]
        return other * -constants[0]
    return None


def _abs(graph: Graph, a: Expression) -> Expression | None:
    return abs(a.args[0]) if a.op == "neg" else a if a.op == "abs" else None


def _same(graph: Graph, a: Expression, b: Expression) -> Expression | None:
    return a if a is b else None


def _pow(graph: Graph, a: Expression, b: Expression) -> Expression | None:
    """Integer and half-integer exponents up to 4 by products and a square root."""
    exponent = b.number
    if exponent is None or abs(exponent) > 4 or exponent * 2 != round(exponent * 2):
        return None
    if exponent < 0:
        return 1 / graph.make("pow", a, -exponent)
    whole, result = int(exponent), None if exponent == int(exponent) else graph.make("sqrt", a)
    square = a * a if whole >= 2 else a
    for factor in (square,) * (whole // 2) + (a,) * (whole % 2):
        result = factor if result is None else result * factor
    if result is None:
        return graph.constant(1)
    if whole == exponent or whole == 0:
        return result
    # At -inf the square root is NaN, and -0 at -0, as torch's power of 0.5 is; its other powers are infinite, and 0.
    return graph.make("where", graph.make("eq", a, -math.inf), math.inf, abs(result))


def _where(graph: Graph, mask: Expression, a: Expression, b: Expression) -> Expression | None:
    if a is b:
        return a
    if mask.op == "not":
        return graph.make("where", mask.args[0], b, a)
    if a.op == "where" and a.args[0] is mask:
        return graph.make("where", mask, a.args[1], b)
    if b.op == "where" and b.args[0] is mask:
        return graph.make("where", mask, a, b.args[2])
    return None


def _comparison_of_mask(graph: Graph, a: Expression, b: Expression) -> Expression | None:
    """(mask ? 1 : 0) > 0 and != 0 are the mask."""
    if a.op == "where" and (a.args[1].number, a.args[2].number, b.number) == (1, 0, 0):
        return a.args[0]
    return None


def _not(graph: Graph, a: Expression) -> Expression | None:
    opposite = {"eq": "ne", "ne": "eq"}.get(a.op)  # of the others the opposite differs for NaN
    if opposite:
        return graph.make(opposite, *a.args)
    return a.args[0] if a.op == "not" else None


_RULES: dict[str, Callable[..., Expression | None]] = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "neg": _neg,
    "abs": _abs,
    "pow": _pow,
    "where": _where,
    "maximum": _same,
    "minimum": _same,
    "and": _same,
    "or": _same,
    "gt": _comparison_of_mask,
    "ne": _comparison_of_mask,
    "not": _not,
}
