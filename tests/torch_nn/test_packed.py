"""What PyTorch's test_packed_sequence.py and test_nn.py check of packed sequences, through the modules.

The functions that pack and pad are torch's own, also for prnn: each of their tests is here one of a module that takes
their result. Not applicable: test_to_memory_format (it is about a convolution), test_device_mask (needs CUDA),
test_pad_sequence_with_non_iterable_sequences (no module is involved).
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.utils import rnn

from tests.torch_nn.samples import assert_same, leaves, replace

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
# enforce_sorted, lengths
LENGTHS = {
    "one": (True, [5]),
    "one, unsorted": (False, [5]),
    "falling": (True, [10, 10, 6, 2, 2, 1, 1]),
    "falling, unsorted": (False, [10, 10, 6, 2, 2, 1, 1]),
    "shuffled": (False, [2, 1, 3, 2, 10, 5, 3]),
}


def state_of(module, batch, dtype=torch.float64):
    rows = module.num_layers * (2 if module.bidirectional else 1)
    h0 = torch.randn(rows, batch, module.proj_size or module.hidden_size, dtype=dtype)
    return (h0, torch.randn(rows, batch, module.hidden_size, dtype=dtype)) if module.mode == "LSTM" else h0


@pytest.mark.parametrize("with_state", [False, True], ids=["", "hx"])
@pytest.mark.parametrize("case", LENGTHS)
@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM", "LSTM proj"])
def test_variable_sequence(library, kind, case, with_state):
    """A packed batch gives the outputs, states and gradients of its sequences one by one."""
    enforce_sorted, lengths = LENGTHS[case]
    layer, options = kind.split()[0], {"proj_size": 2} if kind == "LSTM proj" else {}
    module = getattr(library, layer)(3, 4, 2, bidirectional=True, dtype=torch.float64, **options)
    single = copy.deepcopy(module)
    x = torch.randn(max(lengths), len(lengths), 3, dtype=torch.float64, requires_grad=True)
    hx = state_of(module, len(lengths)) if with_state else None
    outputs, states = [], []
    for i, length in enumerate(lengths):
        alone = None if hx is None else replace(hx, lambda h, i=i: h[:, i : i + 1].contiguous())
        output, state = single(x[:length, i : i + 1], alone)
        outputs.append(torch.cat([output, output.new_zeros(max(lengths) - length, *output.shape[1:])]))
        states.append(leaves(state))
    expected = torch.cat(outputs, 1), [torch.cat(each, 1) for each in zip(*states, strict=True)]
    packed, state = module(rnn.pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted), hx)
    padded, found_lengths = rnn.pad_packed_sequence(packed)
    assert found_lengths.tolist() == lengths
    torch.testing.assert_close((padded, leaves(state)), expected)
    found = torch.autograd.grad(padded.sin().sum(), [x, *module.parameters()])
    torch.testing.assert_close(found, torch.autograd.grad(expected[0].sin().sum(), [x, *single.parameters()]))


@pytest.mark.parametrize("enforce_sorted", [False, True], ids=["unsorted", "sorted"])
def test_type_casts(library, layer, enforce_sorted):
    """A packed sequence of integers, cast to each floating type, goes through a module of that type."""
    lengths = [6, 4, 4, 2, 1]
    padded = torch.randint(-3, 3, (6, 5, 3))
    packed = rnn.pack_padded_sequence(padded, lengths, enforce_sorted=enforce_sorted)
    module = getattr(library, layer)(3, 4)
    expected = module(packed.float())[0].data
    for cast in ("float", "double", "half"):
        given = getattr(packed, cast)()
        output, _ = module.to(given.data.dtype)(given)
        unpacked, found = rnn.pad_packed_sequence(output)
        assert (unpacked.dtype, found.tolist()) == (given.data.dtype, lengths)
        tolerance = 1e-6 if cast in ("float", "double") else 5e-2
        torch.testing.assert_close(output.data.float(), expected, atol=tolerance, rtol=tolerance)


def test_wrong_order(library, layer):
    """Sequences that are not sorted are refused before a module sees them, and accepted as such otherwise."""
    padded = rnn.pad_sequence([torch.ones(3, 3), torch.ones(5, 3)])
    with pytest.raises(RuntimeError):
        rnn.pack_padded_sequence(padded, [3, 5], enforce_sorted=True)
    module = getattr(library, layer)(3, 4)
    output, _ = module(rnn.pack_padded_sequence(padded, [3, 5], enforce_sorted=False))
    assert output.batch_sizes.tolist() == [2, 2, 2, 1, 1]


@pytest.mark.parametrize("batch_first", [False, True])
def test_total_length(library, layer, batch_first):
    module = getattr(library, layer)(3, 4, batch_first=batch_first)
    packed = rnn.pack_sequence([torch.randn(length, 3) for length in (6, 3, 1)])
    output, _ = module(packed)
    for total_length in (-1, 0, 5):
        with pytest.raises(ValueError, match="Expected total_length to be at least the length of the longest"):
            rnn.pad_packed_sequence(output, batch_first, total_length=total_length)
    short, _ = rnn.pad_packed_sequence(output, batch_first)
    for more in (0, 1, 8):
        padded, lengths = rnn.pad_packed_sequence(output, batch_first, total_length=6 + more)
        assert lengths.tolist() == [6, 3, 1]
        steps = padded if not batch_first else padded.transpose(0, 1)
        assert steps.shape[0] == 6 + more
        assert torch.equal(steps[:6], short.transpose(0, 1) if batch_first else short)
        assert not steps[6:].any()


@pytest.mark.parametrize("enforce_sorted", [False, True], ids=["unsorted", "sorted"])
def test_to(library, layer, enforce_sorted):
    """The result of a module is a PackedSequence in full: its conversions do nothing where nothing changes."""
    packed = rnn.pack_sequence([torch.randn(length, 3) for length in (4, 2)], enforce_sorted=enforce_sorted)
    output, _ = getattr(library, layer)(3, 4)(packed)
    assert output is output.to("cpu") is output.cpu() is output.to("cpu", dtype=torch.float32)
    assert not output.is_cuda
    assert output.to(torch.float64).data.dtype == output.double().data.dtype == torch.float64
    meta = output.to("meta")
    assert (meta.data.device.type, meta.batch_sizes.device.type) == ("meta", "cpu")
    assert type(output) is rnn.PackedSequence
    assert torch.equal(output.batch_sizes, packed.batch_sizes)
    for name in ("sorted_indices", "unsorted_indices"):
        before, after = getattr(packed, name), getattr(output, name)
        assert after is None if enforce_sorted else torch.equal(after, before)


def sequences(*trailing):
    return [torch.rand(length, *trailing) for length in (4, 9, 1, 6, 6)]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("given", [list, tuple])
def test_pad_sequence(library, layer, batch_first, given):
    """Also with tensor sequences: a padded batch is what the module takes; test_unpad_sequence is its inverse."""
    module, parts = getattr(library, layer)(3, 4, batch_first=batch_first), sequences(3)
    output, _ = module(rnn.pad_sequence(given(parts), batch_first=batch_first))
    found = rnn.unpad_sequence(output, torch.tensor([len(part) for part in parts]), batch_first=batch_first)
    for part, each in zip(parts, found, strict=True):
        torch.testing.assert_close(each, module(part)[0])
    stacked = rnn.pad_sequence(torch.stack([parts[3], parts[4]]), batch_first=batch_first)
    torch.testing.assert_close(module(stacked)[0], module(rnn.pad_sequence(parts[3:], batch_first=batch_first))[0])


@pytest.mark.parametrize("batch_first", [False, True])
def test_pack_sequence(library, layer, batch_first):
    """pack_sequence and pack_padded_sequence are the same to a module, and so is the order of the sequences."""
    module, parts = getattr(library, layer)(3, 4, 2, bidirectional=True, batch_first=batch_first), sequences(3)
    lengths, padded = [len(part) for part in parts], rnn.pad_sequence(parts, batch_first)
    first = module(rnn.pack_sequence(parts, enforce_sorted=False))
    second = module(rnn.pack_padded_sequence(padded, lengths, batch_first, enforce_sorted=False))
    assert_same(first, second, rtol=0, atol=0)
    order = torch.tensor(lengths).argsort(descending=True, stable=True)
    third = module(rnn.pack_sequence([parts[i] for i in order], enforce_sorted=True))
    assert third[0].sorted_indices is third[0].unsorted_indices is None
    torch.testing.assert_close(third[0].data, first[0].data)
    torch.testing.assert_close(leaves(third[1]), [h[:, order] for h in leaves(first[1])])


def test_unpack_sequence(library, layer):
    module, parts = getattr(library, layer)(3, 4), sequences(3)
    output, state = module(rnn.pack_sequence(parts, enforce_sorted=False))
    for i, (part, each) in enumerate(zip(parts, rnn.unpack_sequence(output), strict=True)):
        expected, expected_state = module(part)
        torch.testing.assert_close((each, [h[:, i] for h in leaves(state)]), (expected, leaves(expected_state)))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("lengths", [[10, 8, 4, 2, 2, 2, 1], [11, 10, 8, 6, 4, 3, 1], [3, 11, 1, 10, 6, 8, 4]], ids=str)
def test_pack_padded_sequence(library, layer, lengths, batch_first):
    """Padding gets no gradient, and its values, here infinite, have no effect."""
    is_sorted = lengths == sorted(lengths, reverse=True)
    module = getattr(library, layer)(3, 4, bidirectional=True, batch_first=batch_first)
    x = torch.randn(max(lengths), len(lengths), 3)
    for i, length in enumerate(lengths):
        x[length:, i] = torch.inf
    x = (x.transpose(0, 1) if batch_first else x).requires_grad_()
    given = torch.tensor(lengths) if is_sorted else lengths
    packed = rnn.pack_padded_sequence(x, given, batch_first=batch_first, enforce_sorted=is_sorted)
    padded, found = rnn.pad_packed_sequence(module(packed)[0], batch_first=batch_first, padding_value=-7.0)
    assert found.tolist() == lengths
    (gradient,) = torch.autograd.grad(padded.sum(), x)
    for i, length in enumerate(lengths):
        steps, slope = (each[i] if batch_first else each[:, i] for each in (padded, gradient))
        assert (steps[length:] == -7).all()
        assert steps.isfinite().all()
        assert slope[:length].abs().min() > 0
        assert not slope[length:].any()


@pytest.mark.parametrize("name", ["RNN", "GRU"])
def test_errors(library, name):
    """Not of LSTM: torch.nn's checks no packed input, and computes something where the features are too many."""
    module = getattr(library, name)(3, 4)
    packed = rnn.pack_sequence([torch.randn(3, 3), torch.randn(2, 3)])
    with pytest.raises(RuntimeError, match=r"Expected hidden size \(1, 2, 4\), got \[1, 3, 4\]"):
        module(packed, state_of(module, 3, torch.float32))
    with pytest.raises(RuntimeError, match=r"input.size\(-1\) must be equal to input_size. Expected 3, got 5"):
        module(rnn.pack_sequence([torch.randn(3, 5)]))
    with pytest.raises(RuntimeError, match="input must have 2 dimensions, got 3"):
        module(rnn.pack_sequence([torch.randn(3, 1, 3)]))
    with pytest.raises(ValueError, match="RNN input dtype"):
        module(packed.double())
