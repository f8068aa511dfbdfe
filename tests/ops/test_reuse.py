"""Memory of large outputs is used again, and only when nobody refers to it."""

from __future__ import annotations

import gc

import pytest
import torch

import prnn
from prnn import native
from prnn.ops import reuse
from prnn.ops.reuse import Outputs

SHAPE = (100, 40, 100)  # 1.6 MB
MIB = 1 << 20
pytestmark = pytest.mark.skipif(reuse._use_count is None, reason="this torch does not count a storage's users")


def address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@pytest.fixture
def outputs() -> Outputs:
    return Outputs(64 * MIB)


def made(outputs: Outputs, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    tensor = outputs.empty(torch.empty(0), shape)
    assert tensor is not None
    return tensor


def test_memory_is_used_again(outputs):
    first = made(outputs)
    assert first.shape == SHAPE and first.is_contiguous() and first.dtype == torch.float32
    place = address(first)
    del first
    again = made(outputs, (101, 39, 100))  # a little smaller
    assert address(again) == place and again.shape == (101, 39, 100)
    half = outputs.empty(torch.empty(0, dtype=torch.bfloat16), SHAPE)
    assert half is None  # 0.8 MB


KEEPS = {
    "tensor": lambda tensor: tensor,
    "view": lambda tensor: tensor[3:5],
    "numpy": lambda tensor: tensor.numpy(),
    "storage": lambda tensor: tensor.untyped_storage(),
    "dlpack": lambda tensor: torch.from_dlpack(tensor.numpy()),
    "graph": lambda tensor: (torch.ones((), requires_grad=True) * tensor).grad_fn,
    "lazy clone": torch._lazy_clone,
}


@pytest.mark.parametrize("keep", KEEPS)
def test_what_is_referred_to_is_left_alone(outputs, keep):
    first = made(outputs).fill_(7)
    kept = KEEPS[keep](first)
    place = address(first)
    del first
    second = made(outputs).fill_(8)
    if keep == "lazy clone":  # the memory is the clone's then
        assert kept.eq(7).all()
    else:
        assert address(second) != place
    del kept, second
    gc.collect()


def test_shared_memory_is_left_alone(outputs):
    first = made(outputs)
    first.share_memory_()
    place = address(first)
    del first
    assert address(made(outputs)) != place


def test_a_resized_storage_is_used_by_its_new_size(outputs):
    first = made(outputs)
    first.resize_(1)
    first.untyped_storage().resize_(4)
    del first
    assert made(outputs).untyped_storage().nbytes() >= 4 * 100 * 40 * 100


def test_the_oldest_leave_where_there_are_too_many():
    outputs = Outputs(4 * MIB)
    assert outputs.empty(torch.empty(0), (1 << 18,)) is not None
    assert outputs.empty(torch.empty(0), ((1 << 20) + 1,)) is None  # more than all of it
    assert outputs.empty(torch.empty(0), (100,)) is None  # not worth it
    kept = [made(outputs, (1 << 18,)) for _ in range(9)]
    assert len(outputs._storages) == 4
    places = [address(tensor) for tensor in kept]
    del kept
    assert address(made(outputs, (1 << 18,))) in places[-4:]


@pytest.mark.skipif(not native.status()[0], reason=native.status()[1])
@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_a_layer_writes_to_it_and_keeps_what_it_needs(kind, monkeypatch):
    """Outputs and gradients of calls that overlap in every way are those of the reference."""
    monkeypatch.setattr("prnn.ops.cpu.outputs", Outputs(64 * MIB))
    torch.manual_seed(0)
    module = getattr(prnn, kind)(3, 90)
    x = torch.randn(40, 80, 3)  # outputs of 1.15 MB

    def gradients(loss: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(loss, module.parameters()))

    with prnn.backend("reference"):
        expected_output = module(x)[0]
        expected = gradients(expected_output.square().sum())
        of_sum = gradients(module(x)[0].sum())
    places, waiting = [], []
    with prnn.backend("cpu"):
        for step in range(6):
            output = module(x)[0]
            places.append(address(output))
            torch.testing.assert_close(output, expected_output, rtol=1e-4, atol=1e-5)
            if step % 3 == 1:  # the caller writes to it, before the backward pass
                output.detach().zero_()
                torch.testing.assert_close(gradients(output.sum()), of_sum, rtol=1e-3, atol=1e-3)
            elif step % 3 == 2:  # the backward pass is later, and nothing else refers to the output
                waiting.append(output.sum())
            else:
                torch.testing.assert_close(gradients(output.square().sum()), expected, rtol=1e-3, atol=1e-3)
    for loss in waiting:
        torch.testing.assert_close(gradients(loss), of_sum, rtol=1e-3, atol=1e-3)
    assert len(set(places)) < len(places)
