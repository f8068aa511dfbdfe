"""Gated cells: variants of the GRU and the LSTM.

Shapes: T steps, B batch, H hidden size; within a cell every tensor is [B,H], a parameter [H].
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from prnn.codegen.definition import cell
from prnn.codegen.signature import Named

Gates = tuple[Tensor, ...]


@cell(gates=2)
def mgu(gx: Gates, gh: Gates, state: Named, p: Named, inputs: Named) -> dict[str, Tensor]:
    """Minimal gated unit: a GRU whose forget gate is also its reset gate.

        f_t = sigmoid(W_f x_t + U_f h_{t-1} + b_f)
        n_t = tanh(W_n x_t + b_n + f_t ⊙ (U_n h_{t-1} + c_n))
        h_t = (1 - f_t) ⊙ h_{t-1} + f_t ⊙ n_t

    Source: Zhou, Wu, Zhang and Zhou, "Minimal gated unit for recurrent neural networks", 2016. What differs: the gate
    is applied after the recurrent product, as torch.nn.GRU does, where the paper has U_n (f_t ⊙ h_{t-1}); c_n is the
    recurrent bias.

    Gates: f, n. States: h. Parameters: none. Inputs: none.

    Example::

        layer = prnn.Recurrent(cells.mgu, 8, 64)
        output, final = layer(torch.randn(20, 4, 8))
    """
    f = torch.sigmoid(gx[0] + gh[0])
    n = torch.tanh(gx[1] + f * gh[1])
    return {"h": (1 - f) * state.h + f * n}


@cell(gates=2)
def ligru(gx: Gates, gh: Gates, state: Named, p: Named, inputs: Named) -> dict[str, Tensor]:
    """Light GRU: no reset gate, and relu in place of tanh.

        z_t = sigmoid(W_z x_t + U_z h_{t-1} + b_z)
        n_t = relu(W_n x_t + U_n h_{t-1} + b_n)
        h_t = z_t ⊙ h_{t-1} + (1 - z_t) ⊙ n_t

    Source: Ravanelli, Brakel, Omologo and Bengio, "Light gated recurrent units for speech recognition", 2018. What
    differs: a bias in place of the batch normalisation of W x_t, without which the states may grow: begin with small
    recurrent weights, or clip the gradients.

    Gates: z, n. States: h. Parameters: none. Inputs: none.

    Example::

        layer = prnn.Recurrent(cells.ligru, 8, 64, bias="input")
        output, final = layer(torch.randn(20, 4, 8))
    """
    z = torch.sigmoid(gx[0] + gh[0])
    n = torch.relu(gx[1] + gh[1])
    return {"h": z * state.h + (1 - z) * n}


@cell(gates=4, states=("h", "c"), params={"peephole_i": 0.0, "peephole_f": 0.0, "peephole_o": 0.0})
def peephole_lstm(gx: Gates, gh: Gates, state: Named, p: Named, inputs: Named) -> dict[str, Tensor]:
    """LSTM whose gates see the cell through a weight w for each unit.

        i_t = sigmoid(W_i x_t + U_i h_{t-1} + w_i ⊙ c_{t-1} + b_i)
        f_t = sigmoid(W_f x_t + U_f h_{t-1} + w_f ⊙ c_{t-1} + b_f)
        c_t = f_t ⊙ c_{t-1} + i_t ⊙ tanh(W_g x_t + U_g h_{t-1} + b_g)
        o_t = sigmoid(W_o x_t + U_o h_{t-1} + w_o ⊙ c_t + b_o),    h_t = o_t ⊙ tanh(c_t)

    Source: Gers and Schmidhuber, "Recurrent nets that time and count", 2000; with tanh as in the "vanilla" LSTM of
    Greff et al., "LSTM: a search space odyssey", 2017. The weights w begin at zero, where it is torch.nn.LSTM.

    Gates: i, f, g, o, the order of torch.nn.LSTM. States: h, c. Parameters: peephole_i, peephole_f, peephole_o.
    Inputs: none.

    Example::

        layer = prnn.Recurrent(cells.peephole_lstm, 8, 64)
        output, final = layer(torch.randn(20, 4, 8))
    """
    i = torch.sigmoid(gx[0] + gh[0] + p.peephole_i * state.c)
    f = torch.sigmoid(gx[1] + gh[1] + p.peephole_f * state.c)
    g = torch.tanh(gx[2] + gh[2])
    c = f * state.c + i * g
    o = torch.sigmoid(gx[3] + gh[3] + p.peephole_o * c)
    return {"h": o * torch.tanh(c), "c": c}


@cell(gates=3, states=("h", "c"))
def cifg_lstm(gx: Gates, gh: Gates, state: Named, p: Named, inputs: Named) -> dict[str, Tensor]:
    """LSTM with coupled input and forget gates, f = 1 - i.

        i_t = sigmoid(W_i x_t + U_i h_{t-1} + b_i)
        c_t = (1 - i_t) ⊙ c_{t-1} + i_t ⊙ tanh(W_g x_t + U_g h_{t-1} + b_g)
        h_t = sigmoid(W_o x_t + U_o h_{t-1} + b_o) ⊙ tanh(c_t)

    Source: the variant CIFG of Greff, Srivastava, Koutník, Steunebrink and Schmidhuber, "LSTM: a search space odyssey",
    2017, without their peepholes.

    Gates: i, g, o. States: h, c. Parameters: none. Inputs: none.

    Example::

        layer = prnn.Recurrent(cells.cifg_lstm, 8, 64)
        output, final = layer(torch.randn(20, 4, 8))
    """
    i = torch.sigmoid(gx[0] + gh[0])
    g = torch.tanh(gx[1] + gh[1])
    o = torch.sigmoid(gx[2] + gh[2])
    c = (1 - i) * state.c + i * g
    return {"h": o * torch.tanh(c), "c": c}


@cell(gates=4, states=("h", "c", "n", "m"))
def slstm(gx: Gates, gh: Gates, state: Named, p: Named, inputs: Named) -> dict[str, Tensor]:
    """sLSTM of the xLSTM: an exponential input gate, a normaliser n, and a stabiliser m that keeps exp in range.

        m_t = max(log f_t + m_{t-1}, ĩ_t),    i'_t = exp(ĩ_t - m_t),    f'_t = exp(log f_t + m_{t-1} - m_t)
        c_t = f'_t ⊙ c_{t-1} + i'_t ⊙ tanh(z̃_t),    n_t = f'_t ⊙ n_{t-1} + i'_t,    h_t = sigmoid(õ_t) ⊙ c_t / n_t

    where ĩ, z̃, õ are the gates before their functions, and f = sigmoid(f̃).

    Source: Beck et al., "xLSTM: extended long short-term memory", 2024, equations 8 to 17, with the sigmoid for the
    forget gate, where the paper also allows exp; its heads are those of the layer. As in the authors' code, m_t = ĩ_t
    and f'_t <= 1 where n is 0, at the first step and after a reset: n is then at least 1, and needs no bound.

    Gates: i, f, z, o, as in the authors' code. States: h, c, n, m. Parameters: none. Inputs: none.

    Example::

        layer = prnn.Recurrent(cells.slstm, 8, 64, heads=4)
        output, final = layer(torch.randn(20, 4, 8))
    """
    i, f, z, o = (x + h for x, h in zip(gx, gh, strict=True))
    log_f = logsigmoid(f)
    m = torch.where(state.n == 0, i, torch.maximum(log_f + state.m, i))
    i, f = torch.exp(i - m), torch.exp((log_f + state.m - m).clamp(max=0))
    c = f * state.c + i * torch.tanh(z)
    n = f * state.n + i
    return {"h": torch.sigmoid(o) * c / n, "c": c, "n": n, "m": m}
