"""snntorch's RLeaky, called step by step as its tutorials do: the equations of prnn.cells.lif.

The product of all inputs is one linear layer before the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from benchmarks.kernels.peers.base import Absent, Contender, Problem, eager


def build(problem: Problem) -> Contender:
    if problem.case.cell != "lif":
        raise Absent("of lif only")
    forward, leaves = layer(problem.leaves())
    return eager(problem, leaves, forward)


def layer(leaves: Mapping[str, Tensor]) -> tuple[Callable[[Tensor], Tensor], dict[str, Tensor]]:
    """x [T,B,I] -> spikes [T,B,H]; and its parameters by our names."""
    try:
        from snntorch import RLeaky, surrogate
    except ImportError as error:
        raise Absent(f"not installed ({error}): pip install --no-deps snntorch") from error
    beta, threshold, weight = (leaves[f"{name}_l0"] for name in ("beta", "threshold", "weight_hh"))
    cell = RLeaky(
        beta.detach().clone(), linear_features=len(weight), threshold=threshold.detach().clone(),
        spike_grad=surrogate.fast_sigmoid(25), learn_beta=beta.requires_grad,
        learn_threshold=threshold.requires_grad, reset_mechanism="subtract",
    )  # fmt: skip
    cell.recurrent.weight, cell.recurrent.bias = nn.Parameter(weight.detach()), nn.Parameter(leaves["bias_hh_l0"])
    weight_ih, bias_ih = leaves["weight_ih_l0"], leaves["bias_ih_l0"]

    def forward(x: Tensor) -> Tensor:
        (spikes, voltages), outputs = cell.reset_mem(), []
        for current in nn.functional.linear(x, weight_ih, bias_ih).unbind(0):
            spikes, voltages = cell(current, spikes, voltages)
            outputs.append(spikes)
        return torch.stack(outputs)

    own = {"weight_ih": weight_ih, "bias_ih": bias_ih, "weight_hh": cell.recurrent.weight}
    own |= {"bias_hh": cell.recurrent.bias, "beta": cell.beta, "threshold": cell.threshold}
    return forward, {f"{name}_l0": parameter for name, parameter in own.items()}
