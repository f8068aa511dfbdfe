"""The recurrence operator and its backends. Imports torch alone."""

from prnn.ops import native
from prnn.ops.backends import BACKENDS, BackendError, Choice, Request, backend, choose
from prnn.ops.cells import CELLS, Cell
from prnn.ops.layer import autocast_dtype, directions, explain_layer, layer
from prnn.ops.recurrence import autocast_enabled, recurrence

__all__ = [
    "BACKENDS",
    "CELLS",
    "BackendError",
    "Cell",
    "Choice",
    "Request",
    "autocast_dtype",
    "autocast_enabled",
    "backend",
    "choose",
    "directions",
    "explain_layer",
    "layer",
    "native",
    "recurrence",
]
