"""Spiking neurons, trained by surrogate gradients (``prnn.spike``).

Shapes: T steps, B batch, H hidden size; within a cell every tensor is [B,H], a parameter [H].
"""

from __future__ import annotations

from torch import Tensor

from prnn.codegen import spike
from prnn.codegen.definition import cell, per_unit, scalar
from prnn.codegen.signature import Named

Gates = tuple[Tensor, ...]


@cell(gates=1, states=("h", "v"), params={"beta": 0.9, "threshold": scalar(1.0, requires_grad=False)})
def lif(gx: Gates, gh: Gates, state: Named, p: Named, inputs: Named) -> dict[str, Tensor]:
    """Leaky integrate-and-fire neuron with recurrent weights and a soft reset: a spike lowers the voltage by θ.

        v_t = β v_{t-1} + W x_t + U h_{t-1} + b - θ h_{t-1},    h_t = 1 where v_t > θ, else 0

    Source: Neftci, Mostafa and Zenke, "Surrogate gradient learning in spiking neural networks", 2019, without the
    synaptic current's own decay (their α = 0). The spike's surrogate derivative is that of a fast sigmoid (SuperSpike,
    Zenke and Ganguli 2018), slope 25. The reset has no gradient. Equal to snntorch's RLeaky with
    ``reset_mechanism="subtract"`` and ``surrogate.fast_sigmoid(25)``.

    States: h (spikes), v (membrane voltages). Parameters: beta, clamped to [0, 1]; threshold θ, one for the layer, not
    trained. Inputs: none.

    Example::

        layer = prnn.Recurrent(cells.lif, 64, 128)
        spikes, final = layer(torch.randn(50, 4, 64))
    """
    v = p.beta.clamp(0, 1) * state.v + gx[0] + gh[0] - p.threshold * state.h.detach()
    return {"h": spike(v - p.threshold, slope=25.0), "v": v}


@cell(
    gates=1,
    states=("h", "v", "b"),
    params={
        "alpha": scalar(0.951, requires_grad=False),  # exp(-1 ms / 20 ms)
        "rho": per_unit(0.995, requires_grad=False),  # exp(-1 ms / 200 ms)
        "beta": scalar(1.8, requires_grad=False),
        "threshold": scalar(0.01, requires_grad=False),
    },
)
def alif(gx: Gates, gh: Gates, state: Named, p: Named, inputs: Named) -> dict[str, Tensor]:
    """Adaptive leaky integrate-and-fire neuron, of the LSNN: each spike raises the threshold B, which then decays.

        b_t = ρ b_{t-1} + (1 - ρ) h_{t-1},    B_t = θ + β b_t
        v_t = α v_{t-1} + (1 - α) (W x_t + U h_{t-1} + b) - B_{t-1} h_{t-1},    h_t = 1 where v_t > B_t, else 0

    Source: Bellec, Salaj, Subramoney, Legenstein and Maass, "Long short-term memory and learning-to-learn in networks
    of spiking neurons", 2018, with steps of 1 ms and a synaptic delay of one step. The surrogate derivative is their
    max(0, 1 - |u|) of the normalised voltage u = (v - B) / B, without the dampening factor 0.3. Not modelled: the
    refractory period.

    States: h (spikes), v (membrane voltages), b (adaptation). Parameters: alpha, beta and threshold θ, one each for
    the layer, rho for each unit; none is trained. Inputs: none.

    Example::

        layer = prnn.Recurrent(cells.alif, 64, 128)
        spikes, final = layer(torch.rand(50, 4, 64))
    """
    before = p.threshold + p.beta * state.b
    b = p.rho * state.b + (1 - p.rho) * state.h
    after = p.threshold + p.beta * b
    v = p.alpha * state.v + (1 - p.alpha) * (gx[0] + gh[0]) - before * state.h
    return {"h": spike((v - after) / after, slope=1.0, shape="triangle"), "v": v, "b": b}
