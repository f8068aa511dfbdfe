"""SpeechBrain's LiGRU_Layer without its batch normalisation, and with biases instead: the equations of
prnn.cells.ligru.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.func import functional_call

from benchmarks.kernels.peers.base import Absent, Contender, Problem, eager


def build(problem: Problem) -> Contender:
    if problem.case.cell != "ligru":
        raise Absent("of ligru only")
    leaves = problem.leaves()
    return eager(problem, leaves, layer(leaves, problem.case.B))


def layer(leaves: Mapping[str, Tensor], B: int) -> Callable[[Tensor], Tensor]:
    """x [T,B,I] -> output [T,B,H]"""
    try:
        from speechbrain.nnet.RNN import LiGRU_Layer
    except ImportError as error:
        packages = "speechbrain hyperpyyaml ruamel.yaml, and torchaudio"
        raise Absent(f"not installed ({error}): pip install --no-deps {packages}") from error
    w_ih, w_hh = leaves["weight_ih_l0"], leaves["weight_hh_l0"]
    module = LiGRU_Layer(w_ih.shape[1], w_hh.shape[1], 1, B, nonlinearity="relu")
    module.normalize = False
    ours = {"w.weight": "weight_ih_l0", "u.weight": "weight_hh_l0", "w.bias": "bias_ih_l0", "u.bias": "bias_hh_l0"}
    module.w.bias, module.u.bias = (torch.nn.Parameter(leaves[name].detach()) for name in ("bias_ih_l0", "bias_hh_l0"))

    def forward(x: Tensor) -> Tensor:
        # Its gates are n, z, where ours are z, n.
        swapped = {theirs: torch.cat(leaves[name].chunk(2)[::-1]) for theirs, name in ours.items()}
        return functional_call(module, swapped, x.transpose(0, 1)).transpose(0, 1)

    return forward
