"""Every test here runs with torch.nn first, then with prnn in its place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import prnn
from tests.torch_nn.differences import DIFFERENCES
from tests.torch_nn.samples import CELLS, LAYERS

HERE = Path(__file__).resolve().parent


@pytest.fixture(params=[pytest.param(torch.nn, id="torch"), pytest.param(prnn, id="prnn")])
def library(request: pytest.FixtureRequest):
    return request.param


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=CELLS)
def cell(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=LAYERS + CELLS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where prnn differs on purpose, its test must fail."""
    for item in items:
        if item.path.parent != HERE or "[prnn" not in item.name:
            continue
        test = f"{item.path.name}::{item.name}"
        for difference in DIFFERENCES:
            if test.startswith(difference.tests):
                item.add_marker(pytest.mark.xfail(reason=difference.topic, strict=True))
