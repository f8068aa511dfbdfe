"""The benchmark cases: shapes, FLOP counts, and target speedups.

T: time steps, B: batch, I: input size, H: hidden size, G: gates (RNN 1, GRU 3, LSTM 4), D: directions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

GATES = {"rnn_tanh": 1, "rnn_relu": 1, "gru": 3, "lstm": 4}
PYTHON_GATES = {"leaky": 1, "lif": 1, "alif": 1, "slstm": 4, "ligru": 2, "python_gru": 3}  # cells written in Python
ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SHORT_DTYPES = {"bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True)
class Case:
    """One module on one input. ``targets``: the target speedup over a peer in forward+backward."""

    cell: str
    T: int
    B: int
    I: int
    H: int
    dtype: str = "float32"
    layers: int = 1
    bidirectional: bool = False
    lengths: bool = False  # samples of different lengths, 1 to T
    heads: int = 1  # diagonal blocks of weight_hh
    targets: dict[str, float] = field(default_factory=dict, compare=False)

    @property
    def name(self) -> str:
        extras = [SHORT_DTYPES[self.dtype]] if self.dtype in SHORT_DTYPES else []
        extras += [f"{self.layers} layers"] if self.layers > 1 else []
        extras += ["bidirectional"] if self.bidirectional else []
        extras += ["lengths"] if self.lengths else []
        extras += [f"{self.heads} heads"] if self.heads > 1 else []
        return " ".join([self.cell, f"T{self.T} B{self.B} I{self.I} H{self.H}", *extras])

    @property
    def D(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def in_python(self) -> bool:
        """Whether the cell is written in Python."""
        return self.cell in PYTHON_GATES

    @property
    def G(self) -> int:
        return (GATES | PYTHON_GATES)[self.cell]

    @property
    def plain(self) -> bool:
        """Whether it is one layer, one direction, all samples of T steps, which every peer supports."""
        return self.layers == 1 and not self.bidirectional and not self.lengths

    @property
    def input_requires_grad(self) -> bool:
        """Whether the input needs a gradient: not for one number per step, which is raw data (pixels, samples)."""
        return self.I > 1

    def flops(self, train: bool) -> int:
        """Multiply and add counted as two, all T steps of all samples; the gates' own arithmetic is left out.

        Per step and sample 2*G*H*H (over the heads) for each of forward, the gradient of the state and that of
        weight_hh; 2*G*H*I for each of the projection, the gradient of weight_ih and, where it is asked for, that of the
        input.
        """
        G, H, total = self.G, self.H, 0
        for layer in range(self.layers):
            width = self.I if layer == 0 else self.D * H
            with_dx = layer > 0 or self.input_requires_grad
            recurrent, projection = 2 * G * H * H // self.heads, 2 * G * H * width
            total += 3 * recurrent + (3 if with_dx else 2) * projection if train else recurrent + projection
        return self.D * self.T * self.B * total

    def recurrent_bytes(self) -> int:
        """weight_hh of one layer in one direction."""
        return self.G * self.H * self.H // self.heads * ELEMENT_BYTES[self.dtype]

    def streamed_bytes(self, train: bool) -> int:
        """Bytes read if weight_hh is not kept in registers: all of it, at every step, in each direction."""
        return self.D * self.layers * self.T * self.recurrent_bytes() * (2 if train else 1)


def _table(cell: str, T: int, B: int, I: int, H: int, torch: float, jax: float | None, dtype: str = "float32") -> Case:
    targets = {"torch.nn": torch} if jax is None else {"torch.nn": torch, "jax": jax}
    return Case(cell, T, B, I, H, dtype, targets=targets)


TABLE = (
    _table("rnn_relu", 784, 32, 1, 100, 6.0, 3.0),
    _table("rnn_relu", 784, 1, 1, 100, 35.0, 1.7),
    _table("rnn_tanh", 128, 32, 128, 256, 1.5, 1.7),
    _table("rnn_relu", 64, 4, 1152, 1152, 2.2, 1.6),
    _table("gru", 784, 32, 1, 100, 6.0, None),
    _table("gru", 784, 1, 1, 100, 40.0, None),
    _table("gru", 128, 32, 256, 256, 1.6, None),
    _table("lstm", 784, 32, 1, 100, 3.0, None),
    _table("lstm", 784, 1, 1, 100, 3.0, None),
    _table("lstm", 128, 32, 256, 256, 1.15, None),
    _table("lstm", 128, 32, 512, 512, 1.0, None),
    _table("lstm", 128, 32, 512, 512, 1.7, None, "bfloat16"),
    _table("rnn_tanh", 200, 128, 32, 512, 2.0, None),
    Case("lstm", 100, 64, 24, 200, layers=2, targets={"torch.nn": 1.6}),
)

# Cells written in Python: over the same equations as a Python loop, over JAX, over the cell's own package.
CELLS = (
    Case("leaky", 500, 32, 8, 128, targets={"loop": 20.0, "jax": 2.5}),
    Case("lif", 300, 32, 64, 128, targets={"loop": 14.0, "jax": 3.0, "snntorch": 15.0}),
    Case("alif", 300, 32, 64, 128, targets={"loop": 14.0, "jax": 2.5}),
    Case("slstm", 300, 32, 64, 128, targets={"loop": 13.0, "jax": 2.4}),
    Case("slstm", 300, 32, 64, 128, heads=4, targets={"loop": 13.0, "jax": 2.4}),
    Case("ligru", 300, 32, 64, 256, targets={"loop": 10.0, "jax": 2.0}),
    Case("python_gru", 128, 32, 256, 256, targets={"prnn.GRU": 0.95}),
    Case("leaky", 1000, 1, 8, 128, targets={"loop": 100.0, "jax": 2.0}),
)

# One of each kind: few steps' worth of time, all peers (torch.compile among them at T 64).
SHORT = (TABLE[0], TABLE[1], TABLE[3], TABLE[4], TABLE[5], TABLE[8], TABLE[9])

# T, B, I, H: short and long, thin and wide, sizes that fill no vector (1, 3, 17, 100, 257), weights from 4 bytes to
# more than the second-level caches hold.
SWEEP_SHAPES = (
    (1, 1, 8, 17),
    (1, 128, 256, 512),
    (2, 4, 128, 1024),
    (4, 256, 64, 64),
    (5, 3, 17, 257),
    (6, 100, 512, 1024),
    (8, 1, 65, 512),
    (10, 32, 10, 3),
    (16, 64, 100, 100),
    (25, 1, 65, 100),
    (32, 17, 1, 256),
    (50, 50, 128, 128),
    (64, 8, 300, 300),
    (100, 2, 3, 1),
    (100, 128, 40, 64),
    (128, 1, 257, 1024),
    (200, 7, 33, 17),
    (256, 16, 80, 512),
    (500, 4, 1, 100),
    (784, 256, 1, 32),
    (1024, 1, 16, 257),
    (2048, 1, 1, 100),
    (2048, 16, 4, 17),
)
SWEEP = (
    *(Case(cell, *shape) for cell in GATES for shape in SWEEP_SHAPES),
    *(Case(cell, 60, 20, 32, 100, lengths=True) for cell in GATES),
    *(Case(cell, 40, 16, 48, 96, bidirectional=True) for cell in GATES),
    *(Case(cell, 50, 32, 64, 128, layers=2) for cell in GATES),
    Case("gru", 100, 30, 40, 257, layers=2, bidirectional=True, lengths=True),
    Case("lstm", 300, 8, 80, 256, lengths=True),
)

# Few samples of several layers, which may run at the same time.
STACKS = (
    *(Case(cell, 500, 1, 128, 128, layers=2, targets={"layer by layer": 1.6}) for cell in ("lstm", "gru")),
    Case("rnn_tanh", 500, 1, 128, 128, layers=2),
    Case("lstm", 500, 1, 128, 128, layers=4),
    Case("gru", 784, 1, 1, 100, layers=2),
    Case("lstm", 100, 4, 64, 128, layers=2),
    Case("lstm", 300, 1, 64, 256, layers=2),
    Case("rnn_relu", 1000, 8, 32, 64, layers=2),
    Case("gru", 64, 1, 32, 64, layers=2),
)

# Calls of a few steps, as in reinforcement learning and generation.
STEPS_SIZES = tuple((B, H) for B in (1, 16, 64) for H in (32, 128, 256, 512))
STEPS = tuple(
    Case(cell, T, B, H, H, layers=layers)
    for cell in ("rnn_tanh", "gru", "lstm")
    for T, layers in ((1, 1), (1, 2), (1, 3), (2, 1), (4, 1), (4, 3), (8, 1))
    for B, H in STEPS_SIZES
)

# Typical shapes for persistent kernels on a GPU: those of DeepBench, of Persistent RNNs (Diamos et al., 2016), of
# FlashRNN's paper, of the IRNN. ``targets``: times cuDNN's speed in the same dtype, and a product per step's.
# Of cells written in Python on a GPU; of those with spikes in float32, where few spikes depend on rounding.
GPU_CELLS = tuple(
    Case(cell, 256, B, H, H, dtype)
    for cell, dtype in (("leaky", "bfloat16"), ("slstm", "bfloat16"), ("lif", "float32"), ("alif", "float32"))
    for H in (256, 768)
    for B in (16, 64)
)
GPU = (
    Case("lstm", 1024, 16, 768, 768, "bfloat16", targets={"torch.nn": 1.0, "cudnn fp16": 1.0}),
    Case("lstm", 1024, 16, 1024, 1024, "bfloat16", targets={"torch.nn": 1.0}),
    Case("gru", 1500, 32, 1024, 1024, "bfloat16", targets={"torch.nn": 3.0}),
    Case("rnn_relu", 784, 32, 1, 100, targets={"torch.nn": 3.0}),
    Case("rnn_relu", 1024, 4, 1152, 1152, "bfloat16", targets={"torch.nn": 2.0, "steps": 30.0}),
    Case("rnn_relu", 50, 16, 1760, 1760, "bfloat16", targets={"torch.nn": 2.0}),
    Case("lstm", 512, 16, 512, 512, "bfloat16", layers=4, bidirectional=True, targets={"torch.nn": 1.5}),
)
