"""Errors of libraries as sentences: memory that is not there."""

import errno

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import prnn
from prnn import error_messages
from prnn.errors import UserError
from prnn.training import checkpoint

CONFIG = OmegaConf.create({"model": {"hidden_size": 7}, "trainer": {"batch_size": 4}, "task": {"bptt": 10}})
NOT_THERE = 2**42  # steps of 8 units: more than any address space holds


def allocate():
    torch.empty(NOT_THERE, 2**10)


def array():
    np.empty((NOT_THERE, 2**10))


def kernel():
    prnn.LSTM(4, 8)(torch.zeros(1, 1, 4).expand(NOT_THERE, 1, 4))


def memories():
    list_rnn = prnn.nn.ListRNN(4, 8)
    with torch.no_grad():
        operands = list_rnn._operands(torch.zeros(1, 1, 4), None)
        gates = operands.gates_x.expand(NOT_THERE, 1, 8)
        prnn.nn.stack.memory_recurrence(operands._replace(gates_x=gates), list_rnn.kind)


def layer():
    prnn.LSTM(4, 10**12)


def overflow():
    torch.nn.Linear(2**31, 2**31)


def too_long():
    torch.empty(2**70)


def gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of ...")


def mapping():
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


def plain():
    raise MemoryError


def writer():
    """As torch's when memory for a file is not there: in the end it complains of the file."""
    try:
        raise MemoryError
    finally:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 67644928 vs 67644880")


@pytest.mark.parametrize(
    ("fails", "said"),
    [
        (allocate, "the memory is not enough for 16 PiB more: lower"),
        (array, "the memory is not enough for 32.0 PiB more: lower"),
        (kernel, "the memory is not enough for 128 TiB more: lower"),
        (memories, "the memory is not enough for 128 TiB more: lower"),
        (layer, "the memory is not enough for 58.21 TiB more: lower"),
        (overflow, "the memory is not enough: lower"),
        (too_long, "the memory is not enough: lower"),
        (gpu, "the memory of the GPU is not enough for 20.00 GiB more: lower"),
        (mapping, "the memory is not enough: lower"),
        (plain, "the memory is not enough: lower"),
        (writer, "the memory is not enough: lower"),
    ],
)
def test_memory_that_is_not_there_is_told_with_its_size_and_the_settings(fails, said):
    with pytest.raises(Exception) as caught:
        fails()
    told = error_messages.out_of_memory(caught.value, CONFIG, kept=lambda: "; all is kept")
    assert isinstance(told, UserError)
    sentence = str(told)
    assert sentence.startswith(said)
    assert "model.hidden_size=7 or trainer.batch_size=4 or task.bptt=10, or raise trainer.accumulate" in sentence
    assert sentence.endswith("; all is kept.") and "\n" not in sentence


def test_a_module_alone_says_memory_and_size():
    with pytest.raises(RuntimeError, match=r"not enough memory: you tried to allocate \d+ bytes"):
        kernel()


@pytest.mark.parametrize("other", [RuntimeError("mat1 and mat2"), ValueError("no"), OSError(2, "no"), UserError("no")])
def test_other_errors_are_not_of_memory(other):
    assert error_messages.out_of_memory(other) is None


def test_a_path_is_not_blamed_for_memory():
    assert "memory" in str(error_messages.unusable(OSError(errno.ENOMEM, "Cannot allocate memory", "/somewhere")))


def test_a_checkpoint_that_memory_is_too_small_for_is_not_damaged(tmp_path, monkeypatch):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"w": torch.ones(3)}, {"step": step}, {"config": {}, "task": {}})
    monkeypatch.setattr(torch, "load", lambda *_, **__: allocate())
    with pytest.raises(RuntimeError, match="allocate memory"):
        checkpoint.read(tmp_path)
    assert [checkpoint.step_of(path) for path in checkpoint.listing(tmp_path)] == [1, 2]
