"""Limits of strong scaling: the training step time on a GPU by batch size, with and without persistent kernels.

The argument is Diamos et al., "Persistent RNNs: Stashing Recurrent Weights On-Chip" (ICML 2016,
proceedings.mlr.press/v48/diamos16.html). At a fixed global batch, more GPUs mean fewer samples per GPU. A GEMM per
time step re-reads all of weight_hh whatever the batch, so that a step takes as long with 4 samples as with 64, and
16 times the GPUs gain nothing. Kernels that keep the weights on chip get faster with fewer samples; on a Titan X
theirs sustained 2.8 TFLOP/s at batch 4, 30 times the GEMMs', which allowed scaling to 16 times as many GPUs.

Everything here is predicted, nothing measured. Letters: T time steps, B samples of one GPU, H hidden size (and the
input's: layers on layers), G gates, L layers; bf16.

    product per step    L T [2 kernels x launch + max(G H H 2 bytes / bandwidth, 2 G H H B / peak)], each way
    persistent          L T us(B), each way: the cost model of csrc/cuda/planner.cpp, which docs/kernels.md explains
    both, besides       4 products of all time steps at once for each layer (input, its gradient, gradients of both
                        weights): max(2 G H H T B / peak, what they read and write / bandwidth)

"Product per step" is a floor: nothing but a product and a pointwise kernel, back to back. Published implementations
take more (LSTM bf16 H768 B16 on an H100, us a step forward: FlashRNN's alternating kernels 10.5, Haste 18;
cuDNN on an H200, as measured, 13; this floor 5.0).
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.scaling.alpha_beta import Stage, exposed
from benchmarks.scaling.nccl_model import Cluster
from prnn.errors import UserError

CUDA = Path(__file__).resolve().parents[2] / "prnn" / "csrc" / "cuda"
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
BUCKET_BYTES = 25 * 2**20  # distributed.bucket_cap_mib
AGREEMENT_BYTES = 56  # the step's own all-reduce of seven doubles
BACKWARD_PRODUCTS = 3 / 4  # of the four products of all time steps: all but the input's
KINDS = ("persistent", "product per step")


@dataclass(frozen=True)
class Gpu:
    """What a step by products is counted with."""

    bandwidth: float = 4.8e12  # bytes/s: H200's data sheet
    peak: float = 0.6 * 989e12  # FLOP/s: dense bf16 of the data sheet, times 0.6 (docs/kernels.md)
    launch_us: float = 2.0  # of one of two small kernels that wait for each other, in a CUDA graph


GPU = Gpu()
LAUNCHES_US = (1.0, 2.0, 5.0)  # kindest, assumed, as launched from Python without a graph
_KNOWN = (
    ("H200: reading memory", "4.8 TB/s", "data sheet; weights that stay in its second-level cache of 50 MB are read "
     "about as fast (5.5 TB/s, docs/kernels.md)"),
    ("H200: dense bf16 products", "0.6 x 989 TFLOP/s", "data sheet; 0.6: docs/kernels.md"),
    ("a small kernel that waits for the one before", "2 us (1 to 5)", "our guess: a gap of 0.5 to 1 us in a CUDA graph "
     "(NVIDIA, Getting Started with CUDA Graphs, 2019, on a V100) and two latencies of memory; 5: launched one by one "
     "(cuDNN's two kernels a step took 12.5 us on an H200)"),
    ("a step of the persistent kernels", "tables above", "csrc/cuda/planner.cpp, fitted to an H200: docs/kernels.md"),
)  # fmt: skip
SOURCES = [{"what": what, "value": value, "source": source} for what, value, source in _KNOWN]


@dataclass(frozen=True)
class Net:
    """L equal layers on each other, and how long its sequences are."""

    cell: str
    hidden: int
    layers: int
    steps: int

    @property
    def gates(self) -> int:
        return {"rnn_relu": 1, "gru": 3, "lstm": 4}[self.cell]

    @property
    def name(self) -> str:
        return f"{self.layers} layers of {self.cell} H{self.hidden}, T{self.steps}, bf16"

    @property
    def layer_sizes(self) -> tuple[int, ...]:
        """Bytes of a layer's float32 gradients: bias_hh, bias_ih, weight_hh, weight_ih, as DDP comes to them."""
        bias, weight = 4 * self.gates * self.hidden, 4 * self.gates * self.hidden**2
        return bias, bias, weight, weight


NETS = (Net("rnn_relu", 1152, 8, 1024), Net("lstm", 1024, 4, 1024))


def persistent_us(net: Net, batches: Sequence[int] = BATCHES) -> dict[int, tuple[float, float]]:
    """Microseconds of a time step of one layer, forward and backward, by batch, as the kernels' planner counts."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "plan_times"
        sources = [str(Path(__file__).with_name("plan_times.cpp")), str(CUDA / "planner.cpp")]
        try:
            build = ["g++", "-std=c++17", "-O1", f"-I{CUDA}", *sources, "-o", str(program)]
            subprocess.run(build, check=True, capture_output=True)
            command = [str(program), net.cell, str(net.hidden), *map(str, batches)]
            lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        except FileNotFoundError as error:
            raise UserError("the kernels' cost model is C++, and there is no g++ here: install one.") from error
    rows = (line.split() for line in lines)
    return {int(batch): (float(forward), float(backward)) for batch, forward, backward in rows}


def product_us(net: Net, batch: int, gpu: Gpu = GPU) -> float:
    """Microseconds of a time step of one layer, one way, by a product that reads the weights and a pointwise kernel."""
    weights = net.gates * net.hidden**2
    return 2 * gpu.launch_us + 1e6 * max(2 * weights / gpu.bandwidth, 2 * weights * batch / gpu.peak)


def whole_sequence_us(net: Net, batch: int, gpu: Gpu = GPU) -> float:
    """Microseconds of one layer's four products of all time steps."""
    rows, outputs = net.steps * batch, net.gates * net.hidden
    operations = 2 * rows * outputs * net.hidden
    moved = 2 * (rows * (outputs + net.hidden) + outputs * net.hidden)
    return 4e6 * max(operations / gpu.peak, moved / gpu.bandwidth)


def step_seconds(net: Net, batch: int, us: tuple[float, float], gpu: Gpu = GPU) -> tuple[float, list[Stage]]:
    """Seconds of the forward pass, and the stages of the backward pass; ``us`` a time step of a layer, each way."""
    products = whole_sequence_us(net, batch, gpu)
    forward = net.layers * (net.steps * us[0] + (1 - BACKWARD_PRODUCTS) * products) / 1e6
    backward = (net.steps * us[1] + BACKWARD_PRODUCTS * products) / 1e6
    return forward, [Stage(backward, net.layer_sizes)] * net.layers


def scaled(net: Net, batch: int, us: tuple[float, float], n: int, cluster: Cluster) -> dict[str, float]:
    """A training step on ``n`` GPUs of ``batch`` samples each: milliseconds, and those of exposed communication."""
    forward, stages = step_seconds(net, batch, us)
    computing = forward + sum(stage.seconds for stage in stages)
    seen = exposed(stages, BUCKET_BYTES, lambda size: cluster.all_reduce(n, size)[0])
    seen += cluster.all_reduce(n, AGREEMENT_BYTES)[0]
    return {"gpus": n, "batch": batch, "step_ms": 1e3 * (computing + seen), "exposed_ms": 1e3 * seen}


def study(net: Net, table: dict[int, tuple[float, float]], cluster: Cluster, most: int = 1024) -> dict[str, object]:
    """Everything predicted of one network: times by batch, strong scaling down to batch 4, weak scaling at 4 and 64."""
    ways = {KINDS[0]: table, KINDS[1]: {batch: (product_us(net, batch),) * 2 for batch in table}}
    total = 4 * most
    shares = [batch for batch in sorted(table, reverse=True) if batch >= 4]
    strong = {kind: [scaled(net, b, us[b], total // b, cluster) for b in shares] for kind, us in ways.items()}
    everything = [row for rows in strong.values() for row in rows]
    cheapest = min(row["step_ms"] * row["gpus"] for row in everything)  # one measure for both kinds of kernel
    for row in everything:
        row["sequences_per_second"] = 1e3 * total / row["step_ms"]
        row["efficiency"] = cheapest / (row["step_ms"] * row["gpus"])
    counts = [2**power for power in range(most.bit_length())]
    weak = {kind: {str(b): _weak(net, b, us[b], counts, cluster) for b in (4, 64)} for kind, us in ways.items()}
    launches = {f"{us:g}": [product_us(net, batch, Gpu(launch_us=us)) for batch in table] for us in LAUNCHES_US}
    return {
        "status": "predicted",
        "net": net.name,
        **asdict(net),
        "gradient_bytes": net.layers * sum(net.layer_sizes),
        "batches": list(table),
        "persistent_us": [list(each) for each in table.values()],
        "product_us_by_launch": launches,
        "global_batch": total,
        "strong": strong,
        "weak": weak,
    }


def _weak(net: Net, batch: int, us: tuple[float, float], counts: list[int], cluster: Cluster) -> list[dict[str, float]]:
    rows = [scaled(net, batch, us, n, cluster) for n in counts]
    for row in rows:
        row["efficiency"] = rows[0]["step_ms"] / row["step_ms"]
    return rows
