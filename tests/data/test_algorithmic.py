"""Sequences of algorithmic patterns: what they are, and which of their characters are known beforehand."""

import re
from collections import Counter

import numpy as np
import pytest

from prnn.data.algorithmic import IGNORED, PROBLEMS, rows

# A sequence of size n, and where what is known begins.
PATTERNS = {
    "anbn": (r"(a+)(b+)", lambda n, a, b: len(a) == len(b) == n),
    "anbncn": (r"(a+)(b+)(c+)", lambda n, a, b, c: len(a) == len(b) == len(c) == n),
    "anbncndn": (r"(a+)(b+)(c+)(d+)", lambda n, a, b, c, d: len(a) == len(b) == len(c) == len(d) == n),
    "anb2n": (r"(a+)(b+)", lambda n, a, b: len(b) == 2 * len(a) == 2 * n),
    "anbmcnm": (r"(a+)(b+)(c+)", lambda n, a, b, c: len(a) + len(b) == len(c) == n),
    "memorization": (r"([bc]+)a([bc]+)", lambda n, there, back: there[::-1] == back and len(there) == n),
    "addition": (
        r"([01]+)\+([01]+)=([01]+)\.",
        lambda n, a, b, c: int(a, 2) + int(b, 2) == int(c[::-1], 2) and len(a) + len(b) - (a == "0") - (b == "0") == n,
    ),
    "multiplication": (r"(a+)(b+)(c+)", lambda n, a, b, c: len(a) + len(b) == n and len(a) * len(b) == len(c)),
    "crossed": (r"(a+)(b+)(c+)(d+)", lambda n, a, b, c, d: len(a) == len(c) and len(b) == len(d) and len(a + b) == n),
}
BEGINS = {"memorization": "a", "addition": "=", "anbmcnm": "c", "multiplication": "c", "crossed": "c"}


def test_all_problems_are_tested():
    assert PATTERNS.keys() == PROBLEMS.keys()


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("n", [2, 3, 7, 20])
def test_sequences_are_what_they_are_called(name, n):
    problem, random = PROBLEMS[name], np.random.default_rng(n)
    pattern, holds = PATTERNS[name]
    for _ in range(20):
        text, known = problem.draw(random, n)
        assert set(text) <= set(problem.alphabet)
        assert holds(n, *re.fullmatch(pattern, text).groups()), text
        assert known == text.index(BEGINS.get(name, "b")) + 1


@pytest.mark.parametrize("name", ["anbmcnm", "addition", "memorization"])
def test_what_is_random_takes_all_its_values(name):
    random = np.random.default_rng(0)
    drawn = Counter(PROBLEMS[name].draw(random, 3).text for _ in range(400))
    assert len(drawn) >= {"anbmcnm": 2, "memorization": 8, "addition": 10}[name]


def test_rows_are_sequences_one_after_the_other():
    found = rows(PROBLEMS["anbn"], np.random.default_rng(0), [[2, 3], [1]])
    assert found.targets[:, 0].tolist() == [0, 0, 1, 1, 0, 0, 0, 1, 1, 1]
    assert found.inputs[:, 0].tolist() == [1, 0, 0, 1, 1, 0, 0, 0, 1, 1]  # the last letter before the first
    assert np.flatnonzero(found.known[:, 0]).tolist() == [3, 8, 9]
    assert np.flatnonzero(found.opening[:, 0]).tolist() == [4]
    assert found.targets[:, 1].tolist() == [0, 1, *[IGNORED] * 8]
    assert found.inputs.min() == 0  # padding is a character like any other
    assert not found.known[2:, 1].any()
