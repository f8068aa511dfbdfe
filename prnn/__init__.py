"""prnn: recurrent networks with their recurrent weights resident on the chip for the whole sequence.

``prnn.RNN``, ``prnn.GRU`` and ``prnn.LSTM`` take the place of torch.nn's; ``prnn.convert`` replaces those of a model,
``prnn.patch`` those of a program. ``prnn.cell`` and ``prnn.Recurrent`` make layers of a cell written in Python;
``prnn.explain`` says what runs them, ``prnn.backend`` forces it, and ``prnn.check`` compares them with their equations.
``prnn.Stream`` feeds a model piece by piece, ``prnn.export`` writes it as ONNX and in other formats, proven.
``prnn.cuda_reserve_sms`` leaves a part of each GPU to other kernels; ``prnn.cuda_benchmark`` chooses kernels by time.
The training framework is started with ``python -m prnn.train``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prnn.check import check
    from prnn.codegen import spike
    from prnn.codegen.definition import cell, per_unit, scalar
    from prnn.cuda_plan import cuda_reserve_sms
    from prnn.export import export
    from prnn.nn import GRU, LSTM, RNN, GRUCell, LSTMCell, Recurrent, RNNCell, Stream, convert, explain, patch
    from prnn.ops import backend
    from prnn.ops.autotune import cuda_benchmark
    from prnn.training.malloc import keep_freed_memory

__version__ = "0.1.0"
__all__ = [
    "GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell", "Recurrent", "Stream", "__version__", "backend", "cell",
    "check", "convert", "cuda_benchmark", "cuda_reserve_sms", "explain", "export", "keep_freed_memory", "patch",
    "per_unit", "scalar", "spike",
]  # fmt: skip

_HOMES = dict.fromkeys(("RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell"), "prnn.nn")
_HOMES |= dict.fromkeys(("Recurrent", "Stream", "convert", "explain", "patch"), "prnn.nn")
_HOMES |= dict.fromkeys(("cell", "per_unit", "scalar"), "prnn.codegen.definition")
_HOMES |= {
    "cuda_benchmark": "prnn.ops.autotune",
    "cuda_reserve_sms": "prnn.cuda_plan",
    "spike": "prnn.codegen",
    "backend": "prnn.ops",
    "keep_freed_memory": "prnn.training.malloc",
}


def __dir__() -> list[str]:
    return sorted({*__all__, "cells", "nn", "ops"})


def __getattr__(name: str) -> Any:
    """The public names on first use: a command that only reads its configuration need not import torch."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in ("cells", "check", "export", "nn", "ops"):  # check and export are modules that can be called
        return import_module(f"prnn.{name}")
    raise AttributeError(f"module 'prnn' has no attribute {name!r}")
