"""The pages of the reference about settings and commands, made from what ``--help`` is made from."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from docs.site.docstrings import linked
from docs.site.pages import ROOT
from prnn import plugins
from prnn.config import CONF, describe, written

_SETTINGS = """\
# Settings

What `prnn-train` takes as `KEY=VALUE` ([The command line](../command_line.md)); `prnn-train --help` shows the same with
the values that hold. The default is that of the schema; a choice such as `model=gru`, a preset such as
`experiment=char_rnn` and `data=NAME` set others.
"""
_COMMANDS = "# Commands\n\nWhat each command prints for `--help`.\n"


def settings() -> str:
    """Every setting of every task, in tables by section."""
    parts = [_SETTINGS]
    for title, found in _sections().items():
        summary = f"{describe.summary(CONF / 'task' / f'{title}.yaml')}\n\n" if title in _tasks() else ""
        parts.append(f"\n## {_heading(title)}\n\n{summary}{_table(found)}")
    return "".join([*parts, "\n## Choices\n\nWhat `GROUP=CHOICE` takes; presets are `experiment`.\n\n", *_choices()])


def terms() -> dict[str, str]:
    """Setting -> its place, page#anchor; without those that several tasks have."""
    found: dict[str, list[str]] = {}
    for setting, anchor in ((each, anchor) for rows in _sections().values() for each, anchor in rows):
        found.setdefault(setting.key, []).append(f"reference/settings.md#{anchor}")
    return {key: places[0] for key, places in found.items() if len(places) == 1}


def commands() -> str:
    """The help of every command that pyproject.toml installs."""
    found = dict(re.findall(r'^(prnn-[\w-]+) = "([\w.]+):main"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    with ThreadPoolExecutor() as pool:
        texts = pool.map(_help, found.values())
        return _COMMANDS + "".join(
            f"\n## {name}\n\n```text\n{text}\n```\n" for name, text in zip(found, texts, strict=True)
        )


def _tasks() -> list[str]:
    """prnn's own; those of installed packages are documented there."""
    return [name for name in plugins.names() if plugins.place(name).module.startswith("prnn.")]


def _sections() -> dict[str, list[tuple[describe.Setting, str]]]:
    """Section, or task, of the settings -> each with its anchor."""
    sections: dict[str, list[tuple[describe.Setting, str]]] = {}
    for task in _tasks():
        for each in describe.settings(plugins.place(task).source()):
            section = each.key.rpartition(".")[0]
            of_task = section in ("task", "data")
            rows = sections.setdefault(task if of_task else section, [])
            entry = each, f"{task}.{each.key}" if of_task else each.key
            if entry not in rows and each.key != "task.name":
                rows.append(entry)
    return dict(sorted(sections.items(), key=lambda item: item[0] in _tasks()))


def _heading(section: str) -> str:
    return f"task={section}" if section in _tasks() else section or "The run"


def _choices() -> Iterator[str]:
    """The choices of each group, in a sentence each."""
    yield "| | |\n|---|---|\n"
    for path in sorted(CONF.glob("*/*.yaml")):
        if path.stem != "default":
            yield f"| `{path.parent.name}={path.stem}` | {_cell(describe.summary(path))} |\n"


def _table(found: Iterable[tuple[describe.Setting, str]]) -> str:
    rows = (
        f'| <span id="{anchor}"></span>`{each.key}` | `{written(each.default)}` | {_cell(each.meaning)} '
        f"| {_cell(each.expected)} |\n"
        for each, anchor in found
    )
    return "| setting | default | meaning | expected |\n|---|---|---|---|\n" + "".join(rows)


def _cell(text: str) -> str:
    """Plain text in a cell of a table."""
    return linked(re.sub(r"([|*_\[\]])", r"\\\1", html.escape(text, quote=False)))


def _help(module: str) -> str:
    run = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if run.returncode:
        raise RuntimeError(f"python -m {module} --help ended with status {run.returncode}: {run.stderr.strip()}")
    return run.stdout.strip().replace(str(Path.cwd()), ".")
