"""``prnn.check``: whether a recurrent layer computes what its equations say, and the gradients with it.

    report = prnn.check(lif)                       # a cell made by prnn.cell
    report = prnn.check(prnn.GRU(5, 17))           # or a layer
    report = prnn.check(torch.nn.LSTM)             # or any module with torch.nn.RNN's signature, or its class
    print(report); assert report.ok

    python -m prnn.check mypackage.cells:lif       # the table; exit status 1 if a row fails

``CHECKS`` lists the rows with their bounds, the largest error relative to a tensor's norm.
"""

from __future__ import annotations

import sys
import time
import types
from collections.abc import Iterable
from typing import Any

import torch

import prnn
from prnn.check.report import Report, Row
from prnn.check.rows import CHECKS
from prnn.check.subject import Subject
from prnn.check.suite import Cases, Suite
from prnn.check.values import NotSupported
from prnn.codegen.definition import CellDefinition
from prnn.errors import UserError

__all__ = ["CHECKS", "Report", "Row", "check"]


def check(
    target: Any,
    *,
    input_size: int | None = None,
    hidden_size: int = 17,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    gridded: bool | None = None,
    threads: bool | None = None,
    rows: Iterable[str] = (),
) -> Report:
    """Run the conformance suite on the CPU.

    Cells and prnn's layers are compared with their float64 equations as a Python loop. Another module,
    ``module(input, state) -> (output, state)`` as torch.nn.RNN, is compared with its own float64 copy run one step at a
    time, and that copy with finite differences. What a module does not offer is listed as not supported.

    Args:
        target: a cell, a module, or a class or function that makes one of (input_size, hidden_size) and, where it can,
            num_layers and bidirectional. A module is checked with its own weights and sizes; it is not changed.
        input_size: of modules that are made (5 if left out), or of a module without an attribute ``input_size``.
        hidden_size: of modules that are made.
        dtype: torch.float32 or torch.bfloat16.
        seed: of weights and values.
        gridded: whether weights and values are multiples of 1/8, whose sums are exact, so that a spike depends on no
            rounding; found out if left out: where the output or a state is one of spikes.
        threads: whether the bits must be the same for one and two threads; if left out, for prnn's layers they must,
            for others the row informs.
        rows: names of ``CHECKS``; all if left out.

    Raises UserError for a target that is none of these, another dtype, or an unknown row.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        raise UserError(f"prnn.check takes torch.float32 or torch.bfloat16, got {dtype}")
    chosen = list(rows) or list(CHECKS)
    for name in chosen:
        if name not in CHECKS:
            raise UserError(f"prnn.check has no row {name!r}: expected one of {', '.join(CHECKS)}")
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        subject = Subject(target, input_size, hidden_size, dtype, gridded)
        suite = Suite(subject, torch.Generator().manual_seed(seed))
        report = Report(*_titles(target, suite))
        for name in chosen:
            informs = name == "threads" and not (subject.own if threads is None else threads)
            report.rows.append(_row(name, suite, informs))
    return report


def _titles(target: Any, suite: Suite) -> tuple[str, str]:
    subject = suite.subject
    dtype = str(subject.dtype).removeprefix("torch.")
    kind = f"the cell {target.__name__}" if isinstance(target, CellDefinition) else type(subject.module).__name__
    title = f"{kind}, I {subject.input_size}, H {subject.hidden_size}, {dtype}"
    title += ", weights and values multiples of 1/8" if subject.gridded else ""
    if not subject.own:
        how = "run one step at a time" if subject.stepwise else "in one run, as steps do not give two directions"
        return title, f"Compared with its float64 copy, {how}, and that with finite differences."
    explained = prnn.explain(subject.module, suite.given(3, 2).x).splitlines()[1].split(":", 1)[1].strip()
    return title, f"Compared with its float64 equations as a Python loop; what runs: {explained}."


def _row(name: str, suite: Suite, informs: bool) -> Row:
    check, begun = CHECKS[name], time.perf_counter()
    row = Row(name, check.of(suite.subject.dtype), information=informs)
    try:
        _count(row, check.cases(suite))
        row.passed = row.cases > 0 and not row.words
    except NotSupported as reason:
        row.words, row.information = str(reason), False
    except Exception as error:  # the module's own: it is a finding, and the other rows are still wanted
        row.passed, row.error = False, torch.inf
        row.words = f"after {row.cases} cases: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if row.information:
        row.passed, row.words = None, row.words or "no difference"
    row.seconds = time.perf_counter() - begun
    return row


def _count(row: Row, cases: Cases) -> None:
    for words, error, where in cases:
        row.cases += 1
        row.error = max(row.error or 0.0, error)
        if not error <= (row.bound or 0.0) and not row.words:
            row.words = f"{words}: {where} is off by {error:.1e}"


class _Callable(types.ModuleType):
    """``prnn.check`` is this package and the function in it."""

    def __call__(self, target: Any, **options: Any) -> Report:
        return check(target, **options)


_Callable.__call__.__doc__ = check.__doc__
sys.modules[__name__].__class__ = _Callable
