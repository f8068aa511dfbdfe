"""The native library's cells: their names and numbers."""

from __future__ import annotations

import pytest

from prnn import native
from prnn.cell_table import CELLS


def test_every_cell_has_its_row() -> None:
    assert set(native.cells()) == (set(CELLS) if native.status()[0] else set())
    assert set(native.cuda_cells()) <= set(native.cells())
    assert bool(native.cuda_cells()) == native.cuda_status()[0]
    assert [native.cell_id(name) for name in native.cells()] == list(range(len(native.cells())))


def test_a_cell_without_a_row_has_no_number() -> None:
    with pytest.raises(ValueError, match="there is no native kernel for sru"):
        native.cell_id("sru")
