"""Generate text with a trained model, score a text, or translate the lines of stdin.

    python -m prnn.sample run=latest prompt="ROMEO:" length=500 temperature=0.8
    python -m prnn.sample run=runs/char_lm/2026-11-23_21-40-05 score="To be, or not to be"
    echo "3 1 4 1 5" | python -m prnn.sample run=latest beam=10

Settings are given as KEY=VALUE like those of prnn-train, but not through Hydra: its main() creates a run directory
and a log for each call, and its grammar would parse the colon and the spaces of a prompt as syntax.
"""

from __future__ import annotations

import gc
import io
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from prnn import extras

extras.require("prnn-sample")
gc.disable()  # as in train.py

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from prnn import config, trained
from prnn.error_messages import run_command
from prnn.errors import UserError
from prnn.tasks.decode import MOST_LENGTH_PENALTY, Decoding, Score, TextTask, TranslatingTask
from prnn.terminal import put

gc.enable()
gc.freeze()


def _setting(default: Any, meaning: str) -> Any:
    return field(default=default, metadata={"meaning": meaning})


@dataclass
class SampleConfig:
    """The settings of ``prnn-sample``. In the texts prompt, stop and score, \\n is a new line and \\t a tab."""

    run: str = _setting("", "the run: its directory, a part of its name, or latest (the last one started)")
    which: str = _setting("last", "which of its checkpoints: last or best (the one with the lowest validation loss)")
    prompt: str | None = _setting(None, "the text to continue, printed first, or to translate, instead of stdin's")
    length: int = _setting(500, "how many tokens to write: characters, bytes or words, as the model was trained")
    temperature: float = _setting(1.0, "below 1 keeps to the likely, above 1 dares more")
    top_k: int = _setting(0, "choose among the k most probable tokens only; 0: among all")
    top_p: float = _setting(1.0, "choose among the fewest most probable tokens whose probabilities reach p")
    greedy: bool = _setting(False, "always take the most probable token")
    beam: int | None = _setting(None, "search for the most probable text with a beam of this width; 0: none")
    length_penalty: float | None = _setting(None, "translations: ranked by log-probability over length to this power")
    seed: int | None = _setting(None, "the same seed gives the same text; null: another text each time")
    stop: str = _setting("", "end before this text first appears")
    score: str | None = _setting(None, "write nothing; print the log-probability of this text after the prompt")
    device: str = _setting("cpu", "cpu or cuda; one sequence of a small model is often faster on a CPU")

    def decoding(self) -> Decoding:
        """The decoding settings, validated."""
        decoding = Decoding(
            self.length, self.temperature, self.top_k, self.top_p, self.greedy, self.beam or 0, self.seed, self.stop
        )
        decoding.validate()
        return decoding

    def changed(self, *names: str) -> str | None:
        """The first of these settings that differs from its default, as KEY=VALUE."""
        for name in names:
            value = getattr(self, name)
            if value != _FIELDS[name].default:
                return f"{name}={str(value).lower() if isinstance(value, bool) else value}"
        return None


_TYPES = {"int": "an integer", "float": "a number", "bool": "true or false"}
_TYPES |= {f"{kind} | None": f"{name} or null" for kind, name in _TYPES.items()}
_OF_TEXTS = ("length", "temperature", "top_k", "top_p", "seed", "stop", "score")  # settings for text generation only
_OF_TRANSLATIONS = ("length_penalty",)
_FIELDS = {setting.name: setting for setting in fields(SampleConfig)}


def parse(arguments: Iterable[str]) -> SampleConfig:
    """Parse KEY=VALUE arguments into a validated configuration; raises ``UserError``."""
    values: dict[str, Any] = {}
    for argument in arguments:
        key, value = config.key_value(argument, _FIELDS, "prnn-sample", "length=200")
        values[key] = _value(key, value)
    settings = SampleConfig(**values)
    if not settings.run:
        raise UserError("run must be given: a run directory, or run=latest.")
    for key, known in (("which", ("last", "best")), ("device", ("cpu", "cuda"))):
        if getattr(settings, key) not in known:
            raise UserError(f"{key}={getattr(settings, key)} must be {' or '.join(known)}.")
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: torch sees no CUDA device here; use device=cpu.")
    settings.decoding()
    if settings.length_penalty is not None and not 0 <= settings.length_penalty <= MOST_LENGTH_PENALTY:
        raise UserError(f"length_penalty={settings.length_penalty} must be null or from 0 to {MOST_LENGTH_PENALTY:g}.")
    return settings


def _value(key: str, value: str) -> Any:
    """Convert a value to its setting's type; strings only have their escapes replaced."""
    kind = str(_FIELDS[key].type)
    if kind.startswith("str"):
        # Not through OmegaConf, which would parse `ROMEO:` as a mapping and `${x}` as an interpolation.
        escapes = {"n": "\n", "t": "\t", "\\": "\\"}
        literal = key in ("run", "which", "device")
        return value if literal else re.sub(r"\\([nt\\])", lambda match: escapes[match[1]], value)
    try:
        override = {key: None if value == "null" else value}
        return getattr(OmegaConf.merge(OmegaConf.structured(SampleConfig), override), key)
    except OmegaConfBaseException:
        raise UserError(f"{key}={value} must be {_TYPES[kind]}.") from None


def help_text() -> str:
    """The text of --help."""
    lines = [str(__doc__).strip().split("\n\n")[0], "", str(__doc__).strip("\n").split("\n\n")[1], "", "Settings:"]
    for setting in _FIELDS.values():
        default = "" if setting.default in ("", None) else f" [{str(setting.default).lower()}]"
        lines.append(f"  {setting.name:<12} {setting.metadata['meaning']}{default}")
    return "\n".join([*lines, "", r"In prompt, stop and score, \n is a new line and \t a tab."])


def load(settings: SampleConfig) -> tuple[TextTask | TranslatingTask, torch.nn.Module, torch.device]:
    """The task and the trained model of ``settings.run``; the training data is not opened.

    Raises ``UserError`` for a task that neither generates text nor translates, and for a setting of the other kind.
    """
    cfg, task, model = trained.load(settings.run, settings.which)
    if not isinstance(task, (TextTask, TranslatingTask)):
        raise UserError(f"run={settings.run} was trained on task={cfg.task.name}, which does not write text.")
    does, foreign = ("writes text", _OF_TRANSLATIONS) if isinstance(task, TextTask) else ("translates", _OF_TEXTS)
    if (wrong := settings.changed(*foreign)) is not None:
        raise UserError(f"{wrong} is not for run={settings.run}: its task={cfg.task.name} {does}; leave it out.")
    device = torch.device(settings.device)
    return task, model.to(device), device


def report(score: Score, unit: str) -> str:
    """The output of ``score=``."""
    return "\n".join(
        (
            f"log-probability     {score.nats:.4f} nats",
            f"bits per character  {score.bits_per_character:.4f} ({score.characters} characters)",
            f"perplexity          {score.perplexity:.4f} ({score.tokens} {unit})",
        )
    )


def run(settings: SampleConfig) -> None:
    task, model, device = load(settings)
    if isinstance(task, TranslatingTask):
        beam = 1 if settings.greedy or settings.beam == 0 else settings.beam
        for line in task.translate(model, device, _lines(settings.prompt), beam, settings.length_penalty):
            put(line)
        return
    if settings.score is not None:
        put(report(task.score(model, device, settings.score, settings.prompt), task.unit))
        return
    pieces = task.generate(model, device, settings.prompt, settings.decoding())
    put(settings.prompt or "", end="")
    for piece in pieces:
        put(piece, end="")
    put("")


def _lines(prompt: str | None) -> Iterator[str]:
    """The lines of ``prompt``, or of stdin as they arrive."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")  # invalid UTF-8 becomes an unknown word
    for line in sys.stdin if prompt is None else prompt.split("\n"):
        yield line.rstrip("\r\n")


def main(arguments: list[str] | None = None) -> int:
    """0; 2 after a mistake of the user's and 1 where the GPU was lost, reported on stderr; 130 after Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments

    def command() -> None:
        if {"--help", "-h"} & set(arguments):
            put(help_text())
        else:
            run(parse(arguments))

    return run_command(command, "lower beam, or free some memory", "give a run that can be read, as run=DIR")


if __name__ == "__main__":
    sys.exit(main())
