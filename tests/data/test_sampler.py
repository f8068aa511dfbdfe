from itertools import product

import numpy as np
import pytest

from prnn.data.encoding import HeldTokens
from prnn.data.sampler import IGNORED, EvalStreams, TrainStreams
from prnn.errors import UserError

ALL = slice(None)


def numbered(count: int) -> HeldTokens:
    """A text in which each token is its own position."""
    return HeldTokens(np.arange(count, dtype=np.int32))


@pytest.mark.parametrize("count, batch_size, bptt", [(1000, 4, 7), (29, 4, 7), (113, 1, 25), (1001, 10, 10)])
def test_an_epoch_predicts_each_position_once_but_for_less_than_a_batch(count: int, batch_size: int, bptt: int) -> None:
    streams = TrainStreams(numbered(count + 50), 50, count + 50, batch_size, bptt, seed=3)
    for epoch in range(3):
        batches = [streams.batch(epoch, index, ALL) for index in range(streams.steps)]
        inputs = np.concatenate([inputs for inputs, _ in batches])  # [L, B]: each column is one stream
        targets = np.concatenate([targets for _, targets in batches])
        assert all(one.shape == (bptt, batch_size) for one, _ in batches)
        np.testing.assert_array_equal(targets, inputs + 1)
        # Stream after stream, the positions are one unbroken run.
        run = inputs.T.reshape(-1)
        np.testing.assert_array_equal(run, np.arange(run[0], run[0] + run.size))
        assert run[0] >= 50 and targets.max() < count + 50
        assert 0 <= (count - 1) - run.size < batch_size * bptt


def test_what_is_left_out_changes_with_the_epoch_and_comes_back_with_the_seed() -> None:
    def offsets(seed: int) -> list[int]:
        return [TrainStreams(numbered(999), 0, 999, 4, 25, seed).offset(epoch) for epoch in range(20)]

    assert offsets(1) == offsets(1) != offsets(2)
    assert len(set(offsets(1))) > 5


def test_rows_together_are_the_batch() -> None:
    streams = TrainStreams(numbered(500), 0, 500, 6, 5, seed=1)
    whole_inputs, whole_targets = streams.batch(2, 3, ALL)
    parts = [streams.batch(2, 3, slice(start, start + 2)) for start in (0, 2, 4)]
    np.testing.assert_array_equal(np.concatenate([inputs for inputs, _ in parts], axis=1), whole_inputs)
    np.testing.assert_array_equal(np.concatenate([targets for _, targets in parts], axis=1), whole_targets)


def test_a_batch_larger_than_the_text_is_refused() -> None:
    TrainStreams(numbered(21), 0, 21, 4, 5, seed=1)
    with pytest.raises(
        UserError, match=r"4 sequences .* x task.bptt=5 need 21 tokens to train on, and the text has 20"
    ):
        TrainStreams(numbered(20), 0, 20, 4, 5, seed=1)


@pytest.mark.parametrize("count, streams, world_size", [*product((2, 3, 100, 101), (1, 2, 7), (1, 2, 3))])
def test_validation_predicts_every_position_exactly_once(count: int, streams: int, world_size: int) -> None:
    evaluation = EvalStreams(numbered(count + 10), 10, count + 10, streams)
    seen: list[int] = []
    for rank in range(world_size):
        for inputs, targets, predictions in evaluation.pieces(rank, world_size, length=8):
            real = targets != IGNORED
            assert predictions == real.sum() and inputs.shape == targets.shape and len(inputs) <= 8
            np.testing.assert_array_equal(targets[real], inputs[real] + 1)
            seen += targets[real].tolist()
    assert sorted(seen) == list(range(11, count + 10))


def test_one_stream_is_all_rank_0s_and_in_order() -> None:
    evaluation = EvalStreams(numbered(50), 0, 50, streams=1)
    inputs = np.concatenate([inputs for inputs, _, _ in evaluation.pieces(0, 2, length=20)])
    np.testing.assert_array_equal(inputs, np.arange(49)[:, None])
    assert list(evaluation.pieces(1, 2, length=20)) == []
