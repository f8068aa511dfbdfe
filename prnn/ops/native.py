"""The native library: finding it, loading it, and saying why it is not there.

It is built ahead of time against torch's stable ABI (setup.py) and registers its operators under
``torch.ops.prnn_native``. A missing or broken library never breaks ``import prnn``: the `torch` backend serves.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch
from torch import Tensor

from prnn.ops.gradients import SerialGradients

LIBRARY_PATTERN = "_native*.so"
INSTRUCTION_SETS = ("portable", "avx2", "avx512")


def status() -> tuple[bool, str]:
    """(loaded?, why or from where). PRNN_NO_NATIVE=1 leaves the library out."""
    return _STATUS


def _load() -> tuple[bool, str]:
    if os.environ.get("PRNN_NO_NATIVE") == "1":
        return False, "left out by PRNN_NO_NATIVE=1"
    isa = os.environ.get("PRNN_CPU_ISA", "")
    if isa not in ("", *INSTRUCTION_SETS):
        return False, f"PRNN_CPU_ISA={isa} is none of {', '.join(INSTRUCTION_SETS)}"
    found = sorted(Path(__file__).resolve().parent.parent.glob(LIBRARY_PATTERN))
    if not found:
        return False, "not built (pip install --no-build-isolation . builds it where torch and a C++ compiler are)"
    try:
        torch.ops.load_library(found[0])
        chosen = torch.ops.prnn_native.cpu_isa()
    except (OSError, RuntimeError, AttributeError) as error:
        reason = f"{found[0].name} does not load: {str(error).splitlines()[0]}"
        warnings.warn(f"prnn: the native library is broken, torch's own kernels are used ({reason})", stacklevel=2)
        return False, reason
    return True, f"{found[0].name}, {chosen} kernels"


# At import, not at first use: torch.compile would trace into a lazy loader.
_STATUS = _load()


def rnn_forward(
    gates_x: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    h0: Tensor,
    lengths: Tensor | None,
    resets: Tensor | None,
    cell: str,
) -> tuple[Tensor, Tensor]:
    """The vanilla RNN's recurrence, float32 on the CPU: shapes as in ``ops.recurrence`` -> output, h_n."""
    T, B, hidden_size = gates_x.shape
    output = gates_x.new_empty((T, B, hidden_size))
    h_n = h0.new_empty((B, hidden_size))
    torch.ops.prnn_native.rnn_forward.default(
        gates_x.contiguous(),
        weight_hh.contiguous(),
        None if bias_hh is None else bias_hh.contiguous(),
        h0.contiguous(),
        _int64(lengths),
        _bool(resets),
        cell == "rnn_relu",
        output,
        h_n,
    )
    return output, h_n


def rnn_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    weight_hh: Tensor,
    lengths: Tensor | None,
    resets: Tensor | None,
    output: Tensor,
    cell: str,
) -> SerialGradients:
    """The serial part of the vanilla RNN's backward pass."""
    grad_gates = torch.empty_like(output)
    grad_h0 = output.new_empty(output.shape[1:])
    torch.ops.prnn_native.rnn_backward.default(
        None if grad_output is None else grad_output.contiguous(),
        None if grad_h_n is None else grad_h_n.contiguous(),
        weight_hh.contiguous(),
        _int64(lengths),
        _bool(resets),
        output,
        cell == "rnn_relu",
        grad_gates,
        grad_h0,
    )
    return SerialGradients(grad_gates, grad_gates, None, grad_h0, None)


def _int64(lengths: Tensor | None) -> Tensor | None:
    return None if lengths is None else lengths.to(torch.int64).contiguous()


def _bool(resets: Tensor | None) -> Tensor | None:
    return None if resets is None else resets.contiguous()
