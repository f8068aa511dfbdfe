"""prnn's layers in modules of their own, called one after the other: what a stack is compared with."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

import prnn
from benchmarks.kernels.peers.base import Absent, Contender, Problem, eager, make_module


def build(problem: Problem) -> Contender:
    case = problem.case
    if case.layers < 2 or case.bidirectional or case.lengths or case.in_python:
        raise Absent("of several layers in one direction only")
    modules, parameters = [], {}
    for number in range(case.layers):
        one = make_module(prnn, replace(case, layers=1, I=case.H if number else case.I)).to(problem.x)
        names = {name: name.replace("_l0", f"_l{number}") for name, _ in one.named_parameters()}
        one.load_state_dict({name: problem.weights[of_stack] for name, of_stack in names.items()})
        parameters |= {names[name]: parameter for name, parameter in one.named_parameters()}
        modules.append(one)

    def forward(x: Tensor) -> Tensor:
        for module in modules:
            x, _ = module(x)
        return x

    return eager(problem, parameters, forward)
