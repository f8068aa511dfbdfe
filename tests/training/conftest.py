"""The loop sets switches of the whole process; each test gives them back."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _torch_switches():
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]
