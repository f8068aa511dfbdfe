"""The CUDA kernels on a GPU."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from prnn import native
from tests.gpu.checks import CHECKS, DoesNotFit

READY = torch.cuda.is_available() and native.cuda_status()[0]


@pytest.mark.gpu
@pytest.mark.parametrize("name", CHECKS if READY else ["all of them"])
def test_on_gpu(name: str) -> None:
    _skip_without()
    try:
        CHECKS[name]()
    except DoesNotFit as reason:
        pytest.skip(str(reason))


@pytest.mark.gpu
@pytest.mark.parametrize("regime", ["grid", "cluster"])
def test_a_wait_ends(regime: str) -> None:
    _skip_without()
    command = [sys.executable, "-m", "tests.gpu.wait_check", regime]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode == 2:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    print(done.stdout)


def _skip_without() -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    if not native.cuda_status()[0]:
        pytest.skip(f"native library: {native.cuda_status()[1]}")
