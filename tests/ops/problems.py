"""Random operands for the operator's tests, and the comparison every backend must pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prnn import ops

ODD_SHAPES = [(1, 1, 1), (1, 3, 17), (5, 1, 3), (6, 4, 7), (3, 7, 100)]  # T, B, H
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 4e-3}


def layer(
    x: Tensor,
    weight_ih: Tensor | None,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    *,
    cell: str,
    weight_hr: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """``ops.layer`` of one direction, in flat operands: h0 and c0 are [B,*], and so are h_n and c_n."""
    weights = ops.Weights(weight_ih, weight_hh, bias_ih, bias_hh, weight_hr)
    state = [part.unsqueeze(0) for part in (h0, c0) if part is not None]
    output, last = ops.layer(x, [weights], state, cell, **options)
    h_n, c_n = (*(part.squeeze(0) for part in last), None)[:2]
    return output, h_n, c_n


def recurrence(
    gates_x: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    cell: str,
    *,
    weight_hr: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """A layer without input weights."""
    options = {"cell": cell, "lengths": lengths, "resets": resets, "weight_hr": weight_hr}
    return layer(gates_x, None, weight_hh, None, bias_hh, h0, c0, **options)


@dataclass
class Problem:
    """Operands of ``recurrence`` in the order of its signature; the differentiable ones require grad."""

    cell: str
    differentiable: list[Tensor | None]  # gates_x, weight_hh, bias_hh, h0, c0, weight_hr
    lengths: Tensor | None
    resets: Tensor | None
    grads: list[Tensor]  # of output, h_n, c_n

    def run(self, backend: str | None = None) -> list[Tensor]:
        """Outputs (output, h_n and c_n where there is one) on a forced backend."""
        *operands, weight_hr = self.differentiable
        with ops.backend(backend):
            results = recurrence(*operands, self.lengths, self.resets, self.cell, weight_hr=weight_hr)
        return [result for result in results if result is not None]

    def outputs_and_gradients(self, backend: str | None = None) -> list[Tensor]:
        outputs = self.run(backend)
        inputs = [x for x in self.differentiable if x is not None]
        return [*outputs, *torch.autograd.grad(outputs, inputs, self.grads)]


def problem(
    cell: str,
    T: int,
    B: int,
    H: int,
    *,
    dtype: torch.dtype = torch.float32,
    bias: bool = True,
    lengths: bool = False,
    resets: bool = False,
    projection: int = 0,
    seed: int = 0,
) -> Problem:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)

    spec, P = ops.CELLS[cell], projection or H
    operands = [
        draw(T, B, spec.gates * H),
        draw(spec.gates * H, P, scale=P**-0.5),
        draw(spec.gates * H) if bias else None,
        draw(B, P),
        draw(B, H) if spec.has_c else None,
        draw(P, H, scale=H**-0.5) if projection else None,
    ]
    return Problem(
        cell,
        [None if x is None else x.requires_grad_() for x in operands],
        torch.randint(0, T + 1, (B,), generator=generator) if lengths else None,
        torch.rand(T, B, generator=generator) < 0.3 if resets else None,
        [draw(T, B, P), draw(B, P), *([draw(B, H)] if spec.has_c else [])],
    )


def assert_same(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Within ``tolerance`` relative to the largest element of each tensor (gradients of long sums are large)."""
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype and a.shape == e.shape
        assert torch.isfinite(a).all(), "not finite: an element nobody wrote, or an overflow"
        scale = max(1.0, e.abs().max().item()) if e.numel() else 1.0
        torch.testing.assert_close(a, e, rtol=0, atol=tolerance * scale)
