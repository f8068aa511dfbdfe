"""How far from right a right kernel may be: norm, slice and bias (compare.py) of states and of gradients."""

from __future__ import annotations

from tests.gpu.compare import Bounds

# By cell and kind of arithmetic: of output, h_n and c_n; of all gradients.
TABLE: dict[str, dict[str, tuple[Bounds, Bounds]]] = {
    cell: {
        "float32": ((3e-6, 3e-6, 3e-6), (3e-6, 1e-5, 3e-6)),
        "bfloat16": ((6e-3, 2e-2, 1e-3), (1.5e-2, 6e-2, 4e-3)),
        "float16": ((1e-3, 2e-3, 2e-4), (2e-3, 1e-2, 1e-3)),
        "tf32": ((4e-3, 1e-2, 3e-3), (5e-3, 4e-2, 4e-3)),
        "float64": ((1e-13, 1e-12, 1e-13), (1e-13, 1e-12, 1e-13)),
    }
    for cell in ("rnn_relu", "rnn_tanh", "gru", "lstm", "memories")
}


def of(cell: str, kind: str, what: str) -> Bounds:
    """The bounds of the result called ``what``."""
    return TABLE[cell][kind]["grad" in what]
