"""The commands that the documentation prints are there."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.common.files import ROOT

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "NOTES.md", ROOT / "Makefile"]
COMMANDS = sorted({name for page in PAGES for name in re.findall(r"-m\s+(benchmarks[\w.]*\w)", page.read_text())})


@pytest.mark.parametrize("command", COMMANDS)
def test_a_printed_command_can_be_run(command: str) -> None:
    spec = find_spec(command)
    assert spec is not None
    if spec.submodule_search_locations is not None:  # a package
        spec = find_spec(f"{command}.__main__")
    assert spec is not None and "__main__" in Path(str(spec.origin)).read_text()
