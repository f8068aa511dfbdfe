"""PackedSequence in and out, against torch.nn."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

import prnn.nn
from prnn import ops

LENGTHS = {"falling": [7, 4, 4, 1], "shuffled": [4, 1, 7, 4], "equal": [5, 5, 5], "single": [3]}


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("backend", ["reference", "torch", None])
def test_matches_torch(compare, kind, lengths, backend):
    sizes = LENGTHS[lengths]
    options = {"num_layers": 2, "bidirectional": True}
    theirs, ours = compare.pair(kind, 3, 5, **options)
    x = pack_sequence([torch.randn(size, 3) for size in sizes], enforce_sorted=lengths == "falling")
    hx = compare.state(theirs, len(sizes))
    with ops.backend(backend):
        found = compare.everything(ours, x, hx)
        without_state = compare.everything(ours, x, None)
    compare.equal(found, compare.everything(theirs, x, hx), 1e-5)
    compare.equal(without_state, compare.everything(theirs, x, None), 1e-5)


@pytest.mark.parametrize("batch_first", [False, True])
def test_float64_and_the_packing_itself(compare, kind, batch_first):
    theirs, ours = compare.pair(kind, 3, 5, dtype=torch.float64, batch_first=batch_first)
    x = torch.randn(*((3, 6) if batch_first else (6, 3)), 3, dtype=torch.float64)
    packed = pack_padded_sequence(x, [2, 6, 3], batch_first=batch_first, enforce_sorted=False)
    hx = compare.state(theirs, 3, torch.float64)
    compare.equal(compare.everything(ours, packed, hx), compare.everything(theirs, packed, hx), 1e-10)
    output, _ = ours(packed, hx)
    assert isinstance(output, PackedSequence)
    for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        assert torch.equal(getattr(output, name), getattr(packed, name)), name
    # The same through lengths: padding is zero in both.
    padded, sizes = pad_packed_sequence(output, batch_first=batch_first)
    direct, _ = ours(x, hx, lengths=sizes)
    torch.testing.assert_close(padded, direct, atol=1e-12, rtol=0)


def test_feeds_the_next_module(compare):
    """Packed out is packed in: a stack of modules never unpacks by hand."""
    theirs, ours = compare.pair("lstm", 4, 4)
    x = pack_sequence([torch.randn(size, 4) for size in (2, 5, 3)], enforce_sorted=False)
    expected, state = theirs(theirs(x)[0])
    found, own_state = ours(ours(x)[0])
    torch.testing.assert_close(found.data, expected.data)
    torch.testing.assert_close(own_state, state)


def test_resets_are_in_the_callers_order(compare, kind):
    _, ours = compare.pair(kind, 3, 5, bidirectional=True)
    x, sizes = torch.randn(6, 3, 3), [2, 6, 4]
    resets = torch.rand(6, 3) < 0.4
    packed = pack_padded_sequence(x, sizes, enforce_sorted=False)
    output, state = ours(packed, resets=resets)
    expected, expected_state = ours(x, lengths=sizes, resets=resets)
    torch.testing.assert_close(pad_packed_sequence(output)[0], expected)
    torch.testing.assert_close(state, expected_state)


def test_errors():
    module = prnn.nn.GRU(3, 4)
    packed = pack_sequence([torch.randn(3, 3), torch.randn(2, 3)])
    with pytest.raises(ValueError, match="lengths cannot be given with a PackedSequence"):
        module(packed, lengths=[3, 2])
    with pytest.raises(RuntimeError, match=r"Expected hidden size \(1, 2, 4\), got \[1, 3, 4\]"):
        module(packed, torch.zeros(1, 3, 4))
    with pytest.raises(RuntimeError, match=r"input.size\(-1\) must be equal to input_size. Expected 3, got 5"):
        module(pack_sequence([torch.randn(3, 5)]))
    with pytest.raises(ValueError, match="RNN input dtype"):
        module(pack_sequence([torch.randn(3, 3).double()]))
