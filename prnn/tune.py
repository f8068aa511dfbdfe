"""Tune the settings of prnn-train: trials whose values Optuna proposes, the unpromising ones cut short.

    prnn-tune study=shakespeare experiment=tune_char_lm seconds=600
    prnn-tune study=cells trials=20 trainer.max_steps=500 model=rnn,gru,lstm 'optimizer.lr=tag(log,interval(1e-4,1e-1))'

Every word that is not one of the settings below is prnn-train's. What is to be tuned has several values: a,b,c;
range(1,10,3); interval(0.1,0.5); int(interval(16,512)); tag(log,interval(1e-4,1e-1)); or hydra.sweeper.params of a
preset. Quote the parentheses for the shell. Each trial is a run under runs/tune/STUDY; the same line started again, or
on another machine that shares the folder or the storage, goes on with the study.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from prnn import extras

extras.require("prnn-tune")

import hydra
from omegaconf import OmegaConf

from prnn import command_line, command_settings, config, plugins
from prnn.command_settings import setting
from prnn.error_messages import run_command
from prnn.errors import UserError
from prnn.terminal import say
from prnn.tuning.space import Space
from prnn.tuning.study import Plan, Study

RUNS = Path("runs") / "tune"


@dataclass
class TuneConfig:
    """The settings of ``prnn-tune``."""

    study: str = setting("", "the name of the study; a new one is begun, one that exists goes on")
    seconds: float | None = setting(None, "start no trial that would end later than so many seconds from now")
    trials: int | None = setting(None, "end when the study has so many trials, those of other workers included")
    workers: int = setting(1, "trials that this process runs at once, each with its share of the cores")
    prune: bool = setting(True, "stop a trial whose loss is above the median of the others at the same point")
    storage: str | None = setting(
        None, "a database for workers that share no folder, as mysql://...; null: a journal in runs/tune/STUDY"
    )
    sampler_seed: int | None = setting(None, "the same seed proposes the same first trials; null: others each time")


def parse(arguments: Iterable[str]) -> tuple[TuneConfig, list[str]]:
    """The settings, and the words for ``prnn-train``. Raises ``UserError``."""
    own = {each.name for each in fields(TuneConfig)}
    words = list(arguments)
    of_train = [word for word in words if word.partition("=")[0] not in own]
    settings = command_settings.parse(
        TuneConfig, [word for word in words if word not in of_train], "prnn-tune", "seconds=600"
    )
    for word in of_train:
        if word.startswith("-") or "=" not in word:
            raise UserError(f"{word!r} is not KEY=VALUE, of prnn-tune or prnn-train, such as seconds=600.")
        if word.partition("=")[0] in ("run_dir", "resume"):
            raise UserError(f"{word}: prnn-tune chooses the directory of each trial; leave it out.")
    if not settings.study or {"/", "\\"} & set(settings.study) or settings.study.startswith("."):
        raise UserError("study must be given: a name for a folder under runs/tune, as study=first.")
    if settings.trials is None and settings.seconds is None:
        raise UserError("a study has no end of its own: give trials or seconds, as seconds=600.")
    for name in ("trials", "seconds", "workers"):
        value = getattr(settings, name)
        if value is not None and not 0 < value < 1e9:
            raise UserError(f"{name}={value} must be above 0 and below 1e9.")
    return settings, of_train


def run(arguments: list[str]) -> None:
    """Run trials to the limit, and print the best ones."""
    settings, words = parse(arguments)
    plugins.let_hydra_search()
    space = read(words)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = any(word.startswith("trainer.threads=") for word in words)
    plan = Plan(
        name=settings.study,
        folder=RUNS / settings.study,
        storage=settings.storage,
        trials=settings.trials,
        seconds=settings.seconds,
        workers=settings.workers,
        threads=None if given or settings.workers == 1 else max(1, cores // settings.workers),
        prune=settings.prune,
        seed=settings.sampler_seed,
    )
    study = Study(plan, space)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        study.run()
    except (KeyboardInterrupt, SystemExit):
        say("prnn: stopped; the same line goes on with the study", sys.stderr)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        say(study.summary(), sys.stdout)


def read(words: list[str]) -> Space:
    """The search space of prnn-train's words. Raises ``UserError`` and Hydra's errors."""
    with hydra.initialize_config_dir(str(config.CONF), version_base="1.3"):
        cfg = hydra.compose(config.MAIN_CONFIG, command_line.without_sweeps(words), return_hydra_config=True)
    groups = cfg.hydra.runtime.choices

    def default(key: str) -> Any:
        value = groups[key] if key in groups else OmegaConf.select(cfg, key)
        return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value

    return Space.of(words, cfg.hydra.sweeper.get("params") or {}, default)


def help_text() -> str:
    """The text of --help."""
    return command_settings.help_text(__doc__, TuneConfig)


def main(arguments: list[str] | None = None) -> int:
    """0; 2 after a mistake of the user's, reported on stderr; 130 after Ctrl-C, 143 after SIGTERM."""
    return run_command(arguments, help_text, run, "free some memory", "run it where runs/tune can be written")


if __name__ == "__main__":
    sys.exit(main())
