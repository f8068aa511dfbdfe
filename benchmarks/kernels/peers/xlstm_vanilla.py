"""The xlstm package's sLSTM in its backend "vanilla", the one that needs no GPU: the equations of prnn.cells.slstm.

K: heads, D: units of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor
from torch.nn.functional import linear

from benchmarks.kernels.peers.base import Absent, Contender, Problem, eager


def build(problem: Problem) -> Contender:
    if problem.case.cell != "slstm":
        raise Absent("of slstm only")
    leaves = problem.leaves()
    return eager(problem, leaves, layer(leaves))


def layer(leaves: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """x [T,B,I] -> output [T,B,H]"""
    try:
        from xlstm.blocks.slstm.src import vanilla
    except ImportError as error:
        raise Absent(f"not installed ({error}): pip install --no-deps xlstm") from error
    w_ih, w_hh, b_ih, b_hh = (leaves[f"{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    rows, D = w_hh.shape
    H = rows // 4
    pointwise = vanilla.slstm_pointwise_function_registry["slstm"]

    def forward(x: Tensor) -> Tensor:
        recurrent = w_hh.view(4, H // D, D, D).transpose(0, 1).reshape(H // D, 4 * D, D)  # [K,4*D,D]
        zeros = x.new_zeros(4, x.shape[1], H)
        states, _, _ = vanilla.slstm_forward(linear(x, w_ih, b_ih), zeros, recurrent, b_hh, pointwise)
        return states[0, 1:]

    return forward
