"""The implementations prnn is compared with. Each peer is a module with ``build(problem) -> Contender``, which raises
``Absent`` if it cannot take part.
"""

from __future__ import annotations

from importlib import import_module

from benchmarks.kernels.cases import Case
from benchmarks.kernels.peers import torch_nn
from benchmarks.kernels.peers.base import Absent, Contender, Problem

# --peers name -> the name in results, and the module, which is imported lazily (JAX and onnxruntime must not be loaded
# in a process that measures torch alone). torch.nn is the reference of built-in cells and always takes part there.
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
# Of cells written in Python; jax takes part there too.
CELL_PEERS = {
    "loop": ("loop", "python_loop"),
    "unbound": ("loop, unbound", "unbound_loop"),
    "builtin": ("prnn.GRU", "builtin_gru"),
    "snntorch": ("snntorch", "snntorch_rleaky"),
    "norse": ("norse (other equations)", "norse_lsnn"),
    "xlstm": ("xlstm", "xlstm_vanilla"),
    "speechbrain": ("speechbrain", "speechbrain_ligru"),
    "graphed-loop": ("loop, graphed", "graphed_loop"),
    "compiled-step": ("loop, compiled step", "compiled_step"),
    "scan": ("scan, graphed", "graphed_scan"),
    "spikingjelly": ("spikingjelly (other equations)", "spikingjelly_lif"),
}
# Of stacks of few samples.
STACK_PEERS = {"layers": ("layer by layer", "single_layers"), "one-thread": ("one thread", "one_thread")}
OWN_PACKAGE = {
    "lif": "snntorch", "alif": "norse", "slstm": "xlstm", "ligru": "speechbrain", "python_gru": "builtin"
}  # fmt: skip
ALL_PEERS = PEERS | GPU_PEERS | CELL_PEERS | STACK_PEERS
REFERENCE, OURS = "torch.nn", "prnn"


def of_cell(case: Case) -> list[str]:
    """The peers of a cell written in Python."""
    return ["loop", "unbound", "jax", *([OWN_PACKAGE[case.cell]] if case.cell in OWN_PACKAGE else [])]


def build_reference(problem: Problem) -> tuple[str, Contender]:
    """What all others are compared with: torch.nn, or the equations of a cell written in Python."""
    if problem.case.in_python:
        return "equations", torch_nn.build_equations(problem)
    return REFERENCE, torch_nn.build(problem)


def build_all(problem: Problem, peers: list[str]) -> tuple[dict[str, Contender], dict[str, str]]:
    """The contenders that take part, the reference and prnn first, and the reasons why others do not."""
    contenders = dict([build_reference(problem)]) | {OURS: torch_nn.build_prnn(problem)}
    absent = {}
    for key in peers:
        name, module = ALL_PEERS[key]
        if name in contenders:
            continue
        try:
            contenders[name] = import_module(f"benchmarks.kernels.peers.{module}").build(problem)
        except Absent as reason:
            absent[name] = str(reason)
        except Exception as error:  # a failing peer is reported and must not prevent the others' measurements
            absent[name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    return contenders, absent


__all__ = [
    "ALL_PEERS", "CELL_PEERS", "OURS", "OWN_PACKAGE", "PEERS", "REFERENCE", "STACK_PEERS", "Absent", "Contender",
    "Problem", "build_all", "build_reference", "of_cell", "torch_nn",
]  # fmt: skip
