"""The implementations prnn is compared with. Each peer is a module with ``build(problem) -> Contender``, which raises
``Absent`` if it cannot take part.
"""

from __future__ import annotations

from importlib import import_module

from benchmarks.kernels.peers import torch_nn
from benchmarks.kernels.peers.base import Absent, Contender, Problem

# --peers name -> the name in results, and the module, which is imported lazily (JAX and onnxruntime must not be loaded
# in a process that measures torch alone). torch.nn is the reference and always takes part.
PEERS = {
    "torch": ("torch.nn", "torch_nn"),
    "compile": ("torch.compile", "torch_compile"),
    "jax": ("jax", "jax_scan"),
    "onnxruntime": ("onnxruntime", "onnx_runtime"),
}
GPU_PEERS = {
    "fp16": ("cudnn fp16", "cudnn_float16"),
    "steps": ("steps", "torch_steps"),
    "graph": ("steps, graphed", "torch_graph"),
    "flashrnn": ("flashrnn", "flash_rnn"),
}
REFERENCE, OURS = "torch.nn", "prnn"


def build_all(problem: Problem, peers: list[str]) -> tuple[dict[str, Contender], dict[str, str]]:
    """The contenders that take part, torch.nn and prnn first, and the reasons why others do not."""
    contenders = {REFERENCE: torch_nn.build(problem), OURS: torch_nn.build_prnn(problem)}
    absent = {}
    for key in peers:
        name, module = (PEERS | GPU_PEERS)[key]
        if name in contenders:
            continue
        try:
            contenders[name] = import_module(f"benchmarks.kernels.peers.{module}").build(problem)
        except Absent as reason:
            absent[name] = str(reason)
        except Exception as error:  # a failing peer is reported and must not prevent the others' measurements
            absent[name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    return contenders, absent


__all__ = ["GPU_PEERS", "OURS", "PEERS", "REFERENCE", "Absent", "Contender", "Problem", "build_all", "torch_nn"]
