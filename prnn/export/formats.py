"""The formats that Python's libraries write: ONNX, torch.export's .pt2, and AOTInductor's package."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from prnn.errors import UserError
from prnn.export.subject import Subject

OPSET = 20


def exported(subject: Subject) -> ExportedProgram:
    """The model as a graph of any T and B, prnn's layers one operator each."""
    T, B = 3, 2
    input = {subject.frames: Dim.DYNAMIC, subject.streams: Dim.DYNAMIC}
    states = tuple({state.dim: Dim.DYNAMIC} for state in subject.states)
    arguments = (subject.values(T, B), *subject.initial(B))
    sizes = (input, states) if states else (input,)
    try:
        with _quiet(), torch.no_grad():
            return torch.export.export(subject.single, arguments, dynamic_shapes=sizes, strict=False)
    except Exception as error:
        raise UserError(
            f"{subject.kind} has no graph of any T and B: torch.export says: {_first_lines(error)}"
        ) from error


def write_pt2(subject: Subject, file: Path) -> None:
    """An ExportedProgram of ATen operators, which torch.export.load reads where prnn is not installed."""
    program = exported(subject)
    with _quiet():
        torch.export.save(program.run_decompositions(), file)


def write_aoti(subject: Subject, file: Path) -> None:
    """A package of a compiled library, for torch._inductor.aoti_load_package and libtorch's loader."""
    program = exported(subject)
    try:
        with _quiet(), torch.no_grad():
            torch._inductor.aoti_compile_and_package(program.run_decompositions(), package_path=str(file))
    except Exception as error:
        raise UserError(f"AOTInductor does not compile {subject.kind}: {_first_lines(error)}") from error


def write_onnx(subject: Subject, file: Path) -> None:
    """An ONNX model of standard operators (opset 20): RNN, GRU and LSTM; Scan for cells that ONNX does not have."""
    _require_onnx()
    program = exported(subject)
    names = [subject.input, *(state.given for state in subject.states)]
    outputs = ["output", *(state.final for state in subject.states)]
    try:
        with _quiet():
            onnx = torch.onnx.export(
                program, dynamo=True, input_names=names, output_names=outputs, opset_version=OPSET, verbose=False
            )
            assert onnx is not None
            # The weights in ONNX's order of the gates; by itself torch folds small constants alone.
            optimizer = import_module("onnxscript.optimizer")
            optimizer.optimize(onnx.model, input_size_limit=1 << 40, output_size_limit=1 << 40)
            _name_sizes(onnx.model.graph, subject)
            onnx.save(file)
    except Exception as error:
        _refuse_unknown(subject, program)
        raise UserError(f"torch.onnx does not export {subject.kind}: {_first_lines(error)}") from error


FORMATS: dict[str, tuple[str, Callable[[Subject, Path], None]]] = {
    "onnx": ("model.onnx", write_onnx),
    "pt2": ("model.pt2", write_pt2),
    "aoti": ("model.pt2", write_aoti),
}


def _require_onnx() -> None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime", "numpy") if find_spec(name) is None]
    if missing:
        absent = f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
        raise UserError(f"format=onnx needs the packages of the extra export: pip install 'prnn[export]' ({absent})")


def _refuse_unknown(subject: Subject, program: ExportedProgram) -> None:
    """Name all operators that have no ONNX function: torch.onnx names the first."""
    registration = import_module("torch.onnx._internal.exporter._registration")
    decomposition = import_module("torch.onnx._internal.exporter._decomp")
    with _quiet():
        registry = registration.ONNXRegistry.from_torchlib(opset_version=OPSET)
        known = decomposition.get_onnx_implemented_overloads(registry)
        table = decomposition.create_onnx_friendly_decomposition_table(known)
        with torch.no_grad():
            decomposed = program.run_decompositions(table)
    unknown = {}
    for module in decomposed.graph_module.modules():
        for node in getattr(module, "graph", torch.fx.Graph()).nodes:
            if isinstance(node.target, torch._ops.OpOverload) and not registry.is_registered(node.target):
                unknown[str(node.meta.get("original_aten") or node.target)] = _place(node)
    if unknown:
        parts = ", ".join(f"{name}{place}" for name, place in sorted(unknown.items()))
        raise UserError(f"{subject.kind} has operators that ONNX has not: {parts}")


def _place(node: torch.fx.Node) -> str:
    """Where in the model an operator stands."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = stack[-1][0] if stack else ""
    path = path.removeprefix("L['self'].").removeprefix("module").removeprefix(".")
    return f" (of {path})" if path else ""


def _name_sizes(graph: Any, subject: Subject) -> None:
    """The sizes of inputs and outputs by name: "frames" and "streams", as they were found."""
    values = [graph.inputs[0], graph.outputs[0]]
    names: dict[str, str] = {}
    for value, (frames, streams) in zip(
        values, ((subject.frames, subject.streams), (subject.frames_out, subject.streams_out)), strict=True
    ):
        for dim, name in ((frames, "frames"), (streams, "streams")):
            if dim is not None and not isinstance(value.shape[dim], int):
                names[str(value.shape[dim].value)] = name
    for value in (*graph.inputs, *graph.outputs):
        value.shape = type(value.shape)(
            [size if isinstance(size, int) else names.get(str(size.value), str(size.value)) for size in value.shape]
        )


def _first_lines(error: Exception) -> str:
    """What a long message says, in one line."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip(" -") for line in text.splitlines() if line.strip()]
    causes = [line for line in lines if "specialized" in line or "No ONNX function" in line or "<class" in line]
    return " ".join([lines[0], *causes[:1]])[:600] if lines else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress, and the warnings about themselves, of torch's exporters."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
