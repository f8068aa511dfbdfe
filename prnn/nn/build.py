"""From the section ``model`` of a configuration to a recurrent module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prnn.cell_table import CELLS
from prnn.nn.init import forget_bias_, identity_
from prnn.nn.recurrent import GRU, LSTM, RNN, Recurrent

if TYPE_CHECKING:  # at run time the layers need torch alone; prnn.config brings OmegaConf along
    from prnn.config import ModelConfig


def build(model: ModelConfig, input_size: int, bidirectional: bool = False) -> Recurrent:
    """The recurrent layers ``model`` describes, initialised as it says; input [T,B,input_size]."""
    between = model.dropout if model.num_layers > 1 else 0.0
    sizes: tuple[int, int, int] = (input_size, model.hidden_size, model.num_layers)
    if model.cell == "gru":
        return GRU(*sizes, dropout=between, bidirectional=bidirectional)
    if model.cell == "lstm":
        lstm = LSTM(*sizes, dropout=between, bidirectional=bidirectional)
        return lstm if model.forget_bias is None else forget_bias_(lstm, model.forget_bias)
    if model.cell in ("rnn_tanh", "rnn_relu"):
        nonlinearity = model.cell.removeprefix("rnn_")
        rnn = RNN(*sizes, nonlinearity=nonlinearity, dropout=between, bidirectional=bidirectional)
        return identity_(rnn, model.identity_scale, model.input_std) if model.init == "identity" else rnn
    return Recurrent(CELLS[model.cell].mode, *sizes, dropout=between, bidirectional=bidirectional)
