"""The CUDA kernels on a GPU."""

from __future__ import annotations

import pytest
import torch

from prnn.ops import native
from tests.gpu.checks import CHECKS, DoesNotFit

READY = torch.cuda.is_available() and native.cuda_status()[0]


@pytest.mark.gpu
@pytest.mark.parametrize("name", CHECKS if READY else ["all of them"])
def test_on_gpu(name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    if not native.cuda_status()[0]:
        pytest.skip(f"native library: {native.cuda_status()[1]}")
    try:
        CHECKS[name]()
    except DoesNotFit as reason:
        pytest.skip(str(reason))
