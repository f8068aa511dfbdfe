"""The modules of prnn: none imports itself by way of others."""

from __future__ import annotations

from graphlib import TopologicalSorter

import pytest

grimp = pytest.importorskip("grimp")  # import-linter's


def test_no_import_circles() -> None:
    """Imports within functions count too: put off, a circle is still one."""
    graph = grimp.build_graph("prnn", cache_dir=None, exclude_type_checking_imports=True)
    TopologicalSorter({module: graph.find_modules_directly_imported_by(module) for module in graph.modules}).prepare()
