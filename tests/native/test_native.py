"""The CPU kernels without torch: a C++ program, built in several ways, against a reference in double precision.

`build.py` beside this file says which ways there are, and runs them without pytest.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.native import build


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the programs are built: one folder for all workers of pytest-xdist, so that nothing is compiled twice."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "native"


@pytest.mark.parametrize("variant", build.VARIANTS)
def test_native(variant: str, folder: Path) -> None:
    try:
        build.check_tools(build.VARIANTS[variant])
        done = build.run(variant, build.build(variant, folder))
    except build.CannotRun as reason:
        pytest.skip(str(reason))
    assert done.returncode == 0, f"{variant}:\n{done.stdout}"
