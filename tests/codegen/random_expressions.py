"""Random cells. ``python -m tests.codegen.random_expressions --seconds N`` compares new ones for so long."""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

import torch

from prnn.codegen import Signature
from tests.codegen.harness import Cell, Library

UNARY = (
    "tanh(x)",
    "sigmoid(x)",
    "sin(x)",
    "relu(x)",
    "-x",
    "abs(x)",
    "exp(-abs(x))",
    "x.clamp(-1, 1)",
    "x * x",
    "atan(x)",
)
UNARY += (
    "x * 0.5",
    "1 - x",
    "x.detach()",
    "sqrt(1 + x * x)",
    "x.floor() * x",
    "(x > 0).to(x.dtype)",
    "x + 0.25",
    "-2 * x",
)
BINARY = ("x + y", "x - y", "x * y", "x / (1 + y * y)", "maximum(x, y)", "minimum(x, y)", "where(x > y, x, y * 0.5)")
BINARY += ("where((x < 1) & ~(y >= 0), y, x)", "where((x > 0) ^ (y > 0) | (x == y), x, x * y)", "where(x != y, y, x)")
FUNCTIONS = ("tanh", "sigmoid", "sin", "relu", "abs", "exp", "atan", "sqrt", "maximum", "minimum", "where")
NAMES = {name: getattr(torch, name) for name in FUNCTIONS}


def random_cell(seed: int) -> Cell:
    """A cell whose results are random functions of its arguments and of each other."""
    draw = random.Random(seed)
    states = ("h", "v", "w")[: draw.randint(1, 3)]
    params, inputs = ("a", "b")[: draw.randint(0, 2)], ("e",)[: draw.randint(0, 1)]
    signature = Signature(draw.randint(1, 3), states, params, inputs, draw.choice([*states, "y"]))
    values = [f"{kind}[{g}]" for kind in ("gx", "gh") for g in range(signature.gates)]
    values += [f"state.{n}" for n in states] + [f"p.{n}" for n in params] + [f"inputs.{n}" for n in inputs]
    lines = []
    for number in range(draw.randint(3, 12)):
        # Recent values more often, so that the graph is deep.
        x, y = (draw.choice(values[-4:] if draw.random() < 0.5 else values) for _ in range(2))
        formula = draw.choice(UNARY if draw.random() < 0.4 else BINARY)
        lines.append(f"u{number} = " + "".join({"x": x, "y": y}.get(part, part) for part in split(formula)))
        values.append(f"u{number}")
    results = ", ".join(
        f'"{name}": {draw.choice(values[-6:])} + {draw.choice(("0", "0", "1"))} * gx[0]' for name in signature.results
    )
    source = "\n    ".join(["def cell(gx, gh, state, p, inputs):", *lines, f"return {{{results}}}"])
    found: dict = {}
    exec(source, dict(NAMES), found)
    found["cell"].source = source
    return Cell(found["cell"], signature, exact=True)


def split(formula: str) -> list[str]:
    """The formula in parts, of which the arguments are "x" and "y"."""
    return "".join(f"\0{c}\0" if c in "xy" and isolated(formula, i) else c for i, c in enumerate(formula)).split("\0")


def isolated(formula: str, place: int) -> bool:
    around = formula[max(place - 1, 0) : place] + formula[place + 1 : place + 2]
    return not any(c.isalnum() or c == "_" for c in around)


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
