"""The data classes of a reproduction; the reproductions are in ``reproductions.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Published:
    """A published value in the unit of its ``Figure``; None: described in words only."""

    value: float | None
    source: str  # a key of reproductions.SOURCES
    note: str = ""  # what differs, or in which time


@dataclass(frozen=True)
class Figure:
    """One metric of a run."""

    key: str  # its path in summary.json, such as test.bleu
    what: str  # in words, with its unit
    better: Literal["higher", "lower"]
    goal: float | None = None  # a seed reaches it, or misses; None: the figure is only reported
    published: tuple[Published, ...] = ()
    drawn: bool = True  # shown in the group's picture
    scale: float = 1.0  # what stands in summary.json times this is in the unit of `what`: 100 for a share in percent

    def of(self, summary: dict[str, Any]) -> float | None:
        """The value in a summary; None if it was not finite. Raises ``KeyError`` if the summary lacks it."""
        value: Any = summary
        for part in self.key.split("."):
            value = value[part]
        return None if value is None else value * self.scale

    def reached(self, value: float | None) -> bool:
        """Whether ``value`` meets the goal; without a goal every number does."""
        if value is None or self.goal is None:
            return value is not None
        return value >= self.goal if self.better == "higher" else value <= self.goal


@dataclass(frozen=True)
class Row:
    """One reproduction: its overrides of ``prnn-train`` and the metrics it is judged by."""

    name: str
    title: str
    overrides: tuple[str, ...]  # experiment=PRESET among them, where there is one
    figures: tuple[Figure, ...]
    minutes: float  # of one seed, on one core; of those with a time limit also the validations
    seeds: tuple[int, ...] = (1, 2, 3)
    alone: bool = False  # it is about speed, or about what is reached in a given time: nothing else may run beside it
    differs: str = ""  # what differs from the published run, in one line

    @property
    def needs(self) -> str:
        """The cost of one seed in words."""
        minutes = "a minute" if self.minutes <= 1 else f"{self.minutes:g} minutes"
        time = minutes if self.minutes <= 90 else f"{self.minutes / 60:.2g} hours"
        return f"{time}, with nothing else running" if self.alone else f"about {time} of one core"


@dataclass(frozen=True)
class Group:
    """A section of the table."""

    title: str
    about: str
    rows: tuple[Row, ...]
