"""The C++ struct of a cell, by the contract of csrc/cells.h: names from the user's code, one expression a line."""

from __future__ import annotations

import hashlib
import inspect
import math
import re
import struct
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prnn.codegen.expressions import COMPARISONS, Expression, reachable
from prnn.codegen.partition import Partition
from prnn.codegen.signature import CellFunction, location
from prnn.codegen.trace import Trace

_LONGEST = 72  # characters of an expression that is written into another
_ATOM, _UNARY, _PRODUCT, _SUM, _COMPARISON, _AND, _XOR, _OR, _TERNARY = range(9)  # C++'s precedence
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
    "and": ("&", _AND),
    "xor": ("^", _XOR),
    "or": ("|", _OR),
}
_FUNCTIONS = {"maximum": "max_of", "minimum": "min_of"}
_FUNCTIONS |= {
    name: f"{name}_of"
    for name in "tanh sigmoid exp expm1 log log1p sqrt sin cos atan erf erfc abs floor round trunc pow fmod".split()  # noqa: SIM905
}
# What a variable is not called: C++'s keywords, macros of its headers, and the names of the contract.
_RESERVED = frozenset(
    """alignas alignof and and_eq asm auto bitand bitor bool break case catch char class compl concept const consteval
    constexpr constinit const_cast continue co_await co_return co_yield decltype default delete do double dynamic_cast
    else enum explicit export extern false float for friend goto if inline int long mutable namespace new noexcept not
    not_eq nullptr operator or or_eq private protected public register reinterpret_cast requires return short signed
    sizeof static static_assert static_cast struct switch template this thread_local throw true try typedef typeid
    typename union unsigned using virtual void volatile wchar_t while xor xor_eq errno stdin stdout stderr linux unix
    assert V forward backward state_at gates_x gates_h h h_prev states params inputs saved grad_h grad_states
    states_prev grad_x grad_gates_h grad_params grad_inputs constant_of""".split()  # noqa: SIM905
) | frozenset(_FUNCTIONS.values())


@dataclass(frozen=True)
class Emitted:
    """A struct's ``text``, and its constants. ``states``: besides h, an output that is not a state included;
    ``params``: derived parameters; ``output``: -1 for h, else the number of a state. ``spikes``: h is 0 or 1.
    """

    text: str
    gates: int
    saved: int
    states: int
    params: int
    inputs: int
    output: int
    splits_gates: bool
    needs_h_prev: bool
    spikes: bool

    @property
    def digest(self) -> str:
        """A hash of what the struct computes, wherever the function stands."""
        code = "\n".join(line for line in self.text.splitlines() if not line.startswith("//"))
        return hashlib.sha256(code.encode()).hexdigest()[:16]


def emit(trace: Trace, parts: Partition, function: CellFunction, struct_name: str) -> Emitted:
    """The struct ``struct_name`` for what ``function`` was traced to."""
    signature, grads = trace.signature, trace.grads
    names = _variable_names(trace)
    forward, backward = _forward(trace, parts, names), _backward(trace, parts, names)
    others = signature.results[1:]
    gates = range(signature.gates)
    at = [*parts.state_at, *([-1] if signature.pseudo_state else [])] or [-1]
    emitted = Emitted(
        text="",
        gates=signature.gates,
        saved=len(parts.saved),
        states=len(others),
        params=len(trace.params),
        inputs=len(signature.inputs),
        output=-1 if signature.output == "h" else others.index(signature.output),
        splits_gates=any(grads[f"gates_x {g}"] is not grads[f"gates_h {g}"] for g in gates),
        needs_h_prev="h_prev" in backward.used,
        spikes=_is_spike(trace.results[0]),
    )
    e = emitted
    text = f"""{_source(function)}
struct {struct_name} {{
  static constexpr int kGates = {e.gates}, kSaved = {e.saved}, kStates = {e.states};
  static constexpr int kParams = {e.params}, kInputs = {e.inputs}, kOutput = {e.output};
  static constexpr bool kSplitsGates = {_bool(e.splits_gates)}, kRoundsSaved = false, kHeads = true;
  static constexpr bool kHasWeights = {_bool(signature.recurrent != "none")};
  static constexpr bool kNeedsH = {_bool("h" in backward.used)}, kNeedsHPrev = {_bool(e.needs_h_prev)};
  static PRNN_BOTH constexpr int state_at(int k) {{
    constexpr int at[] = {{{", ".join(map(str, at))}}};
    return at[k];
  }}

{forward.definition("forward", _FORWARD)}
{backward.definition("backward", _BACKWARD)}
}};
"""
    return Emitted(**{**vars(emitted), "text": text})


def _is_spike(h: Expression) -> bool:
    """Whether it is 0 or 1."""
    return h.op == "where" and all(branch.op == "const" and branch.number in (0, 1) for branch in h.args[1:])


_FORWARD = {"gates_x": "const V*", "gates_h": "const V*", "h_prev": "V", "states": "V*", "params": "const V*"}
_FORWARD |= {"inputs": "const V*", "saved": "V*"}
_BACKWARD = {"grad_h": "V", "grad_states": "V*", "h": "V", "h_prev": "V", "states_prev": "const V*"}
_BACKWARD |= {"params": "const V*", "inputs": "const V*", "saved": "const V*", "grad_x": "V*", "grad_gates_h": "V*"}
_BACKWARD |= {"grad_params": "V*", "grad_inputs": "V*"}


class _Body:
    """The statements of one function.

    ``given``: the C++ of what need not be computed. A value that is used once and has no name of the user's is written
    where it is used.
    """

    def __init__(
        self, roots: Iterable[Expression], given: Mapping[Expression, str], names: Mapping[Expression, str]
    ) -> None:
        self.lines: list[str] = []
        self.used: set[str] = set()  # the arguments
        self._given, self._names = given, names
        self._texts: dict[Expression, tuple[str, int]] = {}
        self._temporaries = 0
        roots = list(roots)
        self._uses = Counter(roots)
        self._kept = set(roots)
        for expression in reachable(roots, given):
            self._uses.update(() if expression in given else expression.args)

    def compute(self, root: Expression) -> str:
        """The variable or constant that holds ``root``, as a V."""
        for expression in sorted(reachable([root], self._given), key=lambda expression: expression.index):
            if expression not in self._texts and expression.op != "const":
                self._texts[expression] = self._write(expression)
        return self._vector(root)

    def assign(self, argument: str, target: str, text: str) -> None:
        self.used.add(argument)
        self.lines.append(f"{target} = {text};")

    def definition(self, name: str, arguments: Mapping[str, str]) -> str:
        """The function, whose unused arguments have no name."""
        listed = ", ".join(  # lines break between arguments
            f"{kind} {argument}".replace(" ", "\0") if argument in self.used else kind.replace(" ", "\0")
            for argument, kind in arguments.items()
        )
        start = f"  PRNN_CELL_FUNCTION V {name}("
        head = textwrap.fill(f"{start}{listed})\0{{", 118, subsequent_indent=" " * len(start)).replace("\0", " ")
        return "\n".join([head, *(f"    {line}" for line in self.lines), "  }"])

    def _write(self, expression: Expression) -> tuple[str, int]:
        """How to refer to the expression, after a line that computes it if it needs one."""
        if expression in self._given:
            text, level = self._given[expression], _ATOM
            self.used.add(text.partition("[")[0])
            if "[" not in text:
                return text, level
            if expression.is_mask:
                text, level = f"{text} > constant_of<V>(0.5f)", _COMPARISON
        else:
            text, level = self._text(expression)
            once = self._uses[expression] == 1 and expression not in self._kept
            if once and expression not in self._names and len(text) <= _LONGEST:
                return text, level
        name = self._names.get(expression)
        # A state is read into a variable, before it is written; another argument that is used once, where it is used.
        once = self._uses[expression] == 1 and not text.startswith("states[") and not expression.is_mask
        if name is None and expression in self._given and once:
            return text, level
        if name is None:
            self._temporaries += 1
            name = f"t{self._temporaries}"
        self.lines.append(f"const {'auto' if expression.is_mask else 'V'} {name} = {text};")
        return name, _ATOM

    def _text(self, expression: Expression) -> tuple[str, int]:
        op, args = expression.op, expression.args
        if op in _BINARY:
            sign, level = _BINARY[op]
            operand = self._vector if op in COMPARISONS else self._operand
            if op in ("add", "mul") and args[0].op == "const":
                args = args[::-1] if op == "add" else args
            # Parentheses on the right keep the order of evaluation; between & and | they please the compiler.
            left = operand(args[0], level if level < _COMPARISON else _UNARY)
            right = operand(args[1], level - 1 if level < _COMPARISON else _UNARY)
            return f"{left} {sign} {right}", level
        if op == "neg":
            return f"-{self._operand(args[0], _ATOM)}", _UNARY
        if op == "where":
            mask = self._operand(args[0], _COMPARISON)
            return f"{mask} ? {self._vector(args[1], _OR)} : {self._vector(args[2], _OR)}", _TERNARY
        if op == "not":
            mask = self._operand(args[0], _COMPARISON)
            return f"({mask} ? constant_of<V>(0.0f) : constant_of<V>(1.0f)) > constant_of<V>(0.5f)", _COMPARISON
        return f"{_FUNCTIONS[op]}({', '.join(map(self._vector, args))})", _ATOM

    def _operand(self, expression: Expression, level: int = _TERNARY) -> str:
        """The expression, in parentheses if it binds less tightly than ``level``; a constant as a float."""
        if expression.op == "const":
            text = literal(expression)
            return f"({text})" if text.startswith("-") else text
        text, own = self._texts[expression]
        return f"({text})" if own > level else text

    def _vector(self, expression: Expression, level: int = _TERNARY) -> str:
        if expression.op == "const":
            return f"constant_of<V>({literal(expression)})"
        return self._operand(expression, level)


def _forward(trace: Trace, parts: Partition, names: Mapping[Expression, str]) -> _Body:
    results = trace.results
    names = {**names, results[0]: "h"} if results[0].op not in ("in", "const") else names
    body = _Body([*results, *parts.saved], _inputs(trace, "states"), names)
    # All states are read before the first is written.
    texts = {expression: body.compute(expression) for expression in (*results, *parts.saved)}
    for place, expression in enumerate(parts.saved):
        text = texts[expression]
        body.assign("saved", f"saved[{place}]", f"{text} ? {_ONE} : {_ZERO}" if expression.is_mask else text)
    for k, expression in enumerate(results[1:]):
        body.assign("states", f"states[{k}]", texts[expression])
    body.lines.append(f"return {texts[results[0]]};")
    return body


_ONE, _ZERO = "constant_of<V>(1.0f)", "constant_of<V>(0.0f)"


def _backward(trace: Trace, parts: Partition, names: Mapping[Expression, str]) -> _Body:
    signature, grads = trace.signature, trace.grads
    given = _inputs(trace, "states_prev")
    given |= {expression: f"saved[{place}]" for place, expression in enumerate(parts.saved)}
    if trace.results[0].op not in ("in", "const"):
        given[trace.results[0]] = "h"
    body = _Body(grads.values(), given, names)
    texts = {name: body.compute(expression) for name, expression in grads.items()}
    for g in range(signature.gates):
        body.used |= {"grad_x", "grad_gates_h"}
        if texts[f"gates_x {g}"] == texts[f"gates_h {g}"]:
            body.lines.append(f"grad_x[{g}] = grad_gates_h[{g}] = {texts[f'gates_x {g}']};")
        else:
            body.lines.append(f"grad_x[{g}] = {texts[f'gates_x {g}']};")
            body.lines.append(f"grad_gates_h[{g}] = {texts[f'gates_h {g}']};")
    for k, name in enumerate(signature.states[1:]):
        body.assign("grad_states", f"grad_states[{k}]", texts[f"state {name}"])
    if signature.pseudo_state:
        body.assign("grad_states", f"grad_states[{len(signature.states) - 1}]", _ZERO)
    for k, param in enumerate(trace.params):
        body.assign("grad_params", f"grad_params[{k}]", texts[str(param.value)])
    for k, name in enumerate(signature.inputs):
        body.assign("grad_inputs", f"grad_inputs[{k}]", texts[f"input {name}"])
    body.lines.append(f"return {texts['state h']};")
    return body


def _inputs(trace: Trace, states: str) -> dict[Expression, str]:
    """The C++ of the graph's inputs."""
    signature, graph = trace.signature, trace.graph
    texts = {f"{kind} {g}": f"{kind}[{g}]" for kind in ("gates_x", "gates_h") for g in range(signature.gates)}
    texts |= {f"state {name}": f"{states}[{k}]" for k, name in enumerate(signature.states[1:])}
    texts |= {f"grad {name}": f"grad_states[{k}]" for k, name in enumerate(signature.results[1:])}
    texts |= {f"input {name}": f"inputs[{k}]" for k, name in enumerate(signature.inputs)}
    texts |= {str(param.value): f"params[{k}]" for k, param in enumerate(trace.params)}
    texts |= {"state h": "h_prev", "grad h": "grad_h"}
    return {graph.input(name): text for name, text in texts.items()}


def _variable_names(trace: Trace) -> dict[Expression, str]:
    """C++ variables for what the user named, and for the inputs; each once."""
    signature, graph = trace.signature, trace.graph
    wanted = {expression: name for expression, name in trace.names.items() if expression.op != "in"}
    for name in signature.results[1:]:
        wanted[graph.input(f"grad {name}")] = f"grad_{name}"
    for name in signature.states[1:]:
        wanted[graph.input(f"state {name}")] = f"{name}_prev"
    for param in trace.params:
        wanted[param] = trace.names.get(param, str(param.value).removeprefix("param "))
    for name in signature.inputs:
        wanted[graph.input(f"input {name}")] = name
    taken = set(_RESERVED)
    names: dict[Expression, str] = {}
    for expression, name in wanted.items():
        identifier = re.sub(r"_+", "_", re.sub(r"\W", "", name, flags=re.ASCII)).strip("_")
        if not identifier or re.fullmatch(r"t?\d+", identifier):
            continue
        identifier = identifier.lower() if identifier.isupper() else identifier
        number, unique = 1, identifier
        while unique in taken:
            number, unique = number + 1, f"{identifier}_{number + 1}"
        taken.add(unique)
        names[expression] = unique
    return names


def literal(expression: Expression) -> str:
    """A constant as a float: the shortest decimal that is this float."""
    assert expression.number is not None
    try:
        number = _as_float(expression.number)
    except OverflowError:
        number = math.copysign(math.inf, expression.number)
    if math.isnan(number):
        return '__builtin_nanf("")'
    if math.isinf(number):
        return f"{'-' if number < 0 else ''}__builtin_inff()"
    shortest = next(text for digits in range(1, 10) if _as_float(float(text := f"{number:.{digits}g}")) == number)
    return f"{float(shortest)!r}f"


def _as_float(number: float) -> float:
    """The nearest float32."""
    return struct.unpack("f", struct.pack("f", number))[0]


def _source(function: CellFunction) -> str:
    """The function's source as a comment, without backslashes at the ends of lines, which would continue them."""
    try:
        lines = textwrap.dedent(inspect.getsource(function)).rstrip().splitlines()
    except (OSError, TypeError):
        lines = []
    return "\n".join(f"// {line.rstrip().rstrip(chr(92))}".rstrip() for line in [f"{location(function)}:", *lines])


def _bool(value: bool) -> str:
    return "true" if value else "false"
