"""Batches for truncated backpropagation through time: a text as parallel streams.

T: time steps (bptt), B: batch size, N: tokens, L: steps of each stream in an epoch.

The text is split into B contiguous streams of L tokens. Batch i holds steps i*T to (i+1)*T of every stream, so the
state carried from one batch to the next follows the text. The target of each token is the next one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from prnn.data.encoding import Tokens
from prnn.errors import UserError

IGNORED = -100  # target of padding; the default ignore_index of torch's cross entropy


@dataclass(frozen=True)
class TrainStreams:
    """The training part, tokens [start, stop). Every batch is [T, B], all of one shape.

    N - 1 predictions are rarely divisible by B*T: each epoch drops fewer than one batch of them, those before a first
    token drawn from (seed, epoch) and those after the last batch. Within an epoch no token is predicted twice.
    """

    tokens: Tokens
    start: int
    stop: int
    batch_size: int
    bptt: int
    seed: int

    def __post_init__(self) -> None:
        available, needed = self.stop - self.start, self.batch_size * self.bptt + 1
        if available < needed:
            raise UserError(
                f"the batch is larger than the text: {self.batch_size} sequences (trainer.batch_size or batch_tokens) "
                f"x task.bptt={self.bptt} need {needed:,} tokens to train on, and the text has {available:,}: lower "
                "one of the two."
            )

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return (self.stop - self.start - 1) // (self.batch_size * self.bptt)

    def offset(self, epoch: int) -> int:
        """Position of the epoch's first token."""
        left_over = (self.stop - self.start - 1) - self.steps * self.batch_size * self.bptt
        random = np.random.default_rng([self.seed % (1 << 63), epoch])
        return self.start + int(random.integers(left_over + 1))

    def batch(self, epoch: int, index: int, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets, each [T, len(rows)] int64, of the streams ``rows`` at step ``index``."""
        streams = np.arange(self.batch_size)[rows]
        first = self.offset(epoch) + streams * (self.steps * self.bptt) + index * self.bptt
        window = self.tokens.windows(first, self.bptt + 1)
        return window[:-1], window[1:]


@dataclass(frozen=True)
class EvalStreams:
    """The validation part, tokens [start, stop), each except the first predicted exactly once.

    With one stream the state is carried through the whole text. With S streams, S - 1 more tokens are predicted
    from an empty state, and the last stream is padded with ``IGNORED`` targets to the length of the others.
    """

    tokens: Tokens
    start: int
    stop: int
    streams: int

    def pieces(self, rank: int, world_size: int, length: int) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """Inputs and targets [up to `length`, this rank's streams] int64, and how many targets are not ``IGNORED``."""
        rows = np.array_split(np.arange(self.streams), world_size)[rank]
        if not len(rows):
            return
        last = self.stop - 1
        stream_length = -(-(last - self.start) // self.streams)
        for step in range(0, stream_length, length):
            count = min(length, stream_length - step)
            first = self.start + rows * stream_length + step
            valid = np.arange(count)[:, None] + first < last
            window = self.tokens.windows(first, count + 1, self.stop)
            yield window[:-1], np.where(valid, window[1:], IGNORED), int(valid.sum())
