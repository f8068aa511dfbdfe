"""Random cells: results and gradients, with torch's in float64."""

from __future__ import annotations

import pytest

from tests.codegen.harness import Library
from tests.codegen.random_expressions import random_cell

CELLS = {str(seed): random_cell(seed) for seed in range(60)}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return Library(CELLS, tmp_path_factory.mktemp("random"))


@pytest.mark.parametrize("seed", CELLS)
def test_random_cell(library, seed):
    library.compare(seed)
