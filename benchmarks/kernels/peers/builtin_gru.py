"""The built-in prnn.GRU, beside the same equations as a cell written in Python."""

from __future__ import annotations

import prnn
from benchmarks.kernels.peers.base import Absent, Contender, Problem, eager


def build(problem: Problem) -> Contender:
    case = problem.case
    if case.cell != "python_gru":
        raise Absent("of the GRU written in Python only")
    module = prnn.GRU(case.I, case.H)
    module.load_state_dict(problem.weights)
    return eager(problem, dict(module.named_parameters()), lambda x: module(x)[0])
