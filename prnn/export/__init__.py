"""``prnn.export``: a model as a file that runs where prnn is not installed, proven against the training code.

    prnn.export(gru, "gru_onnx", format="onnx")                              # a folder with model.onnx
    prnn.export(model, "vad_c", format="c", example=torch.randn(4, 2, 64))   # model.h and model.c

``prnn-export run=latest format=onnx out=shakespeare`` does it with the model of a run of prnn-train. The state is an
argument and a result, "h0" and "h_n": T frames of B streams in a call, of any T and B; in C a struct for each stream.
"""

from __future__ import annotations

import inspect
import os
import shutil
import sys
import tempfile
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from prnn.errors import UserError
from prnn.export.c import WEIGHTS, Vocabulary
from prnn.export.formats import FORMATS, Options
from prnn.export.golden import cases, float32_error
from prnn.export.subject import Subject, undisturbed

__all__ = ["Exported", "Vocabulary", "export"]

TOLERANCES = {"float32": 1e-5, "int8": 0.1}


@dataclass(frozen=True)
class Exported:
    """What was written: the folder, the model's file in it, and the largest errors of the replay and of the training
    code in float32, both against the training code in float64; ``error`` is None where it was not checked.
    ``carries``: a call continues the last one; if not, ``reason`` says why. ``again``: the command that replays.
    """

    folder: Path
    file: str
    carries: bool
    reason: str
    error: float | None
    float32_error: float | None
    again: str

    def __str__(self) -> str:
        file = self.folder / self.file
        lines = [f"{file}: {file.stat().st_size / 2**20:.2f} MiB"]
        lines += [] if self.carries else [f"whole sequences only: {self.reason}"]
        if self.float32_error is None:
            against = "the training code in float32, as it does not run in float64"
        else:
            against = f"float64 (the training code in float32: {self.float32_error:.1e})"
        if self.error is None:
            lines.append(f"not checked: {self.again} compares it with {against}")
        else:
            lines.append(f"largest error {self.error:.1e} of the largest entry, against {against}; again: {self.again}")
        return "\n".join(lines)


def export(
    model: nn.Module,
    path: str | Path,
    format: str = "onnx",
    *,
    example: Any = None,
    batch_first: bool | None = None,
    name: str = "model",
    weights: str = "float32",
    vocabulary: Vocabulary | None = None,
    check: bool = True,
    frames: int = 50,
    tolerance: float | None = None,
) -> Exported:
    """Write ``model`` to the new folder ``path``, with what proves it, after it has passed.

    Args:
        model: RNN, GRU, LSTM, their cells, Recurrent, StackRNN, ListRNN; or a module ``model(input, state) -> (output,
            state)``, where state is None at first, and a tensor, tuple or dictionary of tensors after. A model that
            returns an output alone, or runs a layer in both directions, is exported for whole sequences.
        path: the folder to make. It gets the model, model.json (names, shapes, versions), inputs with the outputs of
            the training code, and a program that compares the model with them where prnn is not installed.
        format: "onnx" (opset 20), "pt2" (torch.export, ATen operators), "aoti" (AOTInductor, compiled here) or "c"
            (plain C99: init, step and run).
        example: an input [T,B,*] of a model that is no layer of prnn or torch.nn, from whose values those of the test
            are drawn; or (input, state), where the state before the first frame is not one of zeros.
        batch_first: inputs are [B,T,*]; as the model's recurrent layers have it, if left out.
        name: of the files, and in C of the functions and types.
        weights: in C also "int8", with a scale for each row.
        vocabulary: of a model from tokens to logits: it goes into model.json, and in C into a program that writes text.
        check: replay what was written, in another process, and write nothing if it fails.
        frames: T of the longest test; the others are of 1 and of 7 frames, of 1 to 5 streams.
        tolerance: the largest error, of the largest entry of an output or state in float64: 1e-5 if left out, 0.1 for
            int8.

    The model is exported in float32 and evaluation mode; it is not changed. Not for several threads at once.

    Raises UserError for a path that exists or cannot be written, an unknown format, missing packages, and a model that
    cannot be exported, or whose replay fails.

    Example::

        exported = prnn.export(prnn.GRU(64, 128, num_layers=2), "gru", format="onnx")
        session = onnxruntime.InferenceSession("gru/model.onnx")
        output, h = session.run(None, {"input": frames, "h0": h})  # [T,B,64], [2,B,128] to [T,B,128], [2,B,128]
    """
    check_arguments(path, format, name, weights, frames, tolerance)
    tolerance = TOLERANCES[weights] if tolerance is None else tolerance
    options = Options(name, weights, vocabulary, tolerance)
    write, replay = FORMATS[format].write, FORMATS[format].replay
    with _new_folder(path) as (folder, part), undisturbed():
        subject = Subject(model, example, batch_first)
        every = cases(subject, frames)
        of_float32 = float32_error(every) if subject.compared_in_double else None
        write(subject, every, part, options)
        error = replay(part, options, tolerance) if check else None
        if error is not None and not error <= tolerance:
            own = "" if of_float32 is None else f"; the training code's in float32 is {of_float32:.1e}"
            raise UserError(
                f"what was exported differs from training by {error:.1e} of the largest entry over {frames} frames, "
                f"above tolerance={tolerance:g}, and was not kept{own}"
            )
    file, again = FORMATS[format].file.format(name=name), FORMATS[format].again.format(folder=folder)
    return Exported(folder, file, subject.carries, subject.reason, error, of_float32, again)


def check_arguments(path: Any, format: Any, name: Any, weights: Any, frames: Any, tolerance: Any) -> None:
    """Raise UserError for arguments of ``export`` that are not valid."""
    if not isinstance(format, str) or format not in FORMATS:
        raise UserError(f"format={format!r}: expected one of {', '.join(FORMATS)}")
    if weights not in WEIGHTS:
        raise UserError(f"weights={weights!r}: expected one of {', '.join(WEIGHTS)}")
    if format != "c" and weights != "float32":
        raise UserError(f"weights={weights} is for format=c, got format={format}")
    if not isinstance(name, str) or not name.isidentifier() or not name.isascii():
        raise UserError(f"name={name!r}: expected letters, digits and underscores, such as 'model'")
    if not isinstance(frames, int) or isinstance(frames, bool) or not 1 <= frames <= 100_000:
        raise UserError(f"frames={frames}: expected a number of frames from 1 to 100,000")
    if tolerance is not None and not (isinstance(tolerance, (int, float)) and 0 < tolerance < 1):
        raise UserError(f"tolerance={tolerance}: expected a fraction of the largest entry, above 0 and below 1")
    if isinstance(path, (str, Path)) and Path(path).suffix in (".onnx", ".pt2", ".c", ".h"):
        raise UserError(f"path={path}: expected a folder to make, such as {Path(path).with_suffix('')}")
    if isinstance(path, (str, Path)) and "\0" not in str(path) and os.path.lexists(path):
        raise UserError(f"path={path} exists: give the name of a new folder, or remove it")


@contextmanager
def _new_folder(path: str | Path) -> Iterator[tuple[Path, Path]]:
    """The folder to make, and a temporary one beside it, which becomes that if all goes well; else nothing is left."""
    try:
        folder = Path(path)
        place = folder.absolute()
    except (TypeError, ValueError) as error:
        raise UserError(f"path={path!r}: expected the name of a folder ({error})") from error
    made: list[Path] = []
    part = None
    try:
        made = [each for each in place.parents if not each.exists()]
        place.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{place.name[:100]}.", dir=place.parent))
        inner = part / "folder"  # mkdtemp's own is private
        inner.mkdir()
        yield folder, inner
        inner.rename(place)
        part.rmdir()
    except BaseException as error:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)
        for each in made:
            if each.is_dir() and not any(each.iterdir()):
                each.rmdir()
        if isinstance(error, (OSError, ValueError)):
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"path={folder} cannot be written ({reason})") from error
        raise


class _Callable(types.ModuleType):
    """``prnn.export`` is this package and the function in it."""

    def __call__(self, *arguments: Any, **options: Any) -> Exported:
        return export(*arguments, **options)


_OF_EXPORT = inspect.signature(export)
_SELF = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
_Callable.__call__.__doc__ = export.__doc__
_Callable.__call__.__signature__ = _OF_EXPORT.replace(  # type: ignore[attr-defined]
    parameters=[_SELF, *_OF_EXPORT.parameters.values()]
)
sys.modules[__name__].__class__ = _Callable
