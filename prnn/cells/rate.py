"""Rate units: differential equations of a recurrent network, discretised in time; and units that meet only themselves.

Shapes: T steps, B batch, H hidden size; within a cell every tensor is [B,H], a parameter [H].
"""

from __future__ import annotations

import torch
from torch import Tensor

from prnn.codegen.definition import cell, scalar
from prnn.codegen.signature import Named

Gates = tuple[Tensor, ...]


@cell(gates=1, params={"alpha_logit": 0.0})
def leaky(gx: Gates, gh: Gates, state: Named, p: Named, inputs: Named) -> dict[str, Tensor]:
    """Leaky-integrator unit, with a leaking rate α in (0, 1) that is learned for each unit.

        h_t = (1 - α) h_{t-1} + α tanh(W x_t + U h_{t-1} + b),    α = sigmoid(alpha_logit)

    Source: Lukoševičius, "A practical guide to applying echo state networks", 2012, equations 2 and 3, where α is a
    hyperparameter.

    States: h. Parameters: alpha_logit. Inputs: none.

    Example::

        layer = prnn.Recurrent(cells.leaky, 8, 64)
        output, final = layer(torch.randn(20, 4, 8))
    """
    alpha = torch.sigmoid(p.alpha_logit)
    return {"h": (1 - alpha) * state.h + alpha * torch.tanh(gx[0] + gh[0])}


@cell(gates=1, states=("h", "v"), params={"alpha": scalar(0.2, requires_grad=False)}, inputs=("noise",))
def ctrnn(gx: Gates, gh: Gates, state: Named, p: Named, inputs: Named) -> dict[str, Tensor]:
    """Continuous-time rate network of neuroscience: voltages v, non-negative rates h, noise in each step.

        v_t = (1 - α) v_{t-1} + α (W x_t + U h_{t-1} + b) + noise_t,    h_t = relu(v_t)

    Source: Song, Yang and Wang, "Training excitatory-inhibitory recurrent neural networks for cognitive tasks", 2016,
    the discretised equations; Yang and Wang, "Artificial neural networks for neuroscientists: a primer", 2020.
    α = Δt/τ, there 20 ms / 100 ms; the noise is sqrt(2 α) σ N(0, 1).

    States: h (rates), v (voltages). Parameters: alpha, one for the layer, not trained. Inputs: noise.

    Dale's law, that all synapses of a unit have one sign, is a parametrization of ``weight_hh``, whose column j is what
    unit j sends.

    Example::

        class DalesLaw(torch.nn.Module):
            def __init__(self, sign):  # [H]: 1 for an excitatory unit, -1 for an inhibitory one
                super().__init__()
                self.register_buffer("sign", sign)

            def forward(self, weight):  # [H,H]
                return weight.abs() * self.sign

        layer = prnn.Recurrent(cells.ctrnn, 8, 50)
        sign = torch.ones(50).index_fill(0, torch.arange(40, 50), -1.0)  # four excitatory units for each inhibitory one
        torch.nn.utils.parametrize.register_parametrization(layer, "weight_hh_l0", DalesLaw(sign))
        noise = (2 * 0.2) ** 0.5 * 0.05 * torch.randn(20, 4, 50)
        rates, final = layer(torch.randn(20, 4, 8), inputs={"noise": noise})
    """
    v = (1 - p.alpha) * state.v + p.alpha * (gx[0] + gh[0]) + inputs.noise
    return {"h": torch.relu(v), "v": v}


@cell(
    gates=1,
    states=("h", "z"),
    params={
        "dt": scalar(0.042, requires_grad=False),
        "gamma": scalar(2.7, requires_grad=False),
        "epsilon": scalar(4.7, requires_grad=False),
    },
)
def cornn(gx: Gates, gh: Gates, state: Named, p: Named, inputs: Named) -> dict[str, Tensor]:
    """Coupled oscillatory RNN (coRNN): damped oscillators with positions h and velocities z.

        z_t = z_{t-1} + Δt (tanh(W x_t + U h_{t-1} + b) - γ h_{t-1} - ε z_{t-1}),    h_t = h_{t-1} + Δt z_t

    Source: Rusch and Mishra, "Coupled oscillatory recurrent neural network (coRNN)", 2021, equation 3 with explicit
    damping (ε z_{t-1}). What differs: within tanh there is no recurrent product with the velocities, as only h meets
    ``weight_hh``.

    States: h (y in the paper), z. Parameters: dt, gamma, epsilon, one each for the layer, not trained. Inputs: none.

    Example::

        layer = prnn.Recurrent(cells.cornn, 1, 64, bias="input")
        output, final = layer(torch.randn(100, 4, 1))
    """
    force = torch.tanh(gx[0] + gh[0]) - p.gamma * state.h - p.epsilon * state.z
    z = state.z + p.dt * force
    return {"h": state.h + p.dt * z, "z": z}


@cell(
    gates=1,
    params={"epsilon": scalar(0.1, requires_grad=False), "gamma": scalar(0.01, requires_grad=False)},
)
def antisymmetric(gx: Gates, gh: Gates, state: Named, p: Named, inputs: Named) -> dict[str, Tensor]:
    """AntisymmetricRNN: a forward Euler step of size ε, with diffusion γ.

        h_t = h_{t-1} + ε tanh(W x_t + (U - γ I) h_{t-1} + b),    U = A - Aᵀ

    Source: Chang, Chen, Haber and Chi, "AntisymmetricRNN: a dynamical system view on recurrent neural networks", 2019.
    That U is antisymmetric is a parametrization of ``weight_hh``, as in the example; without it the cell is a plain
    residual RNN.

    States: h. Parameters: epsilon, gamma, one each for the layer, not trained. Inputs: none.

    Example::

        class Antisymmetric(torch.nn.Module):
            def forward(self, weight):  # [H,H]
                return weight - weight.T

        layer = prnn.Recurrent(cells.antisymmetric, 8, 64, bias="input")
        torch.nn.utils.parametrize.register_parametrization(layer, "weight_hh_l0", Antisymmetric())
        output, final = layer(torch.randn(20, 4, 8))
    """
    return {"h": state.h + p.epsilon * torch.tanh(gx[0] + gh[0] - p.gamma * state.h)}


@cell(gates=1, recurrent="diagonal")
def indrnn(gx: Gates, gh: Gates, state: Named, p: Named, inputs: Named) -> dict[str, Tensor]:
    """Independently recurrent network (IndRNN): each unit meets only its own h, through a weight u.

        h_t = relu(W x_t + u ⊙ h_{t-1} + b)

    Source: Li, Li, Cook, Zhu and Gao, "Independently recurrent neural network (IndRNN): building a longer and deeper
    RNN", 2018. The units of one layer meet in the next: the paper stacks several. It keeps |u| below 2^(1/T).

    States: h. Parameters: none besides ``weight_hh`` [H], the u. Inputs: none.

    Example::

        layer = prnn.Recurrent(cells.indrnn, 8, 64, num_layers=2, bias="input")
        output, final = layer(torch.randn(20, 4, 8))
    """
    return {"h": torch.relu(gx[0] + gh[0])}
