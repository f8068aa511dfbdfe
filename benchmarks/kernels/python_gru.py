"""torch.nn.GRU's equations as a cell written in Python, to be compared with the built-in prnn.GRU."""

from __future__ import annotations

import torch
from torch import Tensor

import prnn
from prnn.codegen.signature import Named

Gates = tuple[Tensor, ...]


@prnn.cell(gates=3)
def python_gru(gx: Gates, gh: Gates, state: Named, p: Named, inputs: Named) -> dict[str, Tensor]:
    """Gates: r, z, n."""
    r = torch.sigmoid(gx[0] + gh[0])
    z = torch.sigmoid(gx[1] + gh[1])
    n = torch.tanh(gx[2] + r * gh[2])
    return {"h": (1 - z) * n + z * state.h}
