"""What goes with an artefact that Python's libraries run: golden.npz, model.json and replay.py.

Letters: T frames, B streams.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import prnn
from prnn.errors import UserError
from prnn.export.program import Case
from prnn.export.subject import Subject

if TYPE_CHECKING:
    from prnn.export.formats import Options

OPSET = 20  # of ONNX
REPLAY = Path(__file__).parent / "replay.py"


def write(subject: Subject, cases: Sequence[Case], folder: Path, format: str, file: str, options: Options) -> None:
    """All three; UserError without numpy."""
    try:
        import numpy as np  # here: the layers need torch alone
    except ImportError as error:
        raise UserError("golden.npz needs numpy: pip install 'prnn[export]'") from error
    tensors: dict[str, Tensor] = {}
    for number, case in enumerate(cases):
        named = {"input": case.input, "output": case.output}
        named |= {} if case.output_single is None else {"output_float32": case.output_single}
        named |= {} if case.resets is None else {"resets": case.resets}
        for state, first, last, single in zip(subject.states, case.states, case.final, case.final_single, strict=True):
            named |= {state.given: first, state.final: last, f"{state.final}_float32": single}
        tensors |= {f"{number}/{name}": tensor for name, tensor in named.items()}
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
    np.savez_compressed(folder / "golden.npz", **arrays)
    write_signature(subject, cases, folder, format, file, options)
    shutil.copyfile(REPLAY, folder / REPLAY.name)


def write_signature(
    subject: Subject, cases: Sequence[Case], folder: Path, format: str, file: str, options: Options
) -> None:
    """model.json: names, shapes, states, versions; the bound of the replay, and the vocabulary of a model of text."""
    signature = _signature(subject, cases, format, file) | {"tolerance": options.tolerance}
    if options.vocabulary is not None:
        pieces = [piece.decode("utf-8", "backslashreplace") for piece in options.vocabulary.pieces]
        signature["vocabulary"] = options.vocabulary._asdict() | {"pieces": pieces}
    (folder / "model.json").write_text(json.dumps(signature, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def replay(folder: Path, options: Options, tolerance: float) -> float:
    """The largest error of what stands in ``folder``, in a process without prnn; UserError where it does not run."""
    command = [sys.executable, str(folder / REPLAY.name), repr(tolerance)]  # the folder is absolute
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    last = result.stdout.strip().splitlines()[-1:] or [""]
    if not last[0].startswith("largest error"):
        reason = (result.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise UserError(f"what was exported does not run, and was not kept ({reason})")
    return float(last[0].split()[2].rstrip(","))


def _signature(subject: Subject, cases: Sequence[Case], format: str, file: str) -> dict[str, Any]:
    def sizes(tensor: Tensor, frames: int | None, streams: int) -> list[int | str]:
        named = {frames: "T", streams: "B"}
        return [named.get(dim, size) for dim, size in enumerate(tensor.shape)]

    def dtype(tensor: Tensor) -> str:
        return str(tensor.dtype).removeprefix("torch.")

    last = cases[-1]
    output = last.output if last.output_single is None else last.output_single
    same_frames = subject.frames_out is None or output.shape[subject.frames_out] == last.input.shape[subject.frames]
    return {
        "format": format,
        "file": file,
        "model": subject.kind,
        "carries": subject.carries,
        "whole_sequences_because": subject.reason,
        "input": {
            "name": subject.input,
            "shape": sizes(last.input, subject.frames, subject.streams),
            "dtype": dtype(last.input),
            "frames": subject.frames,
            "streams": subject.streams,
        },
        "output": {
            "name": "output",
            "shape": [
                "frames of the output" if size == "T" and not same_frames else size
                for size in sizes(output, subject.frames_out, subject.streams_out)
            ],
            "dtype": dtype(output),
            "frames": subject.frames_out,
            "streams": subject.streams_out,
        },
        "states": [
            {
                "input": state.given,
                "output": state.final,
                "shape": sizes(state.initial, None, state.dim),
                "dtype": dtype(state.initial),
                "streams": state.dim,
                "initial": state.initial.tolist(),
            }
            for state in subject.states
        ],
        "cases": len(cases),
        "versions": {"prnn": prnn.__version__, "torch": torch.__version__}
        | ({"opset": OPSET} if format == "onnx" else {}),
    }
