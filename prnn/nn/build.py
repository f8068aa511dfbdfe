"""Construction of a recurrent module from the section ``model`` of a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prnn.cell_table import CELLS
from prnn.nn.init import forget_bias_, identity_
from prnn.nn.recurrent import GRU, LSTM, RNN, RecurrentLayers

if TYPE_CHECKING:  # at run time the layers depend only on torch; prnn.config imports OmegaConf
    from prnn.config import ModelConfig


def build(model: ModelConfig, input_size: int, bidirectional: bool = False) -> RecurrentLayers:
    """The recurrent layers that ``model`` describes, initialised accordingly; input [T,B,input_size]."""
    dropout = model.dropout if model.num_layers > 1 else 0.0
    sizes: tuple[int, int, int] = (input_size, model.hidden_size, model.num_layers)
    if model.cell == "gru":
        return GRU(*sizes, dropout=dropout, bidirectional=bidirectional)
    if model.cell == "lstm":
        lstm = LSTM(*sizes, dropout=dropout, bidirectional=bidirectional)
        return lstm if model.forget_bias is None else forget_bias_(lstm, model.forget_bias)
    if model.cell in ("rnn_tanh", "rnn_relu"):
        nonlinearity = model.cell.removeprefix("rnn_")
        rnn = RNN(*sizes, nonlinearity=nonlinearity, dropout=dropout, bidirectional=bidirectional)
        return identity_(rnn, model.identity_scale, model.input_std) if model.init == "identity" else rnn
    return RecurrentLayers(CELLS[model.cell].mode, *sizes, dropout=dropout, bidirectional=bidirectional)
