"""Write the trained model of a run as a file that runs where prnn is not installed.

    prnn-export run=latest format=onnx out=shakespeare
    prnn-export run=runs/char_lm/2026-11-23_21-40-05 which=best format=pt2 out=shakespeare_pt2

    prnn-export run=latest format=c out=shakespeare_c && make -C shakespeare_c && ./shakespeare_c/generate "ROMEO:"

The folder that it makes holds the model, inputs with the outputs of the training code for them, and a program that
compares the two; what does not pass is not kept.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from prnn import extras

extras.require("prnn-export")

from prnn import command_settings, importing
from prnn.command_settings import setting
from prnn.error_messages import run_command
from prnn.errors import UserError
from prnn.terminal import put, say

_FORMATS = ("onnx", "pt2", "aoti", "c")  # those of prnn.export, which is imported when it is needed


@dataclass
class ExportConfig:
    """The settings of ``prnn-export``."""

    run: str = setting("", "the run to read: a directory, latest, or a part of a name that only one run has")
    out: str = setting("", "the folder to make")
    format: str = setting(
        "onnx", "onnx, pt2 (torch.export), aoti (AOTInductor, compiled here) or c (plain C99)", _FORMATS
    )
    which: str = setting("last", "which checkpoint: last or best (of the lowest validation loss)", ("last", "best"))
    name: str = setting("model", "of the files, and in C of the functions and types")
    weights: str = setting("float32", "format=c: float32 or int8, with a scale for each row")
    check: bool = setting(True, "compare what was written with the training code, and keep it only if it passes")
    frames: int = setting(50, "frames of the longest comparison")
    tolerance: float | None = setting(None, "the largest error, of the largest entry; null: 1e-5, of int8 0.1")


def parse(arguments: Iterable[str]) -> ExportConfig:
    """Parse KEY=VALUE arguments into a validated configuration; raises ``UserError``."""
    settings = command_settings.parse(ExportConfig, arguments, "prnn-export", "format=onnx")
    for key, example in (("run", "a run directory, or run=latest"), ("out", "the folder to make, as out=exported")):
        if not getattr(settings, key):
            raise UserError(f"{key} must be given: {example}.")
    return settings


def help_text() -> str:
    """The text of --help."""
    return command_settings.help_text(__doc__, ExportConfig)


def run(settings: ExportConfig) -> None:
    """Write the folder, and print its name."""
    with importing.quickly():
        from prnn import trained
        from prnn.export import Vocabulary, check_arguments, export

    s = settings
    check_arguments(s.out, s.format, s.name, s.weights, s.frames, s.tolerance)
    cfg, task, model = trained.load(settings.run, settings.which)
    example = task.example()
    if example is None:
        raise UserError(
            f"run={settings.run} was trained on task={cfg.task.name}, whose model is not one call of an input and a "
            "state: export its modules with prnn.export from Python."
        )
    say(f"exporting, and comparing with the training code over {settings.frames} frames", sys.stderr)
    pieces = task.pieces()
    exported = export(
        model,
        settings.out,
        settings.format,
        example=example,
        name=settings.name,
        weights=settings.weights,
        vocabulary=None if pieces is None else Vocabulary(*pieces),
        check=settings.check,
        frames=settings.frames,
        tolerance=settings.tolerance,
    )
    put(str(exported))


def command(arguments: list[str]) -> None:
    """Export as the arguments say; SIGTERM leaves nothing half-written."""
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        run(parse(arguments))
    except UserError as error:  # by the name of the setting
        raise UserError(str(error).replace("path=", "out=", 1)) from error
    except KeyboardInterrupt:
        say("\nprnn: stopped; nothing was written.", sys.stderr)
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)


def main(arguments: list[str] | None = None) -> int:
    """0; 2 after a mistake of the user's, reported on stderr; 130 after Ctrl-C."""
    return run_command(arguments, help_text, command, "free some memory", "give a run that can be read, as run=DIR")


if __name__ == "__main__":
    sys.exit(main())
