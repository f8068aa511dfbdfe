"""Command lines of every task: random and mutated overrides, through ``prnn-train`` in this process.

The outcome is a run, or one sentence and exit status 1 or 2. What an accepted command line has noted composes to the
same configuration once more. A configuration that is small is trained for a step; of a larger one only the checks run.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import signal
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from prnn import config, job, tasks, train
from prnn.config import CONF
from prnn.training import run_dir
from prnn.training.run_files import NOTES
from tests.tasks.test_contract import SMALL, TASKS

TRIALS = 20
HANG_SECONDS = 120

GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir())
INTEGERS = ("0", "1", "2", "3", "-1", "007", "1_000", str(2**31), str(2**53 + 1), str(2**63), str(10**25), "9" * 400)
FLOATS = ("0.5", "1.0", "-0.0", "1e-8", "1e-400", "1e38", "1e39", "1e308", "1e400", "inf", "-inf", "nan")
WORDS = ("true", "false", "null", "???", "auto", "on", "off", "none", "lstm", "rnn_relu", "gru", "adamw", "plateau")
TEXTS = (
    "",
    " ",
    "a b",
    "a=b",
    "a,b",
    "it's",
    'q"q',
    "(x)",
    "[x",
    "{x",
    "é",
    "日本語",
    "a\nb",
    "a\x1bb",
    "a\udcffb",
    "$5-$10",
)
TEXTS += (
    "a\\",
    "\\'",
    "x:y",
    "#x",
    "!x",
    "%s",
    "-x",
    "x" * 300,
    "100+5",
    "1+1",
    "missing.txt",
    "text.txt",
    ".",
    "latest",
)
INTERPOLATIONS = (
    "${seed}",
    "${.name}",
    "${oc.env:FUZZED}",
    "${nowhere}",
    "${",
    "${}",
    "\\${x}",
    "${model}",
    "${now:%S}",
)
LISTS = (
    "[]",
    "[1,2]",
    "[a,b]",
    "[0.9,0.999]",
    "{}",
    "{a:1}",
    "{name:x}",
    "[[1],[2]]",
    "1,2",
    "range(1,3)",
    "choice(1,2)",
)
HYDRA = (
    "hydra.job.chdir=true",
    "hydra.verbose=true",
    "hydra.job.env_set.FUZZED=x",
    "hydra.run.dir=x",
    "hydra.nothing=1",
)
SLOW = ("trainer.compile", "logger.wandb", "logger.tensorboard")  # switches of what takes seconds to begin


def trial(rng: random.Random, folder: Path) -> None:
    """One command line."""
    task = rng.choice(sorted(TASKS))
    known = sorted(config.known_keys(tasks.schemas(task)))
    mutated = [_override(rng, known) for _ in range(rng.randint(1, 4))]
    arguments = [*_base(task), *mutated, *(["--multirun"] if rng.random() < 0.05 else [])]
    (folder / "text.txt").write_text("to be or not to be, that is the question. " * 100)
    environment = {"HOME": str(folder), "FUZZED": rng.choice(TEXTS).encode("utf-8", "replace").decode()}
    given = " ".join(map(repr, arguments))
    with _inside(folder), mock.patch.dict(os.environ, environment):
        status, said, where = _called(arguments, task)
        complaints = [line for line in said.splitlines() if line.startswith("prnn")]
        assert "Traceback" not in said, f"{given}\n{said}"
        if status == 0:
            assert not complaints, f"{given}\n{said}"
            if where is not None and "--multirun" not in arguments:
                _check_notes(folder / where, given)
        else:
            assert status in (1, 2) and (len(complaints) == 1 or "usage: " in said), f"{given}\n{status} {said}"


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _override(rng: random.Random, known: list[str]) -> str:
    kind = rng.random()
    if kind < 0.05:
        return rng.choice(HYDRA)
    if kind < 0.15:
        word = f"{rng.choice(GROUPS)}={rng.choice([*WORDS, *TEXTS, 'default', 'irnn', 'all', 'mnist', 'tsv'])}"
    else:
        key = rng.choice(known)
        if rng.random() < 0.1:
            key = key.rpartition(".")[0] or key
        word = f"{key}={_value(rng)}"
    if rng.random() < 0.1:
        word = rng.choice(("+", "++", "~")) + (word if rng.random() < 0.5 else word.partition("=")[0])
    if rng.random() < 0.1:  # a slip of the hand
        at = rng.randrange(len(word) + 1)
        word = word[:at] + rng.choice("=,'\"[]{}()$\\ .:xé") + word[at + rng.randint(0, 1) :]
    return word


def _value(rng: random.Random) -> str:
    value = rng.choice(rng.choice((INTEGERS, FLOATS, WORDS, TEXTS, INTERPOLATIONS, LISTS)))
    if rng.random() < 0.3:
        quote = rng.choice("'\"")
        value = quote + value.replace(quote, "\\" + quote) + quote
    return value


@cache
def _base(task: str) -> tuple[str, ...]:
    path = ["data.path=text.txt"] if task == "char_lm" else []
    return (f"task={task}", *SMALL, *TASKS[task], *path, "trainer.max_steps=1", "trainer.device=cpu")


@cache
def _base_numbers(task: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return _numbers(OmegaConf.to_container(compose("train", list(_base(task)))))


def _numbers(section: Any, prefix: str = "") -> dict[str, Any]:
    found = {}
    for name, value in section.items():
        if isinstance(value, dict):
            found |= _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            found[prefix + name] = value
    return found


def _is_small(cfg: Any, task: str) -> bool:
    """Whether a step takes little time and memory: no number is much larger than those of ``SMALL``."""
    base = _base_numbers(task)
    given = _numbers(_plain(cfg))
    large = [
        key for key, value in given.items() if value > max(64, base.get(key, 0)) and not key.startswith("optimizer")
    ]
    steps = cfg.trainer.max_steps is not None and cfg.trainer.max_steps <= 3
    return steps and not large and cfg.trainer.threads == 1 and not any(given.get(key) for key in SLOW)


def _plain(cfg: Any) -> dict[str, Any]:
    """A checked configuration as plain dictionaries."""
    return OmegaConf.to_container(OmegaConf.structured(cfg), resolve=False)  # type: ignore[return-value]


def _called(arguments: list[str], task: str) -> tuple[int, str, Path | None]:
    """Exit status, what was said on stderr, and the run directory of the last job that was accepted."""
    build, fit = tasks.build, job.fit
    _base_numbers(task)  # now, since Hydra composes one configuration at a time
    where: list[Path] = []

    def build_small(cfg: Any, state: Any = None, source: object = "") -> Any:
        return build(cfg, state, source) if _is_small(cfg, task) else None

    def fit_small(cfg: Any, built: Any, world: Any, path: Path, resume: Any, on_start: Any) -> Any:
        where.append(path)
        if built is not None:
            return fit(cfg, built, world, path, resume, on_start)
        on_start()
        return SimpleNamespace(step=0, signal=None, val_loss=None, reason="not trained")

    def give_up(number: int, frame: Any) -> None:
        raise AssertionError(f"no end after {HANG_SECONDS} s: {arguments}")

    said = io.StringIO()
    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(HANG_SECONDS)
    try:
        with (
            mock.patch.object(tasks, "build", build_small),
            mock.patch.object(job, "fit", fit_small),
            mock.patch.object(sys, "argv", ["prnn-train", *arguments]),
            contextlib.redirect_stderr(said),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            try:
                status = train.main()
            except SystemExit as stop:  # argparse
                status = int(stop.code or 0)
            except Exception as error:
                raise AssertionError(f"{type(error).__name__}: {error}, from {arguments}") from error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return status, said.getvalue(), where[-1] if where else None


def _check_notes(path: Path, given: str) -> None:
    """The overrides that were noted compose to the configuration that was."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        again = compose("train", run_dir.overrides(path))
    noted = OmegaConf.load(path / NOTES / "config.yaml")
    found, wanted = (repr(OmegaConf.to_container(each, resolve=False)) for each in (again, noted))
    assert found == wanted, f"{given}\n{found}\n{wanted}"
