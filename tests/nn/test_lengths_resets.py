"""``lengths`` equal running each sample alone; ``resets`` equal cutting the sequence at them."""

from __future__ import annotations

import pytest
import torch

import prnn.nn
from prnn import ops

BACKENDS = ["reference", "torch", None]
OPTIONS = {"plain": {}, "stacked": {"num_layers": 2, "bidirectional": True}}


def pick(state, b):
    """The state of sample b, still with its batch dimension."""
    return tuple(t[:, b : b + 1] for t in state) if isinstance(state, tuple) else state[:, b : b + 1]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", OPTIONS)
def test_lengths_equal_running_each_sample_alone(compare, kind, backend, options):
    _, ours = compare.pair(kind, 3, 5, **OPTIONS[options])
    sizes = [4, 7, 0, 1]
    x, hx = torch.randn(7, 4, 3), compare.state(ours, 4)
    with ops.backend(backend):
        output, *state = compare.results(ours(x, hx, lengths=sizes))
        for b, size in enumerate(sizes):
            assert torch.equal(output[size:, b], torch.zeros_like(output[size:, b])), "padding gives zeros"
            if size == 0:
                alone = [None, *(pick(hx, b) if isinstance(hx, tuple) else (pick(hx, b),))]
            else:
                alone = compare.results(ours(x[:size, b : b + 1], pick(hx, b)))
                torch.testing.assert_close(output[:size, b : b + 1], alone[0])
            for together, own in zip(state, alone[1:], strict=True):
                torch.testing.assert_close(together[:, b : b + 1], own)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_with_lengths_equal_the_sum_of_the_samples(compare, kind, backend):
    _, ours = compare.pair(kind, 3, 5, bidirectional=True, dtype=torch.float64)
    sizes = [4, 7, 2]
    x = torch.randn(7, 3, 3, dtype=torch.float64)
    scale = torch.randn(7, 3, 2 * (ours.proj_size or 5), dtype=torch.float64)
    with ops.backend(backend):
        batched = x.clone()
        for b, size in enumerate(sizes):
            batched[size:, b] = float("nan")  # what stands in the padding reaches nothing
        batched.requires_grad_()
        (ours(batched, lengths=torch.tensor(sizes))[0] * scale).sum().backward()
        found = {name: p.grad.clone() for name, p in ours.named_parameters()} | {"x": batched.grad.clone()}
        ours.zero_grad()
        alone = x.clone().requires_grad_()
        sum(
            (ours(alone[:size, b : b + 1])[0] * scale[:size, b : b + 1]).sum() for b, size in enumerate(sizes)
        ).backward()
    compare.equal(found, {name: p.grad for name, p in ours.named_parameters()} | {"x": alone.grad}, 1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_resets_equal_splitting_the_sequence(compare, kind, backend):
    _, ours = compare.pair(kind, 3, 5)
    x, hx = torch.randn(9, 2, 3), compare.state(ours, 2)
    resets = torch.zeros(9, 2, dtype=torch.bool)
    resets[[3, 4, 7]] = True
    with ops.backend(backend):
        found = compare.results(ours(x, hx, resets=resets))
        parts = [ours(x[a:b], hx if a == 0 else None) for a, b in ((0, 3), (3, 4), (4, 7), (7, 9))]
    torch.testing.assert_close(found[0], torch.cat([part[0] for part in parts]))
    torch.testing.assert_close(found[1:], compare.results(parts[-1])[1:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_resets_split_both_directions_and_each_sample_for_itself(compare, kind, backend):
    _, ours = compare.pair(kind, 3, 5, num_layers=2, bidirectional=True, batch_first=True)
    x = torch.randn(2, 8, 3)
    resets = torch.zeros(2, 8, dtype=torch.bool)
    resets[0, 3] = resets[1, 6] = True
    with ops.backend(backend):
        output, _ = ours(x, lengths=[5, 8], resets=resets)
        for b, cut, size in ((0, 3, 5), (1, 6, 8)):
            for part in (slice(0, cut), slice(cut, size)):
                torch.testing.assert_close(output[b : b + 1, part], ours(x[b : b + 1, part])[0])
    assert torch.equal(output[0, 5:], torch.zeros_like(output[0, 5:]))


def test_a_reset_before_the_first_step_ignores_the_given_state(compare, kind):
    _, ours = compare.pair(kind, 3, 5)
    x, resets = torch.randn(4, 2, 3), torch.tensor([[True, True]] + [[False, False]] * 3)
    torch.testing.assert_close(ours(x, compare.state(ours, 2), resets=resets)[0], ours(x)[0])


def test_layouts_of_lengths_and_resets(compare, kind):
    _, ours = compare.pair(kind, 3, 5)
    x, resets = torch.randn(6, 2, 3), torch.rand(6, 2) < 0.3
    expected, _ = ours(x, lengths=[4, 6], resets=resets)
    assert torch.equal(ours(x, lengths=torch.tensor([4, 6], dtype=torch.int32), resets=resets)[0], expected)
    assert torch.equal(ours(x, lengths=[6, 6])[0], ours(x)[0])
    ours.batch_first = True
    output, _ = ours(x.transpose(0, 1), lengths=(4, 6), resets=resets.t())
    assert torch.equal(output.transpose(0, 1), expected)
    unbatched, _ = ours(x[:, 0], lengths=[4], resets=resets[:, 0])  # batch_first says nothing here
    torch.testing.assert_close(unbatched, expected[:, 0])


BAD_LENGTHS = {
    "longer than the input": ([3, 8], "lengths must be between 0 and the 7 time steps of the input, got 3 to 8"),
    "negative": ([-1, 3], "lengths must be between 0 and the 7 time steps of the input, got -1 to 3"),
    "too many": ([3, 3, 3], r"lengths must have shape \[B\] = \[2\], one per sample, got \[3\]"),
    "not whole": ([3.0, 2.0], "lengths must be integers, got torch.float32"),
    "bool": (torch.tensor([True, False]), "lengths must be integers, got torch.bool"),
}


@pytest.mark.parametrize("case", BAD_LENGTHS)
def test_bad_lengths(case):
    lengths, message = BAD_LENGTHS[case]
    with pytest.raises(ValueError, match=message):
        prnn.nn.LSTM(3, 4)(torch.randn(7, 2, 3), lengths=lengths)


def test_bad_resets():
    module, x = prnn.nn.GRU(3, 4), torch.randn(7, 2, 3)
    with pytest.raises(ValueError, match=r"resets must be a bool tensor, got torch\.float32"):
        module(x, resets=torch.zeros(7, 2))
    with pytest.raises(ValueError, match=r"resets must have shape \[T,B\] = \[7, 2\], got \[2, 7\]"):
        module(x, resets=torch.zeros(2, 7, dtype=torch.bool))
    module.batch_first = True
    with pytest.raises(ValueError, match=r"resets must have shape \[B,T\] = \[2, 7\], got \[7, 2\]"):
        module(x.transpose(0, 1), resets=torch.zeros(7, 2, dtype=torch.bool))
