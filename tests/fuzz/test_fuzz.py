"""A seeded share of each target; ``python -m tests.fuzz TARGET --seconds 600`` runs more."""

from __future__ import annotations

import importlib

import pytest

from tests.fuzz.__main__ import TARGETS
from tests.fuzz.driver import run


@pytest.mark.plots
@pytest.mark.slow(seconds=40)
@pytest.mark.parametrize("name", TARGETS)
def test_no_fault_is_found(name):
    target = importlib.import_module(f"tests.fuzz.{name}")
    assert run(target, seed=0, trials=target.TRIALS) == target.TRIALS
