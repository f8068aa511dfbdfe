"""Expressions as statements of C99, in float: one expression a line, with the names of the Python source."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping

import torch

from prnn.codegen.expressions import COMPARISONS, Expression, reachable

_LONGEST = 72  # characters of an expression that is written into another
_ATOM, _UNARY, _PRODUCT, _SUM, _COMPARISON, _TERNARY = range(6)  # C's precedence
_BINARY = {
    "add": ("+", _SUM),
    "sub": ("-", _SUM),
    "mul": ("*", _PRODUCT),
    "div": ("/", _PRODUCT),
    "gt": (">", _COMPARISON),
    "ge": (">=", _COMPARISON),
    "lt": ("<", _COMPARISON),
    "le": ("<=", _COMPARISON),
    "eq": ("==", _COMPARISON),
    "ne": ("!=", _COMPARISON),
    # Not && and ||, whose branches are in the way of vectors.
    "and": ("&", _TERNARY),
    "xor": ("^", _TERNARY),
    "or": ("|", _TERNARY),
}
_MATH = """acos asin atan atan2 ceil copysign cos cosh erf erfc exp exp2 expm1 fabs fdim floor fma fmax fmin fmod frexp
    hypot ilogb ldexp lgamma llrint llround log log10 log1p log2 logb lrint lround modf nan nearbyint nextafter
    nexttoward pow remainder remquo rint round scalbln scalbn sin sinh sqrt tan tanh tgamma trunc""".split()  # noqa: SIM905
# Keywords, what <math.h>, <stdio.h> and <stdint.h> declare and a variable may be called, and names of the source.
RESERVED = frozenset(
    """auto break case char const continue default do double else enum extern float for goto if inline int long
    register restrict return short signed sizeof static struct switch typedef union unsigned void volatile while
    asm typeof linux unix errno stdin stdout stderr NULL INFINITY NAN INFINITE NOT_A_NUMBER main
    y0 y1 yn j0 j1 jn gamma signgam index remove rename time div abs exit malloc free signal
    state input output frames workspace scratch units product product_int8 softmax log_softmax normalise""".split()  # noqa: SIM905
) | {f"{name}{suffix}" for name in _MATH for suffix in ("", "f", "l")}
# Temporaries, types, macros and functions of the source.
_RESERVED_FORMS = re.compile(r"t\d+|\w+_t|\w+_of|[A-Z][A-Z0-9_]+")


def identifier(name: str, taken: set[str]) -> str:
    """``name`` as an identifier of C that is not in ``taken``, to which it is added."""
    plain = re.sub(r"_+", "_", re.sub(r"\W", "_", name, flags=re.ASCII)).strip("_") or "value"
    plain = f"n{plain}" if plain[0].isdigit() else plain
    number, unique = 1, plain
    while unique in taken or unique in RESERVED or _RESERVED_FORMS.fullmatch(unique):
        plain = f"{plain}_weight" if _RESERVED_FORMS.fullmatch(f"{plain}_2") else plain
        number, unique = number + 1, f"{plain}_{number + 1}"
    taken.add(unique)
    return unique


class Body:
    """The statements that compute expressions.

    ``given``: the C of what need not be computed; what ``names`` has is a variable of that name. The rest is a variable
    where it is used more than once or is long. ``functions`` collects the functions that are called.
    """

    def __init__(
        self,
        roots: Iterable[Expression],
        given: Mapping[Expression, str],
        names: Mapping[Expression, str],
        functions: set[str],
    ) -> None:
        self.lines: list[str] = []
        self._given, self._names, self._functions = given, names, functions
        self._texts: dict[Expression, tuple[str, int]] = {}
        self._temporaries = 0
        roots = list(roots)
        self._uses = Counter(roots)
        for expression in reachable(roots, given):
            self._uses.update(() if expression in given else expression.args)

    def compute(self, root: Expression) -> str:
        """What stands for ``root``: a variable, a constant or an expression."""
        for expression in sorted(reachable([root], self._given), key=lambda expression: expression.index):
            if expression not in self._texts and expression.op != "const":
                self._texts[expression] = self._write(expression)
        return f"{self._operand(root, _COMPARISON)} ? 1.0f : 0.0f" if root.is_mask else self._operand(root)

    def _write(self, expression: Expression) -> tuple[str, int]:
        """How to refer to the expression, after a line that computes it if it needs one."""
        text, level = (self._given[expression], _ATOM) if expression in self._given else self._text(expression)
        name = self._names.get(expression)
        if name is None and (self._uses[expression] == 1 or re.fullmatch(r"\w+", text)) and len(text) <= _LONGEST:
            return text, level
        if name is None:
            self._temporaries += 1
            name = f"t{self._temporaries}"
        self.lines.append(f"const {'int' if expression.is_mask else 'float'} {name} = {text};")
        return name, _ATOM

    def _text(self, expression: Expression) -> tuple[str, int]:
        op, args = expression.op, expression.args
        if op in _BINARY:
            sign, level = _BINARY[op]
            if op in ("add", "mul") and args[0].op == "const":
                args = args[::-1] if op == "add" else args
            # Parentheses on the right keep the order of evaluation; around comparisons they silence a warning.
            if op in COMPARISONS:
                return f"{self._operand(args[0], _SUM)} {sign} {self._operand(args[1], _SUM)}", level
            if level == _TERNARY:
                return f"{self._operand(args[0], _UNARY)} {sign} {self._operand(args[1], _UNARY)}", level
            return f"{self._operand(args[0], level)} {sign} {self._operand(args[1], level - 1)}", level
        if op == "neg":
            return f"-{self._operand(args[0], _ATOM)}", _UNARY
        if op == "not":
            return f"!{self._operand(args[0], _ATOM)}", _UNARY
        if op == "where":
            branches = (self._operand(arg, _COMPARISON) for arg in args[1:])
            return f"{self._operand(args[0], _COMPARISON)} ? {' : '.join(branches)}", _TERNARY
        self._functions.add(f"{op}_of")
        return f"{op}_of({', '.join(map(self._operand, args))})", _ATOM

    def _operand(self, expression: Expression, level: int = _TERNARY) -> str:
        """The expression, in parentheses if it binds less tightly than ``level``."""
        if expression.op == "const":
            text = constant(expression)
            return f"({text})" if text.startswith("-") and level < _TERNARY else text
        text, own = self._texts[expression]
        return f"({text})" if own > level else text


def constant(expression: Expression) -> str:
    """A constant of C99."""
    assert expression.number is not None
    return number(expression.number)


def number(value: float) -> str:
    """A number as a float of C99: nine digits tell any two apart."""
    value = float(torch.tensor(value, dtype=torch.float32))  # 0 where it is too small
    if math.isnan(value):
        return "NOT_A_NUMBER"
    if math.isinf(value):
        return "-INFINITE" if value < 0 else "INFINITE"
    text = f"{value:.9g}"
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"
