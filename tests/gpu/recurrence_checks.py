"""Layers and modules against the equations in double precision.

Shapes: T time steps, B batch, H hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from itertools import product

import torch

import prnn
from prnn.cell_table import CELLS
from tests.gpu import bounds, compare, problems
from tests.gpu.compare import Errors, Figures, Results, judged
from tests.gpu.problems import OPTIONS, Case, Problem
from tests.gpu.targets import KINDS, Target

# Odd sizes, one sample and many, more than a tile holds, weights beyond the registers.
SIZES = (
    (1, 1, 1),
    (1, 3, 17),
    (5, 1, 3),
    (6, 9, 40),
    (33, 4, 100),
    (7, 33, 130),
    (20, 16, 256),
    (9, 70, 64),
    (12, 5, 515),
    (6, 16, 1100),
    (9, 300, 512),  # several tiles, one after the other
)
TF32_SIZE, BOTH_SIZE = (9, 20, 96), (12, 20, 96)


def cases() -> Iterator[Case]:
    """Each cell and kind at each size, with options that differ from size to size; tf32, and both directions, once."""
    for (i, cell), (j, kind) in product(enumerate(CELLS), enumerate(KINDS)):
        if kind == "tf32":
            yield Case(cell, kind, TF32_SIZE, "lengths")
            continue
        for number, size in enumerate(SIZES):
            yield Case(cell, kind, size, OPTIONS[(number + i + j) % len(OPTIONS)])
        yield Case(cell, kind, BOTH_SIZE, ("plain", "lengths", "resets")[(i + j) % 3], both=True)


@lru_cache(maxsize=1)
def _right(case: Case, seed: int) -> Results:
    """What is right of a case's drawings; kept for the regimes that follow each other."""
    return problems.right(_drawn(case, seed))


def _drawn(case: Case, seed: int) -> list[Problem]:
    return [problems.draw(case, seed * case.draws + number) for number in range(case.draws)]


def measured(target: Target, case: Case, regime: str | None = None, seed: int = 0) -> Errors:
    """The errors of all results. Raises Wrong where the same call gives other bits."""
    drawn = _drawn(case, seed)
    found, again = ([problems.found(problem, target, regime) for problem in drawn] for _ in range(2))
    if case.cell == "rnn_relu":  # what is right depends on what is found
        right = problems.right(drawn, [results["output"] for results in found])
    else:
        right = _right(case, seed)
    return compare.errors(found, again, right)


def layer_is_right(target: Target, case: Case, regime: str | None) -> Figures:
    """Output and all gradients against the reference equations in double precision."""
    target.needs(case.cell, case.kind, case.size[1], case.size[2], regime)
    errors = measured(target, case, regime)
    return judged(errors, {what: bounds.of(case.cell, case.kind, what) for what in errors})


def module_errors(target: Target, cell: str) -> Errors:
    """A bidirectional stack, batch first, beside torch.nn's in double precision with the same state_dict."""
    arguments = {"num_layers": 2, "bidirectional": True, "batch_first": True}
    name = {"rnn_tanh": "RNN", "rnn_relu": "RNN", "gru": "GRU", "lstm": "LSTM"}[cell]
    if name == "RNN":
        arguments["nonlinearity"] = cell.removeprefix("rnn_")
    torch.manual_seed(1)
    theirs = getattr(torch.nn, name)(12, 48, **arguments)
    ours = getattr(prnn, name)(12, 48, **arguments)
    ours.load_state_dict(theirs.state_dict())
    ours, theirs = ours.to(target.device), copy.deepcopy(theirs).double()
    x, grad = torch.randn(5, 9, 12), torch.randn(5, 9, 96)
    right = theirs(x.double())[0]
    right.backward(grad.double())
    with target.forced(None):
        found = ours(x.to(target.device))[0]
        found.backward(grad.to(target.device))
    pairs = {"output": (found, right.detach())}
    for (parameter, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        pairs[f"grad_{parameter}"] = mine.grad, other.grad
    return {what: compare.error(mine[None], other[None], what) for what, (mine, other) in pairs.items()}


def modules_are_torchs(target: Target, cell: str) -> Figures:
    errors = module_errors(target, cell)
    return judged(errors, {what: bounds.of(cell, "float32", what) for what in errors})


def name_of(case: Case, regime: str | None) -> str:
    T, B, H = case.size
    both = ["directions"] if case.both else []
    return " ".join(
        [case.cell, case.kind, *both, f"T{T}", f"B{B}", f"H{H}", case.options, *([regime] if regime else [])]
    )


def checks(target: Target) -> Iterable[tuple[str, str, Callable[[], Figures]]]:
    """Name, group and function of each."""
    for case, regime in product(cases(), target.regimes):
        if case.kind in target.kinds and not (case.both and target.directions is None):
            group = " ".join([case.cell, *([regime] if regime else [])])
            yield name_of(case, regime), group, partial(layer_is_right, target, case, regime)
    if target.backend is not None:
        for cell in CELLS:
            yield f"{cell} modules", "modules", partial(modules_are_torchs, target, cell)
