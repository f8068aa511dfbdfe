"""Where pairs of sentences come from, and the settings that say so.

reversal        digits and the same digits backwards ("3 1 4" -> "4 1 3"), generated from a seed
a named corpus  a file in $PRNN_DATA/<name>/ or in the cache
a path          a file of the user's
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prnn.data.corpora import look_up, user_file
from prnn.data.parallel_text import LEVELS, SPECIAL, Parts, at_most, read_pairs, split
from prnn.errors import UserError

REVERSAL = "reversal"
MOST = 2**53  # of any integer here: more is not exact in every JSON reader
MOST_GENERATED = 100_000_000  # numbers of a part, which become texts: minutes, and some 10 GB


@dataclass
class DataConfig:
    """The section ``data``."""

    name: str = REVERSAL  # reversal (generated digits and the same backwards), or the name of a corpus with a file
    path: str | None = None  # a tab-separated file of yours (.gz too), instead
    file: str | None = None  # the named corpus' file, in $PRNN_DATA/NAME/ or the cache
    sha256: str | None = None  # of that file; null: not checked
    source_column: str = "1"  # files: the column translated from, by number from 1 or by its name in the first line
    target_column: str = "2"  # files: the column translated to
    max_length: int | None = None  # files: pairs with more words on either side are left out; null: none is
    level: str = "word"  # what a token is: word (marks of punctuation are tokens too) or char
    lowercase: bool = True  # read and write lower case only
    vocabulary_size: int = 10_000  # tokens of each language, the most frequent ones; the rest become <unk>
    min_count: int = 1  # a token seen less often in the training part becomes <unk>
    train_size: int | None = 50_000  # pairs to train on; null: all that are left (files)
    dev_size: int = 1000  # pairs to validate on
    test_size: int = 1000  # pairs the best model is tested on at the end
    train_length: int = 10  # reversal: digits in a pair to train on, at most
    test_length: int = 15  # reversal: digits in a pair to validate and test on, at most
    numbers: int = 10  # reversal: how many different ones; 10 are the digits
    seed: int = 1  # of what is generated, and of which pairs of a file are validated and tested on

    def validate(self, cfg: Any) -> None:
        """Raise ``UserError`` for a setting out of range; ``cfg`` is the whole ``TrainConfig``."""
        if self.level not in LEVELS:
            raise UserError(f"data.level={self.level} must be one of {', '.join(LEVELS)}.")
        least = {"vocabulary_size": len(SPECIAL) + 1, "min_count": 1, "dev_size": 0, "test_size": 0}
        least |= {"train_length": 1, "test_length": 1, "numbers": 1, "seed": 0, "train_size": 1, "max_length": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= MOST:
                raise UserError(f"data.{name}={value} must be at least {low} and at most {MOST:,}.")
        if self.generated and self.train_size is None:
            raise UserError("data.train_size=null must be a number for data.name=reversal, which has no end.")
        for part, length in (("train", self.train_length), ("dev", self.test_length), ("test", self.test_length)):
            size = getattr(self, f"{part}_size")
            if self.generated and size * length > MOST_GENERATED:
                raise UserError(
                    f"data.{part}_size={size} pairs of up to {length} numbers (data.train_length or test_length) must "
                    f"be at most {MOST_GENERATED:,} numbers."
                )
        if not self.generated and self.path is None and self.file is None:
            raise UserError(
                f"data.name={self.name} is no data prnn generates: give its data.file, or a file of yours with "
                "data.path."
            )

    @property
    def generated(self) -> bool:
        return self.path is None and self.name == REVERSAL


def find_pairs(data: DataConfig) -> Parts:
    """The pairs that ``data`` names; raises ``UserError`` for a file that is missing or cannot be read."""
    if data.generated:
        assert data.train_size is not None
        sizes = (data.train_size, data.dev_size, data.test_size)
        return digit_reversal(sizes, data.train_length, data.test_length, data.numbers, data.seed)
    if data.path is not None:
        path = user_file(data.path)
    else:
        assert data.file is not None
        path = corpus_file(data.name, data.file, data.sha256)
    pairs = at_most(read_pairs(path, data.source_column, data.target_column), data.max_length)
    return split(pairs, (data.train_size, data.dev_size, data.test_size), data.seed, data.max_length)


def digit_reversal(sizes: tuple[int, int, int], train_length: int, test_length: int, numbers: int, seed: int) -> Parts:
    """Rows of 1 to ``train_length`` numbers below ``numbers`` to train on, of up to ``test_length`` for the rest.

    ``sizes``: how many to train on, to validate on, to test on. Lengths are equally likely.
    """
    parts = []
    for part, (size, longest) in enumerate(zip(sizes, (train_length, test_length, test_length), strict=True)):
        random = np.random.default_rng([seed, part])
        lengths = random.integers(1, longest + 1, size)
        rows = np.split(random.integers(0, numbers, int(lengths.sum())), np.cumsum(lengths)[:-1]) if size else []
        parts.append([(" ".join(map(str, row)), " ".join(map(str, row[::-1]))) for row in rows])
    return Parts(*parts)


def corpus_file(name: str, file: str, sha256: str | None) -> Path:
    """The file of a named corpus; raises ``UserError`` where it is missing or damaged."""
    found, places = look_up(name, file, sha256)
    if found is None:
        raise UserError(
            f"the corpus {name} is neither at {places[0]} nor at {places[1]}: put it there, give a file of yours with "
            "data.path, or take data=reversal, which is generated."
        )
    return found
