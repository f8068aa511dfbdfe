"""The GPU checks of cells, run on a CPU: correct kernels pass, and a wrong result raises."""

from __future__ import annotations

import pytest
import torch

from prnn import cells, native
from tests.gpu import cell_checks
from tests.gpu.compare import Wrong

pytestmark = pytest.mark.skipif(not native.status()[0], reason=f"native library: {native.status()[1]}")


@pytest.mark.parametrize("name", ["leaky", "slstm", "lif", "indrnn", "ctrnn", "grud_decay"])
def test_a_correct_kernel_passes(name: str) -> None:
    figures = cell_checks.a_cell_is_its_equations(name, torch.float32, None, "cpu")
    assert 0 < figures["error"] < figures["bound"]


def test_a_wrong_result_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    right = cell_checks.results

    def wrong(layer, x, given):  # type: ignore[no-untyped-def]
        found = right(layer, x, given)
        if x.dtype == torch.float32:
            found["grad alpha_logit_l0"] = found["grad alpha_logit_l0"] * 1.001
        return found

    monkeypatch.setattr(cell_checks, "results", wrong)
    with pytest.raises(Wrong, match="grad alpha_logit_l0 is off by 0.001 of its norm"):
        cell_checks.a_cell_is_its_equations("leaky", torch.float32, None, "cpu")


def test_every_ready_cell_is_checked() -> None:
    assert {name.split()[0] for name in cell_checks.CHECKS} == set(cells.__all__)
