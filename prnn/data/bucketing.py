"""Length bucketing: batches of sequences of similar length, to reduce padding.

N: sequences, B: batch size, S and T: the longest source and target of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prnn.errors import UserError

POOL_BATCHES = 100  # batches in a pool sorted by length: a larger pool pads less, and shuffles less


@dataclass(frozen=True)
class Buckets:
    """Batches of B sequences, a function of (seed, epoch).

    N is rarely divisible by B: each epoch drops fewer than B sequences, different ones each time. ``lengths`` [N,K] are
    the sort keys, the first column first.
    """

    lengths: np.ndarray
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if len(self.lengths) < self.batch_size:
            raise UserError(
                f"trainer.batch_size={self.batch_size} is more than the {len(self.lengths):,} training pairs: lower it."
            )

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return len(self.lengths) // self.batch_size

    def epoch(self, epoch: int) -> np.ndarray:
        """Sequences of each batch, [steps, B]."""
        random = np.random.default_rng([self.seed, epoch])
        kept = random.permutation(len(self.lengths))[: self.steps * self.batch_size]
        ordered = _sorted_in_pools(kept, self.lengths, POOL_BATCHES * self.batch_size)
        return random.permutation(ordered.reshape(self.steps, self.batch_size))


@dataclass(frozen=True)
class TokenBuckets:
    """Batches of about ``batch_tokens`` tokens, counted in the last column of ``lengths`` [N,K]; of (seed, epoch).

    Every epoch has each sequence once. Each batch has ``batch_tokens`` or a few more, give or take a sequence: the
    sequences are concatenated, and a batch is the sequences that begin in its part of the whole.
    """

    lengths: np.ndarray
    batch_tokens: int
    seed: int

    def __post_init__(self) -> None:
        longest, total = self.lengths[:, -1].max(initial=0), self.lengths[:, -1].sum()
        if not longest <= self.batch_tokens <= total:
            raise UserError(
                f"trainer.batch_tokens={self.batch_tokens} must be at least the {longest:,} tokens of the longest "
                f"target, and at most the {total:,} of the training data."
            )

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return int(self.lengths[:, -1].sum()) // self.batch_tokens

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """Sequences [B] of each batch."""
        random = np.random.default_rng([self.seed, epoch])
        drawn = random.permutation(len(self.lengths))
        ordered = _sorted_in_pools(drawn, self.lengths, POOL_BATCHES * -(-len(drawn) // self.steps))
        tokens = self.lengths[ordered, -1]
        # The batch index of each sequence; no batch is empty, since none is shorter than the longest sequence.
        batch = (np.cumsum(tokens) - tokens) * self.steps // tokens.sum()
        batches = np.split(ordered, np.searchsorted(batch, np.arange(1, self.steps)))
        return [batches[i] for i in random.permutation(self.steps)]


def _sorted_in_pools(sequences: np.ndarray, lengths: np.ndarray, pool: int) -> np.ndarray:
    """Each ``pool`` of the sequences [N] sorted by length; stable."""
    pools = [sequences[start : start + pool] for start in range(0, len(sequences), pool)]
    return np.concatenate([part[np.lexsort(lengths[part].T[::-1])] for part in pools])


def padded(sequences: Sequence[np.ndarray], padding: int) -> np.ndarray:
    """The sequences [<=T] padded and stacked as the columns of [T,B]."""
    columns = np.full((max(map(len, sequences)), len(sequences)), padding, dtype=np.int64)
    for column, sequence in enumerate(sequences):
        columns[: len(sequence), column] = sequence
    return columns
