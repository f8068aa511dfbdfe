"""The ``prnn-train`` lines of the documentation compose, with settings that are known and allowed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import chain

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser

from prnn import tasks
from prnn.config import check, known_keys
from tests.test_config import ROOT, composed

OWN_TASK = ROOT / "docs" / "own_task"
PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]


def training(page: str) -> Iterator[list[str]]:
    """The arguments of each ``prnn-train``, also under ``torchrun``, in the sh blocks of a page."""
    for block in re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        for line in re.sub(r"\\\n", " ", block).splitlines():
            words = shlex.shlex(line, posix=True, punctuation_chars=True)
            words.whitespace_split = True
            yield from _arguments(list(words))


def _arguments(words: list[str]) -> Iterator[list[str]]:
    for index, word in enumerate(words):
        if word == "prnn-train" or words[max(index - 1, 0) : index + 1] == ["-m", "prnn.train"]:
            after = words[index + 1 :]
            end = next((i for i, each in enumerate(after) if set(each) <= set("();<>|&")), len(after))
            yield [each for each in after[:end] if "$" not in each]  # the shell's


def try_to_compose(arguments: list[str]) -> None:
    """Raises where a command line does not compose, or sets what is unknown or not allowed."""
    known, unknown = get_args_parser().parse_known_intermixed_args([each for each in arguments if each != "--version"])
    assert not unknown, f"{unknown} are no options"
    if known.shell_completion:
        return
    overrides = [word for word in known.overrides if "=" in word and not word.startswith("hydra")]
    if known.config_dir or any(word.startswith("task.name=") for word in overrides):
        _known_alone(overrides)
        return
    if "task=series" in overrides:  # the example's, which need not be installed
        overrides += [f"hydra.searchpath=[file://{OWN_TASK / 'prnn_series' / 'conf'}]", "task.name=prnn_series:TASK"]
    if known.help or known.cfg or "--version" in arguments:  # which train nothing, and need no limit
        overrides.append("trainer.max_steps=1")
    for job in _jobs(overrides) if known.multirun else [overrides]:
        cfg = composed(*job)
        check(cfg, tasks.schemas(cfg.task.name))


def _jobs(overrides: list[str]) -> list[list[str]]:
    """The jobs of a sweep."""
    batches = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(overrides), None)
    return [list(job) for job in chain.from_iterable(batches)]


def _known_alone(overrides: list[str]) -> None:
    """With files that only the reader has: the settings of sections that every task has are known."""
    groups = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()}
    for word in overrides:
        key = word.partition("=")[0].lstrip("+")
        assert key in groups or key.startswith(("task.", "data.")) or key in known_keys(), f"{key} is not a setting"


@pytest.mark.parametrize("page", PAGES)
def test_every_line_composes(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(OWN_TASK))
    for arguments in training((ROOT / page).read_text(encoding="utf-8")):
        try:
            try_to_compose(arguments)
        except Exception as error:
            pytest.fail(f"{page}: prnn-train {shlex.join(arguments)}: {error}")


def test_the_lines_of_a_page() -> None:
    page = """
```sh
prnn-train model=gru \\
    'task.prompt="To be,"'   # words
run() { torchrun --nproc-per-node="$1" -m prnn.train trainer.max_steps=5 "${@:2}"; }
prnn-train --help trainer | head; prnn-sample run=latest
```

```python
prnn-train no=line
```
"""
    assert list(training(page)) == [
        ["model=gru", 'task.prompt="To be,"'],
        ["trainer.max_steps=5"],
        ["--help", "trainer"],
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        ["model.hiden_size=3"],
        ["experiment=char_rn"],
        ["--multirun", "model=rnn,grü", "trainer.max_steps=1"],
        ["trainer.max_steps=-1"],
        ["--config-dir=conf", "task=mine", "trainer.max_step=1"],
        ["--no-such-option"],
    ],
)
def test_a_wrong_line_is_found(wrong: list[str]) -> None:
    with pytest.raises(Exception, match=r"hiden_size|char_rn|grü|max_step|no-such"):
        try_to_compose(wrong)
