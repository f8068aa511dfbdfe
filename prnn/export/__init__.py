"""``prnn.export``: a model as a file that runs where prnn is not installed, proven against the training code.

    prnn.export(gru, "gru_onnx", format="onnx")                       # a folder with model.onnx
    prnn.export(model, "vad_pt2", format="pt2", example=torch.zeros(4, 2, 64))
    python -m prnn.export run=latest format=onnx out=shakespeare_onnx  # of a run of prnn-train

The state is an argument and a result, "h0" and "h_n": T frames of B streams in a call, of any T and B.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import types
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import prnn
from prnn.errors import UserError
from prnn.export.formats import FORMATS, OPSET
from prnn.export.golden import cases, own_error
from prnn.export.program import Case
from prnn.export.subject import Subject

__all__ = ["Exported", "export"]

REPLAY = Path(__file__).parent / "replay.py"


@dataclass(frozen=True)
class Exported:
    """What was written: the folder, the model's file in it, and the largest errors of the replay and of the training
    code in float32, both against the training code in float64; ``error`` is None where it was not checked.
    """

    folder: Path
    file: str
    carries: bool
    why: str
    error: float | None
    own_error: float

    def __str__(self) -> str:
        lines = [f"{self.folder / self.file}: {_mebibytes(self.folder / self.file)}"]
        lines += [] if self.carries else [f"whole sequences only: {self.why}"]
        if self.error is None:
            lines.append(f"not checked: python {self.folder / REPLAY.name} compares it with the training code")
        else:
            lines.append(
                f"largest error {self.error:.1e} of the largest entry (the training code in float32: "
                f"{self.own_error:.1e}), against float64; again: python {self.folder / REPLAY.name}"
            )
        return "\n".join(lines)


def export(
    model: nn.Module,
    path: str | Path,
    format: str = "onnx",
    *,
    example: Any = None,
    batch_first: bool | None = None,
    check: bool = True,
    frames: int = 50,
    tolerance: float = 1e-5,
) -> Exported:
    """Write ``model`` to the new folder ``path``, with what proves it, after it has passed.

    Args:
        model: RNN, GRU, LSTM, their cells, Recurrent, StackRNN, ListRNN; or a module ``model(input, state) -> (output,
            state)``, where state is None at first, and a tensor, tuple or dictionary of tensors after. A model that
            returns an output alone, or runs a layer in both directions, is exported for whole sequences.
        path: the folder to make. It gets the model, golden.npz, model.json (names, shapes, versions) and replay.py,
            which compares the model with golden.npz where prnn is not installed.
        format: "onnx" (opset 20), "pt2" (torch.export, ATen operators) or "aoti" (AOTInductor, compiled here).
        example: an input [T,B,*] of a model that is no layer of prnn or torch.nn, from whose values those of the test
            are drawn; or (input, state), where the state before the first frame is not one of zeros.
        batch_first: inputs are [B,T,*]; as the model's recurrent layers have it, if left out.
        check: replay what was written, in another process, and write nothing if it fails.
        frames: T of the longest test; the others are of 1 and of 7 frames, of 1 to 5 streams.
        tolerance: the largest error, of the largest entry of an output or state in float64.

    The model is exported in float32 and evaluation mode; it is not changed.

    Raises UserError for a path that exists or cannot be written, an unknown format, missing packages, and a model that
    cannot be exported, or whose replay fails.

    Example::

        exported = prnn.export(prnn.GRU(64, 128, num_layers=2), "gru", format="onnx")
        session = onnxruntime.InferenceSession("gru/model.onnx")
        output, h = session.run(None, {"input": frames, "h0": h})  # [T,B,64], [2,B,128] to [T,B,128], [2,B,128]
    """
    if format not in FORMATS:
        raise UserError(f"format={format!r}: expected one of {', '.join(FORMATS)}")
    if not isinstance(frames, int) or not 1 <= frames <= 100_000:
        raise UserError(f"frames={frames}: expected a number of frames from 1 to 100,000")
    if not 0 < tolerance < 1:
        raise UserError(f"tolerance={tolerance}: expected a fraction of the largest entry, above 0 and below 1")
    if find_spec("numpy") is None:
        raise UserError("prnn.export needs numpy for golden.npz: pip install 'prnn[export]'")
    folder = Path(path)
    part = _new_folder(folder)
    try:
        subject = Subject(model, example, batch_first)
        every = cases(subject, frames)
        own = own_error(every)
        file, write = FORMATS[format]
        write(subject, part / file)
        _write_golden(part, subject, every, format, file)
        error = _replay(part, tolerance, own, frames) if check else None
        _make_final(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Exported(folder, file, subject.carries, subject.why, error, own)


def _new_folder(folder: Path) -> Path:
    """A temporary folder beside the one to be made."""
    if folder.suffix in (".onnx", ".pt2", ".c", ".h"):
        raise UserError(f"path={folder}: expected a folder to make, such as {folder.with_suffix('')}")
    if folder.exists() or folder.is_symlink():
        raise UserError(f"path={folder} exists: give the name of a new folder, or remove it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise UserError(f"path={folder} cannot be written ({error.strerror})") from error


def _make_final(part: Path, folder: Path) -> None:
    try:
        part.chmod(0o777 & ~_umask())  # mkdtemp's are private
        part.rename(folder)
    except OSError as error:
        raise UserError(f"path={folder} cannot be written ({error.strerror})") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write_golden(folder: Path, subject: Subject, every: Sequence[Case], format: str, file: str) -> None:
    import numpy as np  # here: the layers need torch alone

    arrays: dict[str, Tensor] = {}
    for number, case in enumerate(every):
        named = {"input": case.input, "output": case.output, "output_float32": case.output_single}
        named |= {} if case.resets is None else {"resets": case.resets}
        for state, first, last, single in zip(subject.states, case.states, case.final, case.final_single, strict=True):
            named |= {state.given: first, state.final: last, f"{state.final}_float32": single}
        arrays |= {f"{number}/{name}": tensor for name, tensor in named.items()}
    every_array: dict[str, Any] = {name: tensor.numpy() for name, tensor in arrays.items()}
    np.savez_compressed(folder / "golden.npz", **every_array)
    (folder / "model.json").write_text(json.dumps(_signature(subject, every, format, file), indent=1) + "\n")
    shutil.copyfile(REPLAY, folder / REPLAY.name)


def _signature(subject: Subject, every: Sequence[Case], format: str, file: str) -> dict[str, Any]:
    def sizes(tensor: Tensor, frames: int | None, streams: int) -> list[int | str]:
        return [("T" if d == frames else "B" if d == streams else size) for d, size in enumerate(tensor.shape)]

    def dtype(tensor: Tensor) -> str:
        return str(tensor.dtype).removeprefix("torch.")

    case = every[1]
    return {
        "format": format,
        "file": file,
        "model": subject.kind,
        "carries": subject.carries,
        "why_not": subject.why,
        "input": {
            "name": subject.input,
            "shape": sizes(case.input, subject.frames, subject.streams),
            "dtype": dtype(case.input),
            "frames": subject.frames,
            "streams": subject.streams,
        },
        "output": {
            "name": "output",
            "shape": sizes(case.output, subject.frames_out, subject.streams_out),
            "dtype": dtype(case.output_single),
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
        "cases": len(every),
        "versions": {"prnn": prnn.__version__, "torch": torch.__version__}
        | ({"opset": OPSET} if format == "onnx" else {}),
    }


def _replay(folder: Path, tolerance: float, own: float, frames: int) -> float:
    """The largest error of what stands in ``folder``, in a process without prnn; UserError where it is too large."""
    command = [sys.executable, str(folder / REPLAY.name), str(tolerance)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    words = done.stdout.strip().splitlines()[-1:] or [""]
    if not words[0].startswith("largest error"):
        reason = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise UserError(f"what was exported does not run, and was not kept ({reason})")
    error = float(words[0].split()[-1])
    if done.returncode:
        advice = (
            f"; the training code's own in float32 is {own:.1e} after {frames} frames" if own > tolerance / 4 else ""
        )
        raise UserError(
            f"what was exported differs from training by {error:.1e} of the largest entry, above "
            f"tolerance={tolerance:g}, and was not kept{advice}"
        )
    return error


def _mebibytes(file: Path) -> str:
    return f"{file.stat().st_size / 2**20:.2f} MiB"


class _Callable(types.ModuleType):
    """``prnn.export`` is this package and the function in it."""

    def __call__(self, model: nn.Module, path: str | Path, *arguments: Any, **options: Any) -> Exported:
        return export(model, path, *arguments, **options)


_Callable.__call__.__doc__ = export.__doc__
sys.modules[__name__].__class__ = _Callable
