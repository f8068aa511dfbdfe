"""What stands around the CUDA kernels, without a GPU: their place is taken by the loop of the `torch` backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from prnn import native
from prnn.cell_table import CELLS
from prnn.cuda_plan import REGIMES
from prnn.ops import cuda, gradients, operator, reference, stepwise
from prnn.ops.operands import Gradients, Incoming, Needs, Operands, Weights


def _sides(gates_x: Tensor, h0: Tensor, reverse: bool, *weights: Any) -> Any:
    """Per direction: its columns of gates_x, whether it is reversed, its weight and bias."""
    width = gates_x.shape[2] // h0.shape[0]
    for d in range(h0.shape[0]):
        yield gates_x[..., d * width : (d + 1) * width], reverse or d == 1, *weights[d]


def _state(h0: Tensor, c0: Tensor | None, d: int) -> list[Tensor]:
    return [part[d : d + 1] for part in (h0, c0) if part is not None]


def _stack(parts: Any) -> Tensor:
    return torch.empty(0) if parts[0] is None else torch.stack(parts)


@pytest.fixture(autouse=True)
def loops_for_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(
        gates_x, weight, bias, h0, c0, lengths, resets, weight_r, bias_r, cell, reverse, save, tf32, regime, **of_user
    ):  # fmt: skip
        each, spec = [], CELLS[native.cells()[cell]]
        for d, (gates, turned, w, b) in enumerate(_sides(gates_x, h0, reverse, (weight, bias), (weight_r, bias_r))):
            operands = Operands.of(gates, [Weights(None, w, None, b)], _state(h0, c0, d), lengths, resets)
            each.append(stepwise.forward(operands, spec, turned, save))
        c_n = torch.empty(0) if c0 is None else torch.cat([one.c_n for one in each])
        saved = torch.stack([one.saved for one in each])
        return (
            torch.cat([one.output for one in each], -1),
            torch.cat([one.h_n for one in each]),
            c_n,
            saved,
            torch.empty(0),
        )

    def backward(
        grad_output, grad_h_n, grad_c_n, weight, h0, c0, lengths, resets, weight_r, output, saved, cell, reverse, tf32,
        regime, **of_user,
    ):  # fmt: skip
        each, spec, H = [], CELLS[native.cells()[cell]], h0.shape[2]
        for d, (y, turned, w) in enumerate(_sides(output, h0, reverse, (weight,), (weight_r,))):
            turn = (lambda x: reference.reverse_steps(x, lengths)) if turned else (lambda x: x)
            own = reference.reverse_resets(resets, lengths) if turned else resets
            grad = None if grad_output is None else turn(grad_output[..., d * H : (d + 1) * H])
            of_state = (None if g is None else g[d : d + 1] for g in (grad_h_n, grad_c_n))
            run = gradients.Sequences(y, turn(y), h0[d], lengths, own)
            operands = Operands.of(y, [Weights(None, w)], _state(h0, c0, d), lengths, resets)
            serial = stepwise._serial(Incoming(grad, *of_state), operands, run, saved[d], spec)
            each.append((turn(serial.gates_x), turn(serial.gates_h), serial.h0, serial.c0))
        of_x, of_h, of_h0, of_c0 = zip(*each, strict=True)
        return (
            torch.cat(of_x, -1),
            torch.cat(of_h, -1) if spec.splits_gates else torch.empty(0),
            _stack(of_h0),
            _stack(of_c0),
            torch.empty(0),
            torch.empty(0),
        )

    monkeypatch.setattr(native, "_CELLS", tuple(CELLS))  # the library need not be there
    monkeypatch.setattr(native, "_CELL_IDS", {name: number for number, name in enumerate(CELLS)})
    monkeypatch.setattr(cuda, "serial_forward", forward)
    monkeypatch.setattr(cuda, "serial_backward", backward)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("options", ["plain", "lengths", "resets", "both", "no_bias", "gates_x"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "two"])
def test_layer_and_all_gradients(cell: str, options: str, direction: str) -> None:
    if options == "gates_x" and direction == "two":
        pytest.skip("x is one direction's gates")
    spec, (T, B, I, H) = CELLS[cell], (5, 4, 3, 6)
    D = 2 if direction == "two" else 1
    torch.manual_seed(len(cell + options + direction))

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, requires_grad=True)

    rows = spec.gates * H
    with_input = options != "gates_x"
    x = draw(T, B, I if with_input else rows)
    sides = [
        [draw(rows, I) if with_input else None, draw(rows, H)]
        + ([None, None] if options == "no_bias" else [draw(rows) if with_input else None, draw(rows)])
        for _ in range(D)
    ]
    h0, c0 = draw(D, B, H), draw(D, B, H) if spec.has_c else None
    lengths = torch.tensor([5, 0, 3, 1]) if options in ("lengths", "both") else None
    resets = torch.rand(T, B) < 0.3 if options in ("resets", "both") else None

    state = [part for part in (h0, c0) if part is not None]
    operands = Operands.of(x, [Weights(*side) for side in sides], state, lengths, resets)
    reverse = direction == "reverse"
    right = [end for end in reference.layer(operands, spec, reverse)[:3] if end is not None]
    incoming = [torch.randn_like(y) for y in right]
    differentiable = [getattr(operands, name) for name in Gradients._fields]
    right_grads = iter(torch.autograd.grad(right, [x for x in differentiable if x is not None], incoming))

    with torch.no_grad():
        found = cuda.forward(operands, spec, reverse, True)
        given = Incoming(*incoming[:2], incoming[2] if spec.has_c else None)
        grads = cuda.backward(given, operands, found, spec, reverse, Needs(True, True, True, True))
    for mine, other in zip(found, right, strict=False):
        torch.testing.assert_close(mine, other)
    assert len(grads) == len(differentiable)
    for operand, grad in zip(differentiable, grads, strict=True):
        if operand is None:
            assert grad is None
        else:
            torch.testing.assert_close(grad, next(right_grads))
    addresses = [grad.data_ptr() for grad in grads if grad is not None]
    assert len(set(addresses)) == len(addresses), "an operator's results share no memory"


def test_gradients_nobody_wants() -> None:
    x, w_ih, w_hh, h0 = torch.randn(3, 2, 4), torch.randn(5, 4), torch.randn(5, 5), torch.randn(1, 2, 5)
    operands, spec = Operands.of(x, [Weights(w_ih, w_hh)], (h0,)), CELLS["rnn_tanh"]
    found = cuda.forward(operands, spec, False, True)
    nothing = Needs(False, False, False, False)
    grads = cuda.backward(Incoming(found.output, None, None), operands, found, spec, False, nothing)
    assert [name for name, grad in grads._asdict().items() if grad is not None] == ["h0"]


def test_a_regime_reaches_both_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    for name in ("serial_forward", "serial_backward"):

        def noted(*given: Any, regime: str, run: Any = getattr(cuda, name), **of_user: Any) -> Any:
            told.append(regime)
            return run(*given, regime=regime, **of_user)

        monkeypatch.setattr(cuda, name, noted)
    x, w_ih, w_hh, h0 = torch.randn(3, 2, 4), torch.randn(15, 4), torch.randn(15, 5), torch.randn(1, 2, 5)
    operands = Operands.of(x, [Weights(w_ih, w_hh.requires_grad_())], (h0,))
    for name in ("cuda", *(f"cuda:{regime}" for regime in REGIMES)):
        operator.run(operands, "gru", False, name).output.sum().backward()
    assert told == [regime for regime in ("", *REGIMES) for _ in range(2)]


FAULT = "prnn: lstm bfloat16 T=9 B=16 H=768, forward, grid regime, 96 blocks: block 7 waited more than 2 s for piece 3"


def test_an_error_after_a_lost_gpu_is_what_lost_it(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = [""]
    monkeypatch.setattr(native, "_CUDA_STATUS", (True, ""))
    monkeypatch.setattr(native, "_CUDA_CELLS", tuple(CELLS))
    monkeypatch.setattr(torch.ops.prnn_native, "cuda_fault", lambda: recorded[0], raising=False)

    def broken(*operands: object) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    call = cuda._guarded(broken)
    assert native.cuda_fault() is None
    with pytest.raises(RuntimeError, match="^CUDA error: unspecified launch failure$"):
        call()
    recorded[0] = FAULT
    assert native.cuda_fault() == FAULT
    with pytest.raises(RuntimeError, match=f"^{FAULT}$") as caught:
        call()
    assert "unspecified launch failure" in str(caught.value.__cause__)


def test_without_cuda_kernels_no_gpu_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_CUDA_STATUS", (False, "built without CUDA"))
    assert native.cuda_fault() is None
