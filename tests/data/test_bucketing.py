import numpy as np
import pytest

from prnn.data.bucketing import Buckets, TokenBuckets, padded
from prnn.errors import UserError


def lengths(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 30, (count, 2))


def test_every_sequence_comes_at_most_once_an_epoch_and_none_is_left_out_for_good() -> None:
    buckets = Buckets(lengths(1003), 10, seed=1)
    epochs = [buckets.epoch(epoch) for epoch in range(4)]
    assert buckets.steps == 100 and all(epoch.shape == (100, 10) for epoch in epochs)
    assert all(len(set(epoch.flatten())) == 1000 for epoch in epochs)
    assert len(set(np.concatenate(epochs).flatten())) == 1003


def test_the_order_is_a_function_of_the_seed_and_the_epoch() -> None:
    one, same, other = (Buckets(lengths(500), 10, seed) for seed in (1, 1, 2))
    assert np.array_equal(one.epoch(3), same.epoch(3))
    assert not np.array_equal(one.epoch(3), one.epoch(4)) and not np.array_equal(one.epoch(3), other.epoch(3))


def test_little_of_a_batch_is_padding_and_the_batches_are_shuffled() -> None:
    of = lengths(5000)
    longest = of[Buckets(of, 10, seed=1).epoch(0)]  # [steps, B, 2]
    padding = 1 - of.sum() / (longest.max(axis=1) * 10).sum()
    shuffled = of[np.random.default_rng(0).permutation(5000)].reshape(500, 10, 2)
    assert padding < 0.2 < 0.4 < 1 - of.sum() / (shuffled.max(axis=1) * 10).sum()
    means = longest[:, :, 0].mean(axis=1)
    assert abs(np.corrcoef(means[1:], means[:-1])[0, 1]) < 0.15


def test_fewer_sequences_than_a_batch() -> None:
    with pytest.raises(UserError, match="trainer.batch_size=10 is more than the 9 training pairs"):
        Buckets(lengths(9), 10, seed=1)


def test_padding() -> None:
    assert padded([np.array([1, 2]), np.array([3])], 0).tolist() == [[1, 3], [2, 0]]


def test_batches_of_about_as_many_tokens_have_every_sequence_once_in_every_epoch() -> None:
    of = lengths(1003)
    buckets = TokenBuckets(of, 200, seed=1)
    for epoch in range(3):
        batches = buckets.epoch(epoch)
        assert len(batches) == buckets.steps == of[:, 1].sum() // 200
        assert sorted(np.concatenate(batches)) == list(range(1003))
        tokens = np.array([of[batch, 1].sum() for batch in batches])
        assert tokens.max() < 200 + 2 * 30 and tokens.min() > 200 - 30
        assert all(np.array_equal(a, b) for a, b in zip(batches, buckets.epoch(epoch), strict=True))
    sizes = {len(batch) for batch in batches}
    assert max(sizes) > 2 * min(sizes)  # short sequences are many, long ones few
    single = TokenBuckets(np.array([[1, 7]] * 5), 7, seed=1)
    assert [len(batch) for batch in single.epoch(0)] == [1] * 5


@pytest.mark.parametrize("tokens", [28, 10**6])
def test_batch_tokens_that_no_batch_can_have(tokens: int) -> None:
    with pytest.raises(UserError, match=f"trainer.batch_tokens={tokens} must be at least the 29 tokens"):
        TokenBuckets(lengths(500), tokens, seed=1)
