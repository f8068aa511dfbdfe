"""The modules of prnn: no import circle, and the layers that the linter checks are those of CONTRIBUTING.md."""

from __future__ import annotations

import re
import sys
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[1]
grimp = pytest.importorskip("grimp")  # import-linter's


def test_no_import_circles() -> None:
    """Imports within functions count too: put off, a circle is still one."""
    graph = grimp.build_graph("prnn", cache_dir=None, exclude_type_checking_imports=True)
    TopologicalSorter({module: graph.find_modules_directly_imported_by(module) for module in graph.modules}).prepare()


def test_contributing_has_the_layers_of_the_linter() -> None:
    """Every module of the package stands in CONTRIBUTING.md's list, and none below a module that must not see it."""
    block = (ROOT / "CONTRIBUTING.md").read_text().split("## Architecture")[1].split("```")[1]
    row_of = {
        name: number
        for number, row in enumerate(block.strip().splitlines())
        for name in re.findall(r"(\w+)(?:/|\.py)(?=\s|$)", row)
    }
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(each["layers"] for each in contracts if each["name"] == "Architecture layers")
    rows = [[row_of[name] for name in layer.split(" | ")] for layer in layers]
    assert all(max(upper) < min(lower) for upper, lower in pairwise(rows)), rows
