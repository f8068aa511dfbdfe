"""The adding problem: sequences of random numbers, two of which are marked.

T: time steps, B: sequences.
"""

from __future__ import annotations

import numpy as np

VARIANCE = 1 / 6  # of the sum of two uniform numbers in 0..1: the mean squared error of the constant answer 1


def sequences(generator: np.random.Generator, length: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [T, B, 2] float32 and answers [B] float32.

    The first channel is uniform in 0..1; the second is 1 at two steps, 0 elsewhere. The answer is the sum of the two
    marked numbers: Le, Jaitly and Hinton (2015), arXiv:1504.00941, section 4.1. There is one mark in each half of the
    sequence, as in Arjovsky, Shah and Bengio (2016), arXiv:1511.06464, section 5.2, so that the first number must be
    remembered for at least half the sequence on average. After Hochreiter and Schmidhuber (1997), experiment 4.
    """
    inputs = np.zeros((length, count, 2), dtype=np.float32)
    inputs[..., 0] = generator.random((length, count), dtype=np.float32)
    half = length // 2
    marked = np.stack([generator.integers(0, half, count), generator.integers(half, length, count)])
    columns = np.arange(count)
    inputs[marked, columns, 1] = 1
    return inputs, inputs[marked, columns, 0].sum(0)
