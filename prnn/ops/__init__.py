"""The layer operator and its backends. Imports torch alone."""

from prnn import native
from prnn.cell_table import CELLS, Cell
from prnn.cuda_plan import BackendError
from prnn.ops.autocast import autocast_dtype, autocast_enabled
from prnn.ops.backends import BACKENDS, FEW_STEPS, Choice, Request, backend, choose, forced
from prnn.ops.layer import layer
from prnn.ops.operands import Weights
from prnn.ops.vendor import torch_layers

__all__ = [
    "BACKENDS",
    "CELLS",
    "FEW_STEPS",
    "BackendError",
    "Cell",
    "Choice",
    "Request",
    "Weights",
    "autocast_dtype",
    "autocast_enabled",
    "backend",
    "choose",
    "forced",
    "layer",
    "native",
    "torch_layers",
]
