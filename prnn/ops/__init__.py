"""The layer operator and its backends. Imports torch alone."""

from importlib import import_module

from prnn import importing, native
from prnn.cell_table import CELLS, Cell
from prnn.cuda_plan import BackendError
from prnn.ops.autocast import autocast_dtype, autocast_enabled
from prnn.ops.backends import BACKENDS, Choice, Request, backend, choose, forced
from prnn.ops.layer import layer
from prnn.ops.layers import layers, run_together
from prnn.ops.operands import Weights
from prnn.ops.reuse import LEAST_BYTES
from prnn.ops.vendor import torch_layers

# Formulas for FlopCounterMode, which few programs import.
importing.when_imported("torch.utils.flop_counter", lambda _: import_module("prnn.ops.flops"))

__all__ = [
    "BACKENDS",
    "CELLS",
    "LEAST_BYTES",
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
    "layers",
    "native",
    "run_together",
    "torch_layers",
]
