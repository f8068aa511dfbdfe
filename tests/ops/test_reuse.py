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
    again = made(outputs, (200, 100, 20))  # as large
    assert address(again) == place and again.shape == (200, 100, 20)
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
    place = address(first)  # reading it makes a copy of a lazy clone
    kept = KEEPS[keep](first)
    if keep == "lazy clone":
        outputs.share(first, kept)
    del first
    second = made(outputs)
    assert address(second) != place
    assert keep != "lazy clone" or (torch._C._is_cow_tensor(kept) and kept.eq(7).all())
    del kept, second
    gc.collect()
    assert place in [address(each) for each in (made(outputs), made(outputs))]


def test_a_clone_that_nobody_named_is_a_clone_still(outputs):
    first = made(outputs).fill_(7)
    clone = torch._lazy_clone(first)
    del first
    made(outputs).fill_(8)
    assert clone.eq(7).all()


def test_shared_memory_is_left_alone(outputs):
    first = made(outputs)
    first.share_memory_()
    place = address(first)
    del first
    assert address(made(outputs)) != place
    assert len(outputs._kept) == 1  # nor is its file kept


def test_another_size_takes_the_place(outputs):
    """torch.save writes whole storages: none is larger than its tensor. And those of other sizes are not collected."""
    for steps in (100, 120, 110, 100):
        assert made(outputs, (steps, 40, 100)).untyped_storage().nbytes() == steps * 40 * 100 * 4
    assert len(outputs._kept) == 1


def test_the_default_device_has_no_part_in_it(outputs):
    with torch.device("meta"):
        assert outputs.empty(torch.empty(0, device="cpu"), SHAPE).device.type == "cpu"
    assert made(outputs).device.type == "cpu"


def test_a_lock_that_is_held_is_not_waited_for(outputs):
    """By a thread that a fork has left behind, or by this one, which the garbage collector has interrupted."""
    kept = made(outputs)
    with outputs._lock:
        assert outputs.empty(torch.empty(0), SHAPE) is None
        outputs.share(kept, torch._lazy_clone(kept))


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
    assert len(outputs._kept) == 4
    places = [address(tensor) for tensor in kept]
    del kept
    assert address(made(outputs, (1 << 18,))) in places[-4:]


def test_where_references_do_not_tell_nothing_is_used_again(outputs, monkeypatch):
    monkeypatch.setattr(reuse, "_REFERENCES_ALONE", -1)
    places = {address(made(outputs)) for _ in range(3)}
    assert len(outputs._kept) == 3 and places


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
            places.append(output.untyped_storage()._cdata)
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


@pytest.mark.skipif(not native.status()[0], reason=native.status()[1])
def test_large_gradients_of_the_input_are_ordinary_tensors():
    module, x = prnn.GRU(100, 20), torch.randn(40, 80, 100, requires_grad=True)
    with prnn.backend("cpu"):
        module(x)[0].sum().backward()
    with prnn.backend("reference"):
        expected = torch.autograd.grad(module(x)[0].sum(), x)[0]
    torch.testing.assert_close(x.grad, expected, rtol=1e-4, atol=1e-5)
    x.grad.resize_(50, 80, 100).fill_(1)
    assert torch._lazy_clone(x.grad).eq(1).all()
