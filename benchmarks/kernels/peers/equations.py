"""A cell written in Python step by step, for peers that compile or scan a step."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import linear

import prnn
from benchmarks.kernels.peers.base import Absent, Problem, make_module

State = tuple[Tensor, ...]  # h and the other states, [B,H] each


class Equations:
    """Of one layer without heads, on ``leaves``, copies of its weights."""

    def __init__(self, problem: Problem, leaves: Mapping[str, Tensor]) -> None:
        if problem.case.heads > 1:
            raise Absent("without heads only")
        module = make_module(prnn, problem.case)
        self._cell, self._leaves = module.cell.cell, leaves
        # As torch.compile can trace them.
        self._state = namedtuple("State", self._cell.signature.states)  # type: ignore[misc]
        self._params = namedtuple("Params", self._cell.params)  # type: ignore[misc]

    def gates(self, x: Tensor) -> Tensor:
        """The input's share, [T,B,G*H]."""
        return linear(x, self._leaves["weight_ih_l0"], self._leaves["bias_ih_l0"])

    def zero_state(self, x: Tensor) -> State:
        B, H = x.shape[1], self._leaves["weight_hh_l0"].shape[1]
        return x.new_zeros(B, H), *(x.new_zeros(B, H, dtype=torch.float32) for _ in self._cell.states[1:])

    def step(self, state: State, gates: Tensor) -> tuple[State, Tensor]:
        h, *others = state
        gates_h = torch.addmm(self._leaves["bias_hh_l0"], h, self._leaves["weight_hh_l0"].t())
        H, cell = h.shape[1], self._cell
        params = self._params(*(self._leaves[f"{name}_l0"].float() for name in cell.params))
        results = cell.function(
            gates.float().split(H, 1), gates_h.float().split(H, 1), self._state(h.float(), *others), params, None
        )
        new, *states = (results[name] for name in cell.signature.states)
        output = results[cell.signature.output]
        return (new.to(h.dtype), *states), output.to(h.dtype)
