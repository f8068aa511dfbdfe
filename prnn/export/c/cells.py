"""The built-in cells as functions of one step, which are traced as users' cells are. Equations: ``cell_table.py``.

Shapes: B batch, H hidden size; every tensor is [B,H].
"""

from __future__ import annotations

import torch
from torch import Tensor

from prnn.cell_table import Cell
from prnn.codegen.definition import UserCell
from prnn.codegen.signature import CellFunction, Named, Signature

Gates = tuple[Tensor, ...]


def rnn_tanh(gx: Gates, gh: Gates, state: Named, p: Named, inputs: Named) -> dict[str, Tensor]:
    return {"h": torch.tanh(gx[0] + gh[0])}


def rnn_relu(gx: Gates, gh: Gates, state: Named, p: Named, inputs: Named) -> dict[str, Tensor]:
    return {"h": torch.relu(gx[0] + gh[0])}


def gru(gx: Gates, gh: Gates, state: Named, p: Named, inputs: Named) -> dict[str, Tensor]:
    r = torch.sigmoid(gx[0] + gh[0])
    z = torch.sigmoid(gx[1] + gh[1])
    n = torch.tanh(gx[2] + r * gh[2])
    return {"h": n + z * (state.h - n)}


def lstm(gx: Gates, gh: Gates, state: Named, p: Named, inputs: Named) -> dict[str, Tensor]:
    i = torch.sigmoid(gx[0] + gh[0])
    f = torch.sigmoid(gx[1] + gh[1])
    g = torch.tanh(gx[2] + gh[2])
    o = torch.sigmoid(gx[3] + gh[3])
    c = f * state.c + i * g
    return {"h": o * torch.tanh(c), "c": c}


_BUILT_IN = {function.__name__: function for function in (rnn_tanh, rnn_relu, gru, lstm)}


def function_of(cell: Cell) -> tuple[CellFunction, Signature]:
    """A cell's function and its names."""
    if isinstance(cell, UserCell):
        return cell.function, cell.signature
    return _BUILT_IN[cell.name], Signature(cell.gates, cell.states)
