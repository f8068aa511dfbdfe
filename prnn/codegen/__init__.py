"""From a cell function in Python to a C++ struct with its forward and backward pass.

``signature``    what the function takes and returns
``hoist``        expressions of parameters alone, computed once in torch
``trace``        the equations, forward and backward; ``lowering`` has the rules for torch's operators
``expressions``  what the equations are made of
``partition``    what the forward pass saves for the backward pass
``emit``         the struct's text
``gradients``    derivatives by torch's autograd engine
``surrogate``    spikes with surrogate derivatives, for cell functions
"""

from __future__ import annotations

from prnn.codegen.emit import Emitted, emit
from prnn.codegen.hoist import Prologue
from prnn.codegen.partition import partition
from prnn.codegen.signature import CellFunction, Signature, call, location, name_of
from prnn.codegen.surrogate import spike
from prnn.codegen.trace import OTHER_SHAPE, trace
from prnn.errors import UserError

__all__ = ["CellFunction", "Emitted", "Prologue", "Signature", "call", "generate", "spike"]


def generate(function: CellFunction, signature: Signature, struct_name: str) -> tuple[Emitted, Prologue]:
    """The C++ struct ``struct_name`` of a cell function, and what computes the struct's parameters.

    UserError, in one sentence that names the line, for what a kernel cannot compute.
    """
    traced = trace(function, signature)
    emitted = emit(traced, partition(traced), function, struct_name)
    again = trace(function, signature, OTHER_SHAPE)
    same = emit(again, partition(again), function, struct_name).text == emitted.text
    if not same or repr(again.prologue.calls) != repr(traced.prologue.calls):
        raise UserError(
            f"{location(function)}: the cell {name_of(function)} is not the same at each call: it depends on the size "
            "of a tensor, or on something outside that changes, such as a random number; make that a parameter, a "
            'per-step input or a fixed number, or run the Python loop with native="never"'
        )
    return emitted, traced.prologue
