"""Gated cells that are given masks or decays at each step, as ``inputs=``.

Shapes: T steps, B batch, H hidden size; within a cell every tensor is [B,H].
"""

from __future__ import annotations

import torch
from torch import Tensor

from prnn.codegen.definition import cell
from prnn.codegen.signature import Named

Gates = tuple[Tensor, ...]


@cell(gates=4, states=("h", "c"), inputs=("zoneout_h", "zoneout_c"))
def zoneout_lstm(gx: Gates, gh: Gates, state: Named, p: Named, inputs: Named) -> dict[str, Tensor]:
    """LSTM with zoneout: where a mask d is 1, a unit keeps its previous value.

        ĉ_t = f_t ⊙ c_{t-1} + i_t ⊙ g_t
        c_t = d^c_t ⊙ c_{t-1} + (1 - d^c_t) ⊙ ĉ_t
        h_t = d^h_t ⊙ h_{t-1} + (1 - d^h_t) ⊙ o_t ⊙ tanh(ĉ_t)

    with the gates of torch.nn.LSTM.

    Source: Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden activations", 2017.

    Gates: i, f, g, o. States: h, c. Parameters: none. Inputs: zoneout_h, zoneout_c: Bernoulli masks in training; in
    evaluation their probabilities, which gives the expectation.

    Example::

        layer = prnn.Recurrent(cells.zoneout_lstm, 8, 64)
        masks = {"zoneout_h": torch.rand(20, 4, 64) < 0.05, "zoneout_c": torch.rand(20, 4, 64) < 0.5}
        output, final = layer(torch.randn(20, 4, 8), inputs=masks)
        rates = {"zoneout_h": torch.tensor(0.05), "zoneout_c": torch.tensor(0.5)}  # for evaluation
        output, final = layer(torch.randn(20, 4, 8), inputs=rates)
    """
    i = torch.sigmoid(gx[0] + gh[0])
    f = torch.sigmoid(gx[1] + gh[1])
    g = torch.tanh(gx[2] + gh[2])
    o = torch.sigmoid(gx[3] + gh[3])
    c = f * state.c + i * g
    h = o * torch.tanh(c)
    return {
        "h": inputs.zoneout_h * state.h + (1 - inputs.zoneout_h) * h,
        "c": inputs.zoneout_c * state.c + (1 - inputs.zoneout_c) * c,
    }


@cell(gates=3, inputs=("zoneout",))
def zoneout_gru(gx: Gates, gh: Gates, state: Named, p: Named, inputs: Named) -> dict[str, Tensor]:
    """GRU with zoneout: where the mask d is 1, a unit keeps its previous value.

        h_t = d_t ⊙ h_{t-1} + (1 - d_t) ⊙ GRU(x_t, h_{t-1})

    with the GRU of torch.nn.GRU.

    Source: Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden activations", 2017.

    Gates: r, z, n, the order of torch.nn.GRU. States: h. Parameters: none. Inputs: zoneout: a Bernoulli mask in
    training; in evaluation its probability, which gives the expectation.

    Example::

        layer = prnn.Recurrent(cells.zoneout_gru, 8, 64)
        output, final = layer(torch.randn(20, 4, 8), inputs={"zoneout": torch.rand(20, 4, 64) < 0.1})
    """
    r = torch.sigmoid(gx[0] + gh[0])
    z = torch.sigmoid(gx[1] + gh[1])
    n = torch.tanh(gx[2] + r * gh[2])
    h = (1 - z) * n + z * state.h
    return {"h": inputs.zoneout * state.h + (1 - inputs.zoneout) * h}


@cell(gates=3, inputs=("next_decay",), output="y")
def grud_decay(gx: Gates, gh: Gates, state: Named, p: Named, inputs: Named) -> dict[str, Tensor]:
    """GRU with the hidden-state decay of GRU-D, for series with missing values or irregular intervals.

        y_t = GRU(x_t, γ_t ⊙ y_{t-1}),    γ_t = exp(-max(0, W_γ δ_t + b_γ))

    where δ_t are the times since each variable was last observed. The recurrent product needs the decayed state, so the
    decay is applied a step ahead: the state is h_t = γ_{t+1} ⊙ y_t, and the layer is given γ_{t+1} at step t, or 1 at
    the last.

    Source: Che, Purushotham, Cho, Sontag and Liu, "Recurrent neural networks for multivariate time series with missing
    values", 2018. What differs: the GRU is that of torch.nn.GRU, whose reset gate is applied after the recurrent
    product, and where z and 1 - z are exchanged. The input's imputation needs no recurrence: compute it, and
    concatenate the observation mask, before the layer. For one direction, without lengths: a shorter sequence's final h
    contains the decay of a step after its end.

    Gates: r, z, n. States: h (decayed). Parameters: none. Inputs: next_decay. Output: y (not decayed).

    Example::

        layer, decay_rate = prnn.Recurrent(cells.grud_decay, 2 * 8, 64), torch.nn.Linear(8, 64)
        x, observed, interval = torch.randn(20, 4, 8), torch.rand(20, 4, 8) < 0.5, torch.rand(20, 4, 8)
        decay = torch.exp(-torch.relu(decay_rate(interval)))
        next_decay = torch.cat([decay[1:], torch.ones(1, 4, 64)])
        output, final = layer(torch.cat([x * observed, observed], dim=-1), inputs={"next_decay": next_decay})
    """
    r = torch.sigmoid(gx[0] + gh[0])
    z = torch.sigmoid(gx[1] + gh[1])
    n = torch.tanh(gx[2] + r * gh[2])
    y = (1 - z) * n + z * state.h
    return {"h": inputs.next_decay * y, "y": y}
