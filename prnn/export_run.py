"""Write the trained model of a run as a file that runs where prnn is not installed.

    prnn-export run=latest format=onnx out=shakespeare
    prnn-export run=runs/char_lm/2026-11-23_21-40-05 which=best format=pt2 out=shakespeare_pt2

    prnn-export run=latest format=c out=shakespeare_c && make -C shakespeare_c && ./shakespeare_c/generate "ROMEO:"

The folder that it makes holds the model, inputs with the outputs of the training code for them, and a program that
compares the two; what does not pass is not kept.
"""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from prnn import extras

extras.require("prnn-export")
gc.disable()  # as in train.py

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from prnn import config, trained
from prnn.error_messages import run_command
from prnn.errors import UserError
from prnn.export import Vocabulary, check_arguments, export
from prnn.export.formats import FORMATS
from prnn.terminal import put, say

gc.enable()
gc.freeze()


def _setting(default: Any, meaning: str) -> Any:
    return field(default=default, metadata={"meaning": meaning})


@dataclass
class ExportConfig:
    """The settings of ``prnn-export``."""

    run: str = _setting("", "the run: its directory, a part of its name, or latest (the last one started)")
    out: str = _setting("", "the folder to make")
    format: str = _setting("onnx", "onnx, pt2 (torch.export), aoti (AOTInductor, compiled here) or c (plain C99)")
    which: str = _setting("last", "which checkpoint: last or best (the one with the lowest validation loss)")
    name: str = _setting("model", "of the files, and in C of the functions and types")
    weights: str = _setting("float32", "format=c: float32 or int8, with a scale for each row")
    check: bool = _setting(True, "compare what was written with the training code, and keep it only if it passes")
    frames: int = _setting(50, "frames of the longest comparison")
    tolerance: float | None = _setting(None, "the largest error, of the largest entry; null: 1e-5, of int8 0.1")


_FIELDS = {setting.name: setting for setting in fields(ExportConfig)}
_TYPES = {"int": "an integer", "float | None": "a number or null", "bool": "true or false"}


def parse(arguments: Iterable[str]) -> ExportConfig:
    """Parse KEY=VALUE arguments into a validated configuration; raises ``UserError``."""
    values: dict[str, Any] = {}
    for argument in arguments:
        key, value = config.key_value(argument, _FIELDS, "prnn-export", "format=onnx")
        if key in values:
            raise UserError(f"{key} is given twice: give one of them.")
        kind = str(_FIELDS[key].type)
        if kind == "str":
            values[key] = value
            continue
        try:
            override = {key: None if value == "null" else value}
            values[key] = getattr(OmegaConf.merge(OmegaConf.structured(ExportConfig), override), key)
        except OmegaConfBaseException:
            raise UserError(f"{key}={value} must be {_TYPES[kind]}.") from None
    settings = ExportConfig(**values)
    for key, example in (("run", "a run directory, or run=latest"), ("out", "the folder to make, as out=exported")):
        if not getattr(settings, key):
            raise UserError(f"{key} must be given: {example}.")
    for key, known in (("format", tuple(FORMATS)), ("which", ("last", "best"))):
        if getattr(settings, key) not in known:
            raise UserError(f"{key}={getattr(settings, key)} must be {' or '.join(known)}.")
    return settings


def help_text() -> str:
    """The text of --help."""
    lines = [str(__doc__).strip(), "", "Settings:"]
    for setting in _FIELDS.values():
        default = "" if setting.default == "" else f" [{str(setting.default).lower()}]"
        lines.append(f"  {setting.name:<10} {setting.metadata['meaning']}{default}")
    return "\n".join(lines)


def run(settings: ExportConfig) -> None:
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


def main(arguments: list[str] | None = None) -> int:
    """0; 2 after a mistake of the user's, reported on stderr; 130 after Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments

    def command() -> None:
        if {"--help", "-h"} & set(arguments):
            put(help_text())
            return
        previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left half-written
        try:
            run(parse(arguments))
        except UserError as error:  # by the name of the setting
            raise UserError(str(error).replace("path=", "out=", 1)) from error
        finally:
            signal.signal(signal.SIGTERM, previous)

    return run_command(command, "free some memory", "give a run that can be read, as run=DIR")


if __name__ == "__main__":
    sys.exit(main())
