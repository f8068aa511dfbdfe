"""Batches of sequences of about one length, so that little of a batch is padding.

N: sequences, B: batch size, S and T: the longest source and target of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prnn.errors import UserError

POOL_BATCHES = 100  # batches whose sequences are sorted among themselves: more pad less, and mix less


@dataclass(frozen=True)
class Buckets:
    """The batches of each epoch, a function of (seed, epoch).

    N rarely divides by B: each epoch leaves out fewer than B sequences, others each time. ``lengths`` [N,K] are sorted
    by, the first column first.
    """

    lengths: np.ndarray
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if len(self.lengths) < self.batch_size:
            raise UserError(
                f"trainer.batch_size={self.batch_size} is more than the {len(self.lengths):,} pairs there are to train "
                "on: lower it."
            )

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return len(self.lengths) // self.batch_size

    def epoch(self, epoch: int) -> np.ndarray:
        """Sequences of each batch, [steps, B]."""
        random = np.random.default_rng([self.seed, epoch])
        kept = random.permutation(len(self.lengths))[: self.steps * self.batch_size]
        pool = POOL_BATCHES * self.batch_size
        pools = [kept[start : start + pool] for start in range(0, len(kept), pool)]
        # Stable: equally long sequences stay in the order they were drawn in.
        ordered = [each[np.lexsort(self.lengths[each].T[::-1])] for each in pools]
        return random.permutation(np.concatenate(ordered).reshape(self.steps, self.batch_size))


def padded(sequences: Sequence[np.ndarray], padding: int) -> np.ndarray:
    """[T,B], each sequence [<=T] in a column of its own."""
    columns = np.full((max(map(len, sequences)), len(sequences)), padding, dtype=np.int64)
    for column, sequence in enumerate(sequences):
        columns[: len(sequence), column] = sequence
    return columns
