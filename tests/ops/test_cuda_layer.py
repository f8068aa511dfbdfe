"""What stands around the CUDA kernels, without a GPU: their place is taken by the loop of the `torch` backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from prnn.ops import cells, composite, cuda_layer, native, stepwise


def _sides(gates_x: Tensor, h0: Tensor, reverse: bool, *weights: Any) -> Any:
    """Per direction: its columns of gates_x, whether it is reversed, its weight and bias."""
    width = gates_x.shape[2] // h0.shape[0]
    for d in range(h0.shape[0]):
        yield gates_x[..., d * width : (d + 1) * width], reverse or d == 1, *weights[d]


def _stack(parts: list[Tensor | None]) -> Tensor:
    return torch.empty(0) if parts[0] is None else torch.stack(parts)


@pytest.fixture(autouse=True)
def loops_for_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(gates_x, weight, bias, h0, c0, lengths, resets, weight_r, bias_r, cell, reverse, save, tf32):
        outputs, h_n, c_n, saved = [], [], [], []
        for d, (gates, turned, w, b) in enumerate(_sides(gates_x, h0, reverse, (weight, bias), (weight_r, bias_r))):
            x = composite.reverse_steps(gates, lengths) if turned else gates
            own = composite.reverse_resets(resets, lengths) if turned else resets
            c = None if c0 is None else c0[d]
            name = native.cells()[cell]
            y, h, c, kept = stepwise.forward(x, w, b, h0[d], c, lengths, own, None, name, save)
            outputs.append(composite.reverse_steps(y, lengths) if turned else y)
            h_n.append(h), c_n.append(c), saved.append(kept)
        return torch.cat(outputs, -1), torch.stack(h_n), _stack(c_n), torch.stack(saved)

    def backward(
        grad_output, grad_h_n, grad_c_n, weight, h0, c0, lengths, resets, weight_r, output, saved, cell, reverse, tf32
    ):
        of_x, of_h, of_h0, of_c0 = [], [], [], []
        for d, (y, turned, w) in enumerate(_sides(output, h0, reverse, (weight,), (weight_r,))):
            turn = (lambda x: composite.reverse_steps(x, lengths)) if turned else (lambda x: x)
            own = composite.reverse_resets(resets, lengths) if turned else resets
            H = h0.shape[2]
            grad = None if grad_output is None else turn(grad_output[..., d * H : (d + 1) * H])
            serial = stepwise.backward(
                grad, None if grad_h_n is None else grad_h_n[d], None if grad_c_n is None else grad_c_n[d],
                w, h0[d], None if c0 is None else c0[d], lengths, own, None, turn(y), saved[d],
                native.cells()[cell],
            )  # fmt: skip
            of_x.append(turn(serial.gates_x)), of_h.append(turn(serial.gates_h))
            of_h0.append(serial.h0), of_c0.append(serial.c0)
        splits = cells.CELLS[native.cells()[cell]].splits_gates
        return torch.cat(of_x, -1), torch.cat(of_h, -1) if splits else torch.empty(0), _stack(of_h0), _stack(of_c0)

    monkeypatch.setattr(native, "_CELLS", tuple(cells.CELLS))  # the library need not be there
    monkeypatch.setattr(native, "_CELL_IDS", {name: number for number, name in enumerate(cells.CELLS)})
    monkeypatch.setattr(cuda_layer, "serial_forward", forward)
    monkeypatch.setattr(cuda_layer, "serial_backward", backward)


@pytest.mark.parametrize("cell", cells.CELLS)
@pytest.mark.parametrize("options", ["plain", "lengths", "resets", "both", "no_bias", "gates_x"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "two"])
def test_layer_and_all_gradients(cell: str, options: str, direction: str) -> None:
    if options == "gates_x" and direction == "two":
        pytest.skip("x is one direction's gates")
    spec, (T, B, I, H) = cells.CELLS[cell], (5, 4, 3, 6)
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

    outputs, h_n, c_n = [], [], []
    for d, (w_ih, w_hh, b_ih, b_hh) in enumerate(sides):
        y, h, c = composite.layer(
            x, w_ih, w_hh, b_ih, b_hh, h0[d], None if c0 is None else c0[d], cell=cell, lengths=lengths, resets=resets,
            reverse=d == 1 or direction == "reverse",
        )  # fmt: skip
        outputs.append(y), h_n.append(h), c_n.append(c)
    right = [torch.cat(outputs, -1), torch.stack(h_n), *([torch.stack(c_n)] if spec.has_c else [])]
    incoming = [torch.randn_like(y) for y in right]
    operands = [x, *sides[0], h0, c0, *(sides[1] if D == 2 else [None] * 4)]
    present = [tensor for tensor in operands if tensor is not None]
    right_grads = iter(torch.autograd.grad(right, present, incoming))

    with torch.no_grad():
        first, second = sides[0], sides[1] if D == 2 else [None] * 4
        arguments = (x, *first, h0, c0, lengths, resets, *second)
        reverse = direction == "reverse"
        found = cuda_layer.forward(*arguments, native.cell_id(cell), reverse, True)
        grads = cuda_layer.backward(
            *incoming[:2], incoming[2] if spec.has_c else None, *arguments, found[0], found[3], native.cell_id(cell),
            reverse, True, True,
        )  # fmt: skip
    for mine, other in zip(found, right, strict=False):
        torch.testing.assert_close(mine, other)
    assert len(grads) == len(operands)
    for operand, grad in zip(operands, grads, strict=True):
        if operand is None:
            assert grad.numel() == 0
        else:
            torch.testing.assert_close(grad, next(right_grads))
    addresses = [grad.data_ptr() for grad in grads if grad.numel()]
    assert len(set(addresses)) == len(addresses), "an operator's results share no memory"


def test_gradients_nobody_wants() -> None:
    x, w_ih, w_hh, h0 = torch.randn(3, 2, 4), torch.randn(5, 4), torch.randn(5, 5), torch.randn(1, 2, 5)
    arguments = (x, w_ih, w_hh, None, None, h0, None, None, None, None, None, None, None)
    output, _, _, saved = cuda_layer.forward(*arguments, 1, False, True)
    grads = cuda_layer.backward(output, None, None, *arguments, output, saved, 1, False, False, False)
    assert [grad.numel() for grad in grads] == [0, 0, 0, 0, 0, h0.numel(), 0, 0, 0, 0, 0]


FAULT = "prnn: lstm bfloat16 T=9 B=16 H=768, forward, grid regime, 96 blocks: block 7 waited more than 2 s for piece 3"


def test_an_error_after_a_lost_gpu_is_what_lost_it(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = [""]
    monkeypatch.setattr(native, "_CUDA_STATUS", (True, ""))
    monkeypatch.setattr(native, "_CUDA_CELLS", tuple(cells.CELLS))
    monkeypatch.setattr(torch.ops.prnn_native, "cuda_fault", lambda: recorded[0], raising=False)

    def broken(*operands: object) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    call = cuda_layer._implementation(broken)
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
