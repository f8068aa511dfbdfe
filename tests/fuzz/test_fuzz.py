"""A seeded share of each target; ``python -m tests.fuzz TARGET --seconds 600`` runs more."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from prnn import native
from tests.fuzz.__main__ import TARGETS
from tests.fuzz.driver import run
from tests.native import build


@pytest.mark.plots
@pytest.mark.slow(seconds=40)
@pytest.mark.parametrize("name", TARGETS)
def test_no_fault_is_found(name):
    target = importlib.import_module(f"tests.fuzz.{name}")
    assert run(target, seed=0, trials=target.TRIALS) == target.TRIALS


@pytest.mark.slow(seconds=30)
@pytest.mark.skipif(not native.status()[0], reason=f"native library: {native.status()[1]}")
def test_kernels_of_cells_under_sanitizers():
    try:
        build.check_tools(build.VARIANTS["asan"])
    except build.CannotRun as reason:
        pytest.skip(str(reason))
    command = [sys.executable, "-m", "tests.fuzz.sanitized", "--target", "cells", "--installed", "--trials", "3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
