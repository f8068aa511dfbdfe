"""Sequences of algorithmic patterns, the tasks of Joulin and Mikolov (2015), arXiv:1503.01007, and of their code.

A sequence is random up to some character and follows from what stands before it from there on. Sequences stand one
after the other without a border: where one has ended, the next begins, and a model has to know.

T: time steps, B: rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from prnn.data.sampler import IGNORED


class Drawn(NamedTuple):
    """A sequence, and the first of its characters that follows from those before it."""

    text: str
    known: int


Draw = Callable[[np.random.Generator, int], Drawn]  # of size n


@dataclass(frozen=True)
class Problem:
    """A kind of sequence."""

    alphabet: str
    draw: Draw
    opens: bool = True  # every sequence begins with the same character, so that it shows whether an end was seen
    answers: bool = False  # what is not known beforehand is not trained on


def _blocks(*repeats: int) -> Draw:
    """a, b, c ... in turn, each n times its number of repeats; known from the first b on."""

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
    """n letters b and c, an a, and the same letters backwards."""
    letters = "".join(random.choice(["b", "c"], n))
    return Drawn(letters + "a" + letters[::-1], n + 1)


def _addition(random: np.random.Generator, n: int) -> Drawn:
    """Two binary numbers of n digits together, and their sum, the lowest digit first: 10+11=101."""
    digits = int(random.integers(0, n + 1))
    a, b = _binary(random, digits), _binary(random, n - digits)
    text = f"{a}+{b}="
    return Drawn(text + f"{int(a, 2) + int(b, 2):b}"[::-1] + ".", len(text))


def _binary(random: np.random.Generator, digits: int) -> str:
    """A binary number of so many digits, the first of them 1; 0 where there are none."""
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
    """Sequences, some to a row; all arrays are [T,B] int64 or bool."""

    inputs: np.ndarray  # the character before each target; before the first, the alphabet's last
    targets: np.ndarray  # IGNORED behind a row's end
    known: np.ndarray  # whether the target follows from what stands before it
    opening: np.ndarray  # whether the target is the first of a sequence, and not of the row

    @property
    def trained(self) -> np.ndarray:
        """Whether there is a target."""
        return self.targets != IGNORED


def rows(problem: Problem, random: np.random.Generator, sizes: Sequence[Sequence[int]]) -> Rows:
    """Row b holds one sequence of each size in ``sizes[b]``, one after the other."""
    drawn = [[problem.draw(random, n) for n in row] for row in sizes]
    T = max(sum(len(each.text) for each in row) for row in drawn)
    number = np.zeros(128, dtype=np.int64)  # of each letter, by its code
    number[[ord(letter) for letter in problem.alphabet]] = range(len(problem.alphabet))
    targets = np.full((T, len(drawn)), IGNORED)
    known, opening = np.zeros(targets.shape, dtype=bool), np.zeros(targets.shape, dtype=bool)
    for b, row in enumerate(drawn):
        text = "".join(each.text for each in row)
        targets[: len(text), b] = number[np.frombuffer(text.encode("ascii"), dtype=np.uint8)]
        start = 0
        for each in row:
            end = start + len(each.text)
            known[start + each.known : end, b] = True
            opening[start, b] = start > 0
            start = end
    first = np.full((1, len(drawn)), len(problem.alphabet) - 1)
    inputs = np.concatenate([first, np.maximum(targets[:-1], 0)])
    return Rows(inputs, targets, known, opening)
