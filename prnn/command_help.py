"""What ``prnn-train`` answers without training and without torch: ``--help``, ``--version``, a shell's completion."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig, OmegaConf

from prnn import command_line, config, importing, plugins
from prnn.config import describe
from prnn.error_messages import run_command
from prnn.errors import UserError

_WIDEST = 110
_INTRODUCTION = """\
prnn-train trains the recurrent network that its settings describe.

  prnn-train trainer.max_seconds=120                             KEY=VALUE sets one value
  prnn-train model=gru optimizer=sgd experiment=char_rnn         GROUP=CHOICE takes a file of settings
  prnn-train --multirun model=lstm,gru trainer.max_steps=500     one job for each combination
  prnn-train resume=latest trainer.max_steps=9000                goes on with a run
"""
_OPTIONS = """\
Options
  --help [WORD ...]    all settings, one, or those of a section or a group: --help task.bptt, --help experiment
  --version            the version of prnn
  --multirun, -m       a job for each combination of the values that commas separate
  --cfg job            print the composed settings as YAML, and train nothing
  --config-dir DIR     a folder of yours with further choices of the groups; --config-name NAME a file in it
  -sc install=SHELL    print what makes bash, fish or zsh complete settings: eval "$(prnn-train -sc install=bash)"
  --hydra-help         Hydra's own options
"""


def is_asked(arguments: Sequence[str]) -> bool:
    """Whether the arguments ask for an answer instead of training."""
    return not {"--help", "-h", "--version", "-sc", "--shell-completion"}.isdisjoint(arguments)


def answer(arguments: list[str]) -> int:
    """Print the answer; returns the exit status."""
    parser = get_args_parser()
    known, _ = parser.parse_known_intermixed_args([each for each in arguments if each != "--version"])
    plugins.let_hydra_search()

    def complete(_: list[str]) -> None:
        hydra.main(config_path=str(config.CONF), config_name=config.MAIN_CONFIG, version_base="1.3")(lambda _: None)()

    remedies = "free some memory", "make it readable"
    return run_command([] if known.shell_completion else arguments, lambda: help_text(known), complete, *remedies)


def help_text(arguments: argparse.Namespace) -> str:
    """The text of ``--help``; the values are those that the same line without it would train with."""
    words = [word for word in arguments.overrides if "=" not in word and not word.startswith("~")]
    overrides = [word for word in arguments.overrides if word not in words]
    cfg, choices = _composed(overrides, arguments.config_name, arguments.config_dir)
    folders = [config.CONF, *(folder for _, folder in plugins.configurations())]
    if arguments.config_dir:
        folders.append(Path(arguments.config_dir))
    task = str(OmegaConf.select(cfg, "task.name"))
    importing.find_here(Path.cwd(), task)
    settings = list(describe.settings(plugins.place(task).source()))
    entries = {each.key: _entry(each, cfg) for each in settings}
    sections = _sections(entries, choices)
    groups = _groups(folders)
    if not words:
        parts = [_INTRODUCTION, _group_lines(groups), *sections.values(), _OPTIONS]
        return "\n".join(parts).rstrip()
    return "\n".join(_chosen(word, entries, sections, groups, choices) for word in words).rstrip()


def _composed(overrides: list[str], name: str | None, folder: str | None) -> tuple[DictConfig, dict[str, str]]:
    """The configuration of these overrides, and the choice of each group."""
    if folder is not None:
        overrides = [*overrides, f"hydra.searchpath=[{command_line.quoted(f'file://{Path(folder).absolute()}')}]"]
    overrides = command_line.without_sweeps(overrides)
    values = {each.key_or_group: each for each in map(command_line.parsed, overrides)}
    run = command_line.text(values["resume"]) if "resume" in values else None
    if run is not None:
        from prnn.training import run_dir  # which imports more than --help takes time for

        earlier = [
            each
            for each in run_dir.overrides(run_dir.find(run))
            if command_line.parsed(each).key_or_group not in values
        ]
        overrides = [*earlier, *overrides]
    with hydra.initialize_config_dir(str(config.CONF), version_base="1.3"):
        cfg = hydra.compose(name or config.MAIN_CONFIG, overrides, return_hydra_config=True)
    return cfg, dict(cfg.hydra.runtime.choices)


def _groups(folders: Iterable[Path]) -> dict[str, dict[str, str]]:
    """Group -> choice -> its first sentence, of all folders of configurations."""
    groups: dict[str, dict[str, str]] = {}
    for folder in folders:
        for path in sorted(folder.glob("*/*.yaml")):
            if path.stem != "default":
                groups.setdefault(path.parent.name, {}).setdefault(path.stem, describe.summary(path))
    return dict(sorted(groups.items()))


def _group_lines(groups: dict[str, dict[str, str]]) -> str:
    width = max(map(len, groups)) + 2
    lines = ["Groups (GROUP=CHOICE)"]
    for group, choices in groups.items():
        lines += _wrapped(", ".join(choices), f"  {group:<{width}}", " " * (width + 2))
    return "\n".join(lines) + "\n"


def _entry(setting: describe.Setting, cfg: DictConfig) -> str:
    """A setting with its value here, its meaning, and what it may be."""
    value = _shown(OmegaConf.select(cfg, setting.key, default=setting.default, throw_on_resolution_failure=False))
    meaning = _wrapped(f"{setting.meaning} {_expected(setting)}".strip(), " " * 6, " " * 6)
    return "\n".join([f"  {setting.key}={value}", *meaning, ""])


def _sections(entries: dict[str, str], choices: dict[str, str]) -> dict[str, str]:
    """Section -> a heading and its settings."""
    sections: dict[str, str] = {}
    for key, entry in entries.items():
        if key == "task.name":  # task=NAME sets it
            continue
        section = key.rpartition(".")[0]
        title = f"{section}={choices[section]}" if choices.get(section) else section or "The run"
        sections[section] = sections.get(section, f"{title}\n") + entry
    return sections


def _expected(setting: describe.Setting) -> str:
    """Its type and range in parentheses; nothing where they are choices that its meaning names."""
    choices = setting.expected.removeprefix("one of ").removesuffix(", or null").split(", ")
    named = setting.expected.startswith("one of") and all(choice in setting.meaning for choice in choices)
    return "" if named else f"({setting.expected})"


def _chosen(
    word: str,
    entries: dict[str, str],
    sections: dict[str, str],
    groups: dict[str, dict[str, str]],
    choices: dict[str, str],
) -> str:
    """What is asked for by one word: a setting, or a section with those in it, and the choices of a group."""
    if word in entries:
        return entries[word]
    parts = [text for section, text in sections.items() if f"{section}.".startswith(f"{word}.")]
    if word in groups:
        width = max(map(len, groups[word])) + 2
        lines = [f"{word}=CHOICE, here {choices.get(word)}" if choices.get(word) else f"{word}=CHOICE"]
        for choice, meaning in groups[word].items():
            lines += _wrapped(meaning, f"  {choice:<{width}}", " " * (width + 2)) or [f"  {choice}"]
        parts.insert(0, "\n".join(lines) + "\n")
    if not parts:
        known = list(dict.fromkeys([*groups, *(section for section in sections if section)]))
        meant = config.did_you_mean(word, [*known, *entries])
        raise UserError(f"--help {word}: there is no setting, section or group of this name{meant}; the sections and "
                        f"groups are {', '.join(known)}.")  # fmt: skip
    return "\n".join(parts)


def _shown(value: Any) -> str:
    """A value as it is written on the command line."""
    return config.written(OmegaConf.to_container(value) if OmegaConf.is_config(value) else value)


def _wrapped(text: str, first: str, further: str) -> list[str]:
    width = min(shutil.get_terminal_size().columns, _WIDEST) if sys.stdout.isatty() else _WIDEST
    return textwrap.wrap(text, max(width, 40), initial_indent=first, subsequent_indent=further, break_long_words=False)
