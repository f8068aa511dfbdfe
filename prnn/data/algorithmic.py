"""Sequences of algorithmic patterns, the tasks of Joulin and Mikolov (2015), arXiv:1503.01007, and of their code.

A sequence is random up to some character and determined by its prefix from there on. Sequences are concatenated
without separators, so that a model has to detect the boundaries.

T: time steps, B: rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from prnn.data.sampler import IGNORED


class Drawn(NamedTuple):
    """A sequence, and the index of its first character that is determined by its prefix."""

    text: str
    known: int


Draw = Callable[[np.random.Generator, int], Drawn]  # of size n


@dataclass(frozen=True)
class Problem:
    """A kind of sequence."""

    alphabet: str
    draw: Draw
    opens: bool = True  # every sequence begins with the same character, which tests whether an end was detected
    answers: bool = False  # characters that are not determined are masked in training


def _blocks(*repeats: int) -> Draw:
    """a, b, c ... in turn, each n times its number of repeats; determined from the first b on."""

    def draw(random: np.random.Generator, n: int) -> Drawn:
        return Drawn("".join(letter * (n * times) for letter, times in zip("abcd", repeats, strict=False)), n + 1)

    return draw


def _parts(random: np.random.Generator, n: int) -> tuple[int, int]:
    """Two numbers, at least 1, whose sum is n."""
    first = int(random.integers(1, n))
    return first, n - first


def _sum(random: np.random.Generator, n: int) -> Drawn:
    a, b = _parts(random, n)
    return Drawn("a" * a + "b" * b + "c" * n, n + 1)


def _product(random: np.random.Generator, n: int) -> Drawn:
    a, b = _parts(random, n)
    return Drawn("a" * a + "b" * b + "c" * (a * b), n + 1)


def _crossed(random: np.random.Generator, n: int) -> Drawn:
    a, b = _parts(random, n)
    return Drawn("a" * a + "b" * b + "c" * a + "d" * b, n + 1)


def _memorization(random: np.random.Generator, n: int) -> Drawn:
    """n letters b and c, an a, and the letters reversed."""
    letters = "".join(random.choice(["b", "c"], n))
    return Drawn(letters + "a" + letters[::-1], n + 1)


def _addition(random: np.random.Generator, n: int) -> Drawn:
    """Two binary numbers of n digits in total, and their sum, least significant digit first: 10+11=101."""
    digits = int(random.integers(0, n + 1))
    a, b = _binary(random, digits), _binary(random, n - digits)
    text = f"{a}+{b}="
    return Drawn(text + f"{int(a, 2) + int(b, 2):b}"[::-1] + ".", len(text))


def _binary(random: np.random.Generator, digits: int) -> str:
    """A binary number of ``digits`` digits, the first of them 1; 0 for no digits."""
    return "1" + "".join(random.choice(["0", "1"], digits - 1)) if digits else "0"


PROBLEMS = {
    "anbn": Problem("ab", _blocks(1, 1)),
    "anbncn": Problem("abc", _blocks(1, 1, 1)),
    "anbncndn": Problem("abcd", _blocks(1, 1, 1, 1)),
    "anb2n": Problem("ab", _blocks(1, 2)),
    "anbmcnm": Problem("abc", _sum),
    "memorization": Problem("abc", _memorization, opens=False),
    "addition": Problem("01+=.", _addition, opens=False, answers=True),
    "multiplication": Problem("abc", _product),  # in the code, not in the paper
    "crossed": Problem("abcd", _crossed),  # a^n b^m c^n d^m: likewise
}


class Rows(NamedTuple):
    """Concatenated sequences, one row per sample; all arrays are [T,B] int64 or bool."""

    inputs: np.ndarray  # the character preceding each target; for the first one, the alphabet's last
    targets: np.ndarray  # IGNORED past a row's end
    known: np.ndarray  # whether the target is determined by its prefix
    opening: np.ndarray  # whether the target is the first of a sequence, but not of the row

    @property
    def trained(self) -> np.ndarray:
        """Whether there is a target."""
        return self.targets != IGNORED


def rows(problem: Problem, random: np.random.Generator, sizes: Sequence[Sequence[int]]) -> Rows:
    """Row b is the concatenation of one sequence of each size in ``sizes[b]``."""
    drawn = [[problem.draw(random, n) for n in row] for row in sizes]
    T = max(sum(len(sequence.text) for sequence in row) for row in drawn)
    number = np.zeros(128, dtype=np.int64)  # letter code -> token
    number[[ord(letter) for letter in problem.alphabet]] = range(len(problem.alphabet))
    targets = np.full((T, len(drawn)), IGNORED)
    known, opening = np.zeros(targets.shape, dtype=bool), np.zeros(targets.shape, dtype=bool)
    for b, row in enumerate(drawn):
        text = "".join(sequence.text for sequence in row)
        targets[: len(text), b] = number[np.frombuffer(text.encode("ascii"), dtype=np.uint8)]
        start = 0
        for sequence in row:
            end = start + len(sequence.text)
            known[start + sequence.known : end, b] = True
            opening[start, b] = start > 0
            start = end
    first = np.full((1, len(drawn)), len(problem.alphabet) - 1)
    inputs = np.concatenate([first, np.maximum(targets[:-1], 0)])
    return Rows(inputs, targets, known, opening)
