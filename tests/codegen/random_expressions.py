"""Random cells. ``python -m tests.codegen.random_expressions --seconds N`` compares new ones for so long."""

from __future__ import annotations

import argparse
import random
import re
import tempfile
import time
from pathlib import Path

import torch

from prnn.codegen import Signature, spike
from tests.codegen.harness import Cell, Library

UNARY = (
    *(
        "tanh(x)",
        "sigmoid(x)",
        "sin(x)",
        "cos(x)",
        "relu(x)",
        "-x",
        "abs(x)",
        "atan(x)",
        "erf(x)",
        "gelu(x)",
        "silu(x)",
    ),
    *("exp(-abs(x))", "exp(x.clamp(-2, 2))", "expm1(x.clamp(max=1))", "log(x * x + 0.5)", "log1p(abs(x))"),
    *("x * x", "x * 0.5", "1 - x", "x + 0.25", "-2 * x", "sqrt(1 + x * x)", "x / (1 + x * x)", "1 / (2 + cos(x))"),
    *("(x * x + 0.5) ** 1.3", "tanh(x) ** 3", "1.5 ** sin(x)", "softplus(x)", "x.clamp(-1, 1)", "x.clamp(min=0.1)"),
    *("x.detach()", "x.floor() * x", "(x > 0).to(x.dtype)", "elu(x)", "torch.sign(x) * x.round()"),
    *("spike(x - 0.25, 2.0)", 'spike(x, 2.0, "atan")', 'spike(x + 0.5, 4.0, "triangle")', 'spike(x, 1.0, "boxcar")'),
)
BINARY = ("x + y", "x - y", "x * y", "x / (1 + y * y)", "maximum(x, y)", "minimum(x, y)", "where(x > y, x, y * 0.5)")
BINARY += ("where((x < 1) & ~(y >= 0), y, x)", "where((x > 0) ^ (y > 0) | (x == y), x, x * y)", "where(x != y, y, x)")
BINARY += ("torch.lerp(x, y, 0.3)", "(abs(x) + 0.5) ** tanh(y)", "torch.addcmul(x, tanh(x), y)")
BINARY += (
    "where(x <= y, tanh(x), 0.0)",
    "x.masked_fill(y > 0.5, 0.25)",
    "torch.hypot(x + 3, y)",
    "x.clamp(y - 1, y * y)",
)
# Of a parameter alone: computed once a call.
HOISTED = ("sigmoid(x)", "exp(-softplus(x))", "x.clamp(-0.5, 0.5)", "1 - 2 * tanh(x) ** 2", "x.detach() * 0.5")
# Bounded, so that a state stays so however many steps there are.
BOUNDED = (
    "tanh(x)",
    "sigmoid(x)",
    "sin(x)",
    "x.clamp(-2, 2)",
    "2 * x / (1 + x * x)",
    "spike(x - 0.25, 2.0)",
    "atan(x)",
)
INEXACT = ("erf(", "gelu(", "1.5 **", '"atan"')  # their derivatives have constants that are a float's, not a double's
STATES = ("h", "v", "w", "z")
FUNCTIONS = ("tanh", "sigmoid", "sin", "cos", "relu", "abs", "exp", "expm1", "log", "log1p", "atan", "erf", "sqrt")
NAMES = {name: getattr(torch, name) for name in (*FUNCTIONS, "maximum", "minimum", "where")}
NAMES |= {name: getattr(torch.nn.functional, name) for name in ("gelu", "silu", "softplus", "elu")}
NAMES |= {"torch": torch, "spike": spike}


def random_cell(seed: int) -> Cell:
    """A cell whose results are random functions of its arguments and of each other, bounded ones."""
    draw = random.Random(seed)
    states = STATES[: draw.choice((1, 2, 2, 3, 4))]
    params, inputs = ("a", "b", "c")[: draw.randint(0, 3)], ("e", "f")[: draw.choice((0, 0, 1, 2))]
    output, recurrent = draw.choice([*states, "y"]), draw.choice(("dense", "dense", "diagonal", "none"))
    signature = Signature(draw.choice((1, 1, 2, 3, 4, 6)), states, params, inputs, output, recurrent)
    values = [f"{kind}[{g}]" for kind in ("gx", "gh") for g in range(signature.gates)]
    values += [f"state.{n}" for n in states] + [f"inputs.{n}" for n in inputs]
    given = len(values)  # of the shape of a result, as what is made of them is
    lines, alone = [], [f"p.{n}" for n in params]

    def line(formula: str, x: str, y: str = "") -> str:
        lines.append(f"u{len(lines)} = {filled(formula, x, y)}")
        return f"u{len(lines) - 1}"

    for _ in range(draw.randint(0, 2) if params else 0):
        alone.append(line(draw.choice(HOISTED), draw.choice(alone)))
    for _ in range(draw.randint(3, 12)):
        # Recent values more often, so that the graph is deep.
        x, y = (draw.choice(values[-4:] if draw.random() < 0.5 else values) for _ in range(2))
        if alone and draw.random() < 0.3:
            y = draw.choice(alone)
        values.append(line(draw.choice(UNARY if draw.random() < 0.4 else BINARY), x, y))

    def result() -> str:
        if draw.random() < 0.15:  # a gate, a state or an input as it is
            return draw.choice(values[:given])
        return filled(draw.choice(BOUNDED), draw.choice(values[-6:]), "")

    results = ", ".join(f'"{name}": {result()}' for name in signature.results)
    source = "\n    ".join(["def cell(gx, gh, state, p, inputs):", *lines, f"return {{{results}}}"])
    found: dict = {}
    exec(source, dict(NAMES), found)
    found["cell"].source = source
    return Cell(found["cell"], signature, exact=not any(part in source for part in INEXACT))


def filled(formula: str, x: str, y: str) -> str:
    """The formula of these arguments."""
    return re.sub(r"\b[xy]\b", lambda found: x if found[0] == "x" else y, formula)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1000)
    options = parser.parse_args()
    seed, end = options.seed, time.monotonic() + options.seconds
    while time.monotonic() < end:
        cells = {str(number): random_cell(number) for number in range(seed, seed + 50)}
        with tempfile.TemporaryDirectory() as folder:
            library = Library(cells, Path(folder))
            for name, cell in cells.items():
                try:
                    library.compare(name)
                except Exception as error:
                    print(f"seed {name}: {error}\n{cell.function.source}")
        seed += 50
    print(f"{seed - options.seed} cells")


if __name__ == "__main__":
    main()
