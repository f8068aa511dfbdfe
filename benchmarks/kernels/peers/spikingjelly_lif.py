"""SpikingJelly's LIFNode in its LinearRecurrentContainer: about the work of prnn.cells.lif, by other equations."""

from __future__ import annotations

from torch import Tensor, nn

from benchmarks.kernels.peers.base import Absent, Contender, Problem, eager


def build(problem: Problem) -> Contender:
    case = problem.case
    if case.cell != "lif":
        raise Absent("of lif only")
    try:
        from spikingjelly.activation_based import functional, layer, neuron, surrogate
    except ImportError as error:
        raise Absent(f"not installed ({error}): pip install spikingjelly") from error
    node = neuron.LIFNode(surrogate_function=surrogate.ATan(), step_mode="s")
    recurrent = layer.LinearRecurrentContainer(node, case.H, case.H, step_mode="m")
    network = nn.Sequential(nn.Linear(case.I, case.H), recurrent).to(problem.x.device, problem.x.dtype)

    def forward(x: Tensor) -> Tensor:
        functional.reset_net(network)
        return network(x)

    return eager(problem, dict(network.named_parameters()), forward, compared=False)
