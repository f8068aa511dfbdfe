"""How far from right a right kernel may be: norm, slice and bias of the error (compare.py)."""

from __future__ import annotations

from tests.gpu.compare import Measure

# By cell and kind of arithmetic: of states (output, h_n, c_n, memory_n) and of gradients.
Table = dict[str, dict[str, tuple[Measure, Measure]]]

# The bound over the worst that was measured. The bias is kept tighter: one ulp of bfloat16 is 0.0052 of it.
MARGIN: Measure = (2.0, 2.0, 1.5)
# Other kernels sum in another order and have other exponentials: so much is granted in any case. Of the 16-bit types it
# is the bias alone, two fifths of the half ulp by which one rounding may be off.
LEAST: dict[str, Measure] = {
    "float32": (3e-6, 2e-5, 2e-6),
    "float64": (1e-14, 1e-13, 1e-14),
    "bfloat16": (0.0, 0.0, 8e-4),
    "float16": (0.0, 0.0, 1e-4),
}

# The worst that was measured; python -m tests.gpu.derive writes it.
TABLE: Table = {
    "rnn_relu": {
        "float32": ((2.6e-07, 8.4e-07, 1.1e-08), (6.9e-07, 2.5e-06, 5.8e-08)),
        "bfloat16": ((2.9e-03, 1.2e-02, 6.0e-04), (3.7e-03, 1.7e-02, 6.6e-04)),
        "float16": ((3.4e-04, 1.2e-03, 4.2e-05), (4.6e-04, 1.8e-03, 1.1e-04)),
        "tf32": ((1.6e-03, 3.4e-03, 1.4e-03), (1.9e-03, 4.7e-03, 1.8e-03)),
    },
    "rnn_tanh": {
        "float32": ((2.2e-07, 8.7e-07, 6.4e-09), (9.0e-07, 4.1e-06, 1.3e-07)),
        "bfloat16": ((1.7e-03, 5.1e-03, 2.1e-04), (6.9e-03, 2.1e-02, 1.8e-03)),
        "float16": ((2.3e-04, 6.5e-04, 1.5e-05), (8.9e-04, 2.4e-03, 2.2e-04)),
        "tf32": ((8.4e-04, 2.1e-03, 4.7e-04), (2.2e-03, 6.3e-03, 6.2e-04)),
    },
    "gru": {
        "float32": ((1.6e-07, 5.3e-07, 8.0e-09), (9.2e-07, 5.2e-06, 9.7e-08)),
        "bfloat16": ((2.4e-03, 1.1e-02, 4.1e-04), (6.1e-03, 4.1e-02, 1.2e-03)),
        "float16": ((2.8e-04, 1.3e-03, 3.0e-05), (8.1e-04, 4.9e-03, 1.2e-04)),
        "tf32": ((1.2e-03, 2.3e-03, 8.2e-04), (2.2e-03, 9.5e-03, 6.9e-04)),
    },
    "lstm": {
        "float32": ((1.6e-07, 8.7e-07, 1.4e-08), (1.3e-06, 7.6e-06, 2.0e-07)),
        "bfloat16": ((2.2e-03, 7.9e-03, 5.0e-04), (6.4e-03, 5.0e-02, 1.0e-03)),
        "float16": ((2.7e-04, 1.1e-03, 3.8e-05), (7.5e-04, 7.1e-03, 2.1e-04)),
        "tf32": ((1.1e-03, 2.7e-03, 4.5e-04), (2.2e-03, 1.4e-02, 1.0e-03)),
    },
    "memories": {
        "float32": ((4.7e-07, 6.9e-07, 1.9e-07), (5.7e-06, 1.7e-05, 1.4e-06)),
        "float64": ((8.8e-16, 1.5e-15, 3.5e-16), (1.2e-14, 3.4e-14, 5.3e-15)),
    },
}


def of(cell: str, kind: str, what: str) -> Measure:
    """The bounds of the result called ``what``."""
    measured, least = TABLE[cell][kind]["grad" in what], LEAST.get(kind, (0.0, 0.0, 0.0))
    norm, of_slice, bias = (max(m * a, b) for m, a, b in zip(measured, MARGIN, least, strict=True))
    return norm, of_slice, bias
