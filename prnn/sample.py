"""Generate text with a trained model, score a text, or translate the lines of stdin.

    python -m prnn.sample run=latest prompt="ROMEO:" length=500 temperature=0.8
    python -m prnn.sample run=runs/char_lm/2026-11-23_21-40-05 score="To be, or not to be"
    echo "3 1 4 1 5" | python -m prnn.sample run=latest beam=10

Settings are given as KEY=VALUE like those of prnn-train, but not through Hydra: its main() creates a run directory
and a log for each call, and its grammar would parse the colon and the spaces of a prompt as syntax.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prnn import extras

extras.require("prnn-sample")

from prnn import command_settings, importing
from prnn.command_settings import setting
from prnn.error_messages import run_command
from prnn.errors import UserError
from prnn.terminal import Wrapping, put

if TYPE_CHECKING:  # torch is imported when the settings are known to be right
    import torch

    from prnn.tasks.decode import Decoding, Score, TextTask, TranslatingTask


@dataclass
class SampleConfig:
    """The settings of ``prnn-sample``. In the texts prompt, stop and score, \\n is a new line and \\t a tab."""

    run: str = setting("", "the run to read: a directory, latest, or a part of a name that only one run has")
    which: str = setting("last", "which checkpoint: last or best (of the lowest validation loss)", ("last", "best"))
    prompt: str | None = setting(
        None, "the text to continue, printed first, or to translate, instead of stdin's", escapes=True
    )
    length: int = setting(500, "how many tokens to write: characters, bytes or words, as the model was trained")
    temperature: float = setting(1.0, "below 1 keeps to the likely, above 1 dares more; 0: as greedy")
    top_k: int = setting(0, "choose among the k most probable tokens only; 0: among all")
    top_p: float = setting(1.0, "choose among the fewest most probable tokens whose probabilities reach p")
    greedy: bool = setting(False, "always take the most probable token")
    beam: int | None = setting(None, "search for the most probable text with a beam of this width; 0: none")
    length_penalty: float | None = setting(None, "translations: ranked by log-probability over length to this power")
    seed: int | None = setting(None, "the same seed gives the same text; null: another text each time")
    stop: str = setting("", "end before this text first appears", escapes=True)
    score: str | None = setting(
        None, "write nothing; print the log-probability of this text after the prompt", escapes=True
    )
    device: str = setting("cpu", "cpu or cuda; one sequence of a small model is often faster on a CPU", ("cpu", "cuda"))

    def decoding(self) -> Decoding:
        """The decoding settings, validated."""
        from prnn.tasks.decode import Decoding

        decoding = Decoding(
            self.length, self.temperature, self.top_k, self.top_p, self.greedy, self.beam or 0, self.seed, self.stop
        )
        decoding.validate()
        return decoding


_OF_TEXTS = ("length", "temperature", "top_k", "top_p", "seed", "stop", "score")  # settings for text generation only
_OF_TRANSLATIONS = ("length_penalty",)


def parse(arguments: Iterable[str]) -> SampleConfig:
    """Parse KEY=VALUE arguments into a validated configuration; raises ``UserError``."""
    settings = command_settings.parse(SampleConfig, arguments, "prnn-sample", "length=200")
    if not settings.run:
        raise UserError("run must be given: a run directory, or run=latest.")
    return settings


def help_text() -> str:
    """The text of --help."""
    what, usage = str(__doc__).split("\n\n")[:2]
    note = r"In prompt, stop and score, \n is a new line and \t a tab."
    return command_settings.help_text(f"{what}\n\n{usage}", SampleConfig, note)


def check(settings: SampleConfig) -> None:
    """Raise ``UserError`` for a value out of its range, or a device that is not there."""
    import torch

    from prnn.tasks.decode import MOST_LENGTH_PENALTY

    if settings.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: torch sees no CUDA device here; use device=cpu.")
    settings.decoding()
    if settings.length_penalty is not None and not 0 <= settings.length_penalty <= MOST_LENGTH_PENALTY:
        raise UserError(f"length_penalty={settings.length_penalty} must be null or from 0 to {MOST_LENGTH_PENALTY:g}.")


def load(settings: SampleConfig) -> tuple[TextTask | TranslatingTask, torch.nn.Module, torch.device]:
    """The task and the trained model of ``settings.run``; the training data is not opened.

    Raises ``UserError`` for a task that neither generates text nor translates, and for a setting of the other kind.
    """
    import torch

    from prnn import trained
    from prnn.tasks.decode import TextTask, TranslatingTask

    cfg, task, model = trained.load(settings.run, settings.which)
    if not isinstance(task, (TextTask, TranslatingTask)):
        raise UserError(f"run={settings.run} was trained on task={cfg.task.name}, which does not write text.")
    does, foreign = ("writes text", _OF_TRANSLATIONS) if isinstance(task, TextTask) else ("translates", _OF_TEXTS)
    if (wrong := command_settings.changed(settings, foreign)) is not None:
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
    """Write what the settings ask for to stdout."""
    with importing.quickly():
        from prnn.tasks.decode import TranslatingTask

        check(settings)
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
    wrapping = Wrapping(sys.stdout)
    put(wrapping(settings.prompt or ""), end="")
    for piece in pieces:
        put(wrapping(piece) if task.unit == "words" else piece, end="")
    put("")


def _lines(prompt: str | None) -> Iterator[str]:
    """The lines of ``prompt``, or of stdin as they arrive."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")  # invalid UTF-8 becomes an unknown word
    for line in sys.stdin if prompt is None else prompt.split("\n"):
        yield line.rstrip("\r\n")


def main(arguments: list[str] | None = None) -> int:
    """0; 2 after a mistake of the user's and 1 where the GPU was lost, reported on stderr; 130 after Ctrl-C."""
    remedies = "lower beam, or free some memory", "give a run that can be read, as run=DIR"
    return run_command(arguments, help_text, lambda words: run(parse(words)), *remedies)


if __name__ == "__main__":
    sys.exit(main())
