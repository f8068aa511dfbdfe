"""The formats: ONNX, torch.export's .pt2, AOTInductor's package, and plain C."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.export import Dim, ExportedProgram

from prnn.errors import UserError
from prnn.export import c, proof
from prnn.export.program import Case, Step
from prnn.export.subject import Subject


@dataclass(frozen=True)
class Options:
    """How a model is written: the ``name`` of its files, the ``vocabulary`` of a model of text, the bound of its error,
    and for C the type of its ``weights``.
    """

    name: str = "model"
    weights: str = "float32"
    vocabulary: c.Vocabulary | None = None
    tolerance: float = 1e-5


class Format(NamedTuple):
    """``write(subject, cases, folder, options)`` writes ``file`` and what proves it; ``replay(folder, options,
    tolerance)`` gives the largest error; ``again`` is the command that does.
    """

    file: str
    write: Callable[[Subject, Sequence[Case], Path, Options], None]
    replay: Callable[[Path, Options, float], float]
    again: str


def exported(subject: Subject) -> ExportedProgram:
    """The model as a graph of any T and B, prnn's layers one operator each."""
    T, B = max(3, subject.example.shape[subject.frames]), 2
    input = {subject.frames: Dim.DYNAMIC, subject.streams: Dim.DYNAMIC}
    states = tuple({state.dim: Dim.DYNAMIC} for state in subject.states)
    sizes = (input, states) if states else (input,)
    with _sentence(f"{subject.kind} has no graph of any T and B"), torch.no_grad():
        program = torch.export.export(
            subject.single, (subject.values(T, B), *subject.initial(B)), dynamic_shapes=sizes, strict=False
        )
    bounds = [str(size) for size in program.range_constraints.values() if size.upper < 1 << 30]
    if bounds:
        raise UserError(f"{subject.kind} has a graph for some T and B alone ({', '.join(bounds)}): a branch on a size")
    return program


def write_pt2(subject: Subject, cases: Sequence[Case], folder: Path, options: Options) -> None:
    """An ExportedProgram of ATen operators, which torch.export.load reads where prnn is not installed."""
    program, file = exported(subject), f"{options.name}.pt2"
    with _sentence(f"torch.export does not save {subject.kind}"):
        torch.export.save(program.run_decompositions(), folder / file)
    proof.write(subject, cases, folder, "pt2", file, options)


def write_aoti(subject: Subject, cases: Sequence[Case], folder: Path, options: Options) -> None:
    """A package of a compiled library, for torch._inductor.aoti_load_package and libtorch's loader."""
    program, file = exported(subject), f"{options.name}.pt2"
    with _sentence(f"AOTInductor does not compile {subject.kind}"), torch.no_grad():
        torch._inductor.aoti_compile_and_package(program.run_decompositions(), package_path=str(folder / file))
    proof.write(subject, cases, folder, "aoti", file, options)


def write_onnx(subject: Subject, cases: Sequence[Case], folder: Path, options: Options) -> None:
    """An ONNX model of standard operators: RNN, GRU and LSTM; Scan for cells that ONNX does not have."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        absent = f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
        raise UserError(f"format=onnx needs the packages of the extra export: pip install 'prnn[export]' ({absent})")
    program, file = exported(subject), f"{options.name}.onnx"
    names = [subject.input, *(state.given for state in subject.states)]
    outputs = ["output", *(state.final for state in subject.states)]
    with _sentence(f"torch.onnx does not export {subject.kind}"):
        try:
            onnx = torch.onnx.export(
                program, dynamo=True, input_names=names, output_names=outputs, opset_version=proof.OPSET, verbose=False
            )
        except Exception:
            _refuse_unknown(subject, program)
            raise
        assert onnx is not None
        # The weights in ONNX's order of the gates; by itself torch folds small constants alone.
        optimizer = import_module("onnxscript.optimizer")
        optimizer.optimize(onnx.model, input_size_limit=1 << 40, output_size_limit=1 << 40)
        _name_sizes(onnx.model.graph, subject)
        onnx.save(folder / file)
    proof.write(subject, cases, folder, "onnx", file, options)


def write_c(subject: Subject, cases: Sequence[Case], folder: Path, options: Options) -> None:
    """A header and a source in C99, a program that replays the cases, and one that writes text with a vocabulary."""
    if subject.frames_out is None:
        raise UserError(
            f"{subject.kind} returns one output for all frames, and C has one for each: take another format"
        )
    if not (subject.carries or subject.reversed or subject.independent):
        state = "" if subject.states else "; return (output, state) where it has one"
        raise UserError(f"{subject.kind} cannot be called frame by frame, as C is: {subject.reason}{state}")
    with _sentence(f"{subject.kind} has no graph of one frame"), torch.no_grad():
        program = torch.export.export(subject.single, (subject.values(1, 1), *subject.initial(1)), strict=False)
    step = Step(program, subject.states)
    by_frames = [_by_frames(subject, case) for case in cases]
    with _sentence(f"{subject.kind} cannot be written in C"):
        c.write(folder, options.name, step, by_frames, options.weights, options.vocabulary, options.tolerance)
    proof.write_signature(subject, cases, folder, "c", f"{options.name}.c", options)


def _replay_c(folder: Path, options: Options, tolerance: float) -> float:
    return c.check(folder, options.name, tolerance)


FORMATS: dict[str, Format] = {
    "onnx": Format("{name}.onnx", write_onnx, proof.replay, "python {folder}/replay.py"),
    "pt2": Format("{name}.pt2", write_pt2, proof.replay, "python {folder}/replay.py"),
    "aoti": Format("{name}.pt2", write_aoti, proof.replay, "python {folder}/replay.py"),
    "c": Format("{name}.c", write_c, _replay_c, "make -C {folder} check"),
}


def _by_frames(subject: Subject, case: Case) -> Case:
    """A case with its frames along dimension 0 and its streams along 1, of states along 0."""
    frames_out = subject.frames_out
    assert frames_out is not None

    def rows(tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return tuple(each.movedim(state.dim, 0) for each, state in zip(tensors, subject.states, strict=True))

    return replace(
        case,
        input=case.input.movedim((subject.frames, subject.streams), (0, 1)),
        output=case.output.movedim((frames_out, subject.streams_out), (0, 1)),
        states=rows(case.states),
        final=rows(case.final),
    )


def _refuse_unknown(subject: Subject, program: ExportedProgram) -> None:
    """Name all operators that have no ONNX function: torch.onnx names the first."""
    unknown = {}
    with contextlib.suppress(ImportError, AttributeError):  # torch's own modules, which may change
        registration = import_module("torch.onnx._internal.exporter._registration")
        decomposition = import_module("torch.onnx._internal.exporter._decomp")
        registry = registration.ONNXRegistry.from_torchlib(opset_version=proof.OPSET)
        known = decomposition.get_onnx_implemented_overloads(registry)
        with torch.no_grad():
            decomposed = program.run_decompositions(decomposition.create_onnx_friendly_decomposition_table(known))
        for module in decomposed.graph_module.modules():
            for node in getattr(module, "graph", torch.fx.Graph()).nodes:
                if isinstance(node.target, torch._ops.OpOverload) and not registry.is_registered(node.target):
                    unknown[str(node.meta.get("original_aten") or node.target)] = _place(node)
    if unknown:
        parts = ", ".join(f"{name}{place}" for name, place in sorted(unknown.items()))
        raise UserError(f"{subject.kind} has operators without an ONNX function: {parts}")


def _place(node: torch.fx.Node) -> str:
    """Where in the model an operator stands."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = stack[-1][0] if stack else ""
    path = path.removeprefix("L['self'].").removeprefix("module").removeprefix(".")
    return f" (of {path})" if path else ""


def _name_sizes(graph: Any, subject: Subject) -> None:
    """The sizes of inputs and outputs by name: "frames" and "streams"."""
    names: dict[str, str] = {}
    of_input, of_output = (subject.frames, subject.streams), (subject.frames_out, subject.streams_out)
    for value, (frames, streams) in ((graph.outputs[0], of_output), (graph.inputs[0], of_input)):
        for dim, name in ((frames, "frames"), (streams, "streams")):
            if dim is not None and not isinstance(value.shape[dim], int):
                names[str(value.shape[dim].value)] = name
    own = str(graph.inputs[0].shape[subject.frames].value)
    names = {size: name for size, name in names.items() if name != "frames" or size == own}  # others are not T
    for value in (*graph.inputs, *graph.outputs):
        value.shape = type(value.shape)(
            [size if isinstance(size, int) else names.get(str(size.value), str(size.value)) for size in value.shape]
        )


@contextlib.contextmanager
def _sentence(what: str) -> Iterator[None]:
    """Without the progress, and the warnings about themselves, of torch's exporters; their errors in one line."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    except (UserError, OSError):
        raise
    except Exception as error:
        raise UserError(f"{what} ({_first_lines(error)})") from error
    finally:
        logging.disable(previous)


def _first_lines(error: Exception) -> str:
    """What a long message says, in one line."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    fixed = re.search(r"specialized it to be a constant \((\d+)\)|inferred a static shape of (\d+)", text)
    if fixed:
        return f"a size is fixed to {fixed[1] or fixed[2]}: by a loop over it, a branch or a Python number"
    lines = [line.strip(" -") for line in text.splitlines() if line.strip()]
    causes = [line for line in lines[1:] if "No ONNX function" in line or "<class" in line]
    return " ".join([*lines[:1], *causes[:1]])[:400] or type(error).__name__
