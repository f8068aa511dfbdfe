"""Construction of a recurrent module from the section ``model`` of a configuration."""

from __future__ import annotations

from collections.abc import Collection
from importlib import import_module
from typing import TYPE_CHECKING

from prnn import importing
from prnn.cell_table import CELLS
from prnn.errors import UserError
from prnn.nn.init import forget_bias_, identity_, single_bias_
from prnn.nn.layers import RecurrentLayers
from prnn.nn.recurrent import GRU, LSTM, RNN

if TYPE_CHECKING:  # at run time the layers depend only on torch; prnn.config imports OmegaConf
    from prnn.config import ModelConfig
    from prnn.nn.user_cell import Recurrent


def build(
    model: ModelConfig, input_size: int, bidirectional: bool = False, step_inputs: Collection[str] = ()
) -> RecurrentLayers:
    """The recurrent layers that ``model`` describes, initialised accordingly; input [T,B,input_size].

    ``step_inputs`` are the names of the per-step inputs that the caller can give to a cell that takes them.
    Raises ``UserError`` for a cell written in Python that is not there, or that takes others.
    """
    dropout = model.dropout if model.num_layers > 1 else 0.0
    sizes: tuple[int, int, int] = (input_size, model.hidden_size, model.num_layers)
    if model.cell not in CELLS:
        layers = _of_python(model, sizes, dropout, bidirectional)
        _check_step_inputs(model.cell, layers.step_inputs, step_inputs)
        return _initialised(layers, model)
    built_in = _built_in(model, sizes, dropout, bidirectional)
    return built_in if model.bias_hh else single_bias_(built_in)


def _built_in(model: ModelConfig, sizes: tuple[int, int, int], dropout: float, bidirectional: bool) -> RecurrentLayers:
    """Layers of a cell of ``CELLS``."""
    if model.cell == "gru":
        return GRU(*sizes, dropout=dropout, bidirectional=bidirectional)
    if model.cell == "lstm":
        lstm = LSTM(*sizes, dropout=dropout, bidirectional=bidirectional)
        return lstm if model.forget_bias is None else forget_bias_(lstm, model.forget_bias)
    if model.cell in ("rnn_tanh", "rnn_relu"):
        nonlinearity = model.cell.removeprefix("rnn_")
        rnn = RNN(*sizes, nonlinearity=nonlinearity, dropout=dropout, bidirectional=bidirectional)
        return _initialised(rnn, model)
    return RecurrentLayers(CELLS[model.cell].mode, *sizes, dropout=dropout, bidirectional=bidirectional)


def _of_python(model: ModelConfig, sizes: tuple[int, int, int], dropout: float, bidirectional: bool) -> Recurrent:
    """Layers of the cell that ``model.cell``, ``module:name``, refers to."""
    user_cell = import_module("prnn.nn.user_cell")  # only here: it imports what compiles cells
    module, _, attribute = model.cell.partition(":")
    cell = importing.find(module, attribute, f"model.cell={model.cell}")
    if not isinstance(cell, user_cell.CellDefinition):
        raise UserError(
            f"model.cell={model.cell} is of type {type(cell).__name__}, not a cell: expected what prnn.cell makes of a "
            "function."
        )
    try:
        if cell.native == "auto":
            _ = cell.source  # what cannot be compiled is refused now, not at the first step
        return user_cell.Recurrent(cell, *sizes, dropout=dropout, bidirectional=bidirectional, heads=model.heads)
    except UserError as error:
        raise UserError(f"model.cell={model.cell}: {error}.") from error


def _initialised(layers: RecurrentLayers, model: ModelConfig) -> RecurrentLayers:
    if model.init == "default":
        return layers
    rows, columns = layers._prnn_layer_weights(0).weight_hh.shape
    if rows != columns:
        raise UserError(
            f"model.init=identity is for cells with a square recurrent matrix, and that of model.cell={model.cell} "
            f"with model.heads={model.heads} is {rows}x{columns}: set model.init=default."
        )
    return identity_(layers, model.identity_scale, model.input_std)


def _check_step_inputs(cell: str, taken: Collection[str], given: Collection[str]) -> None:
    """Refuse a cell that takes other per-step inputs than it will be given."""
    if missing := [name for name in taken if name not in given]:
        expected = f"a cell with no inputs but {', '.join(given)}" if given else "a cell without inputs"
        raise UserError(
            f"model.cell={cell} takes {', '.join(missing)} at each step, which this task does not give: expected "
            f"{expected}."
        )
