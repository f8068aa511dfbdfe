"""The CUDA kernels on a GPU."""

from __future__ import annotations

import pytest
import torch

from prnn.ops import native
from tests.gpu import checks

FOUND = checks.checks() if torch.cuda.is_available() and native.cuda_status()[0] else {"all of them": lambda: None}


@pytest.mark.gpu
@pytest.mark.parametrize("name", FOUND)
def test_on_gpu(name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    if not native.cuda_status()[0]:
        pytest.skip(f"native library: {native.cuda_status()[1]}")
    FOUND[name]()
