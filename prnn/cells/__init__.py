"""Ready cells for ``prnn.Recurrent``, which are also examples of ``prnn.cell`` (docs/cells.md): copy one and change it.

``rate``      leaky, ctrnn, cornn, antisymmetric: differential equations, discretised; indrnn
``spiking``   lif, alif: spiking neurons with surrogate gradients
``gated``     mgu, ligru, peephole_lstm, cifg_lstm, slstm: variants of the GRU and the LSTM
``per_step``  zoneout_lstm, zoneout_gru, grud_decay: gated cells that are given masks or decays at each step

In the equations W is ``weight_ih``, U ``weight_hh``, b the sum of the biases, ⊙ the product unit by unit. A state
without another initial value is zero.

Example::

    from prnn import cells

    layer = prnn.Recurrent(cells.leaky, input_size=8, hidden_size=64)
    output, final = layer(torch.randn(20, 4, 8))  # [20,4,64], {"h": [1,4,64]}
"""

from __future__ import annotations

from prnn.cells.gated import cifg_lstm, ligru, mgu, peephole_lstm, slstm
from prnn.cells.per_step import grud_decay, zoneout_gru, zoneout_lstm
from prnn.cells.rate import antisymmetric, cornn, ctrnn, indrnn, leaky
from prnn.cells.spiking import alif, lif

__all__ = [
    "alif", "antisymmetric", "cifg_lstm", "cornn", "ctrnn", "grud_decay", "indrnn", "leaky", "lif", "ligru", "mgu",
    "peephole_lstm", "slstm", "zoneout_gru", "zoneout_lstm",
]  # fmt: skip
