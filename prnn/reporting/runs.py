"""A run directory, read: its record, its summary, its configuration.

Everything but the record may be missing or damaged (a run that goes on, one that was killed, one that was copied in
part); it is then empty. A value that is no finite number is None, and a gap in its curve.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf

from prnn.errors import UserError
from prnn.training import run_dir
from prnn.training.observe.curves import Curves, Point, thin
from prnn.training.observe.record_reader import Records, number, read_object
from prnn.training.observe.record_writer import METRICS
from prnn.training.observe.summary import SUMMARY

FIGURES = "figures."  # before a name: it is a figure of the task's
RANKS = "ranks"  # records of this kind hold one of each process, whose kind is (RANKS, its number)
_WHOLE = ("sample", "pictures", "test")  # kinds whose records are kept as they are; the others' numbers alone
_MOST_NOTES_BYTES = 4 << 20  # of a configuration
_NOT_COMPARED = ("run_dir", "resume")  # where a run lies, not what it is


@dataclass
class Run:
    """One run; ``label`` is unlike every other's on the page.

    ``records`` reads the file anew each time: a long record does not fit into memory as dictionaries. ``count`` of
    them there were, and ``damaged`` lines that are none.
    """

    path: Path
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    label: str = ""

    def __post_init__(self) -> None:
        self.records = Records(self.path / METRICS)
        self.count, self.last_step = 0, 0
        self._curves = Curves()
        self._whole: dict[str, list[dict[str, Any]]] = {}
        self._latest: dict[Hashable, tuple[int, dict[str, Any]]] = {}
        for record in self.records:
            self.count += 1
            self.last_step = max(self.last_step, record["step"])
            self._take(record["kind"], record["step"], record)
        self.damaged = self.records.damaged
        for found in self._whole.values():
            found.sort(key=lambda each: each["step"])

    def _take(self, kind: str, step: int, record: dict[str, Any]) -> None:
        if kind in _WHOLE:
            self._whole.setdefault(kind, []).append(record)
            return
        entries: dict[Hashable, dict[str, Any]] = {kind: record}
        if kind == RANKS:
            entries = {(kind, entry["rank"]): entry for entry in record.get("ranks") or ()}
        for name, fields in entries.items():
            self._curves.add(name, step, fields)
            if step >= self._latest.get(name, (0, {}))[0]:
                self._latest[name] = (step, fields)

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """Its samples, pictures or tests, by step."""
        return self._whole.get(kind, [])

    def latest(self, kind: Hashable) -> dict[str, Any]:
        """The record of one kind with the largest step; empty where there is none."""
        return self._latest.get(kind, (0, {}))[1]

    def ranks(self) -> list[int]:
        """The processes of which there are records."""
        return sorted(kind[1] for kind in self._latest if isinstance(kind, tuple))

    def names(self, kind: Hashable) -> list[str]:
        """The fields of one kind of record that hold a number."""
        return self._curves.names(kind)

    def column(self, kind: Hashable, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values [N] of a field, by step; NaN is a gap. ``figures.NAME`` is a figure of the task's."""
        return self._curves.column(kind, name)

    def known(self, kind: Hashable, name: str) -> tuple[np.ndarray, np.ndarray]:
        """``column`` without its gaps."""
        steps, values = self.column(kind, name)
        return steps[np.isfinite(values)], values[np.isfinite(values)]

    def points(self, kind: Hashable, name: str, x: str = "step") -> list[Point]:
        """A field's curve over ``x`` (step, tokens or seconds), thinned.

        Validations have no tokens and seconds in their record: these are those of the training record of the same
        step, else on the line through the nearest two. Without any training record there are no points.
        """
        steps, values = self.column(kind, name)
        if x != "step":
            with np.errstate(over="ignore", invalid="ignore"):
                steps = self._places(steps, x)
            steps, values = steps[np.isfinite(steps)], values[np.isfinite(steps)]
        return thin(steps, values)

    def _places(self, steps: np.ndarray, x: str) -> np.ndarray:
        known, places = self.known("train", x)
        last = np.flatnonzero(np.diff(known, append=np.inf))  # of each step
        last = last[known[last] > 0]
        if len(last) == 0:
            return np.full(len(steps), np.nan)
        known, places = np.append(0.0, known[last]), np.append(0.0, places[last])
        right = np.clip(np.searchsorted(known, steps), 1, len(known) - 1)
        slope = (places[right] - places[right - 1]) * (steps - known[right - 1])
        return places[right - 1] + slope / (known[right] - known[right - 1])

    @property
    def finished(self) -> bool:
        """Whether the summary is that of the whole record: a resumed run has outgrown an earlier one."""
        return bool(self.summary) and (number(self.summary.get("steps")) or 0) >= self.last_step

    @property
    def unit(self) -> str:
        """What its tokens are: characters, pixels, words."""
        return str(self.summary.get("unit") or "tokens")

    def settings(self) -> dict[str, Any]:
        """Its configuration, flat: ``{"model.cell": "gru"}``; without the settings that say where it lies."""
        return {key: value for key, value in flat(self.config).items() if key not in _NOT_COMPARED}


def flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    leaves: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, dict) and value:
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def load_all(names: Iterable[str]) -> list[Run]:
    """The runs of these names, each once, labelled.

    A name is a run directory, ``latest``, or a folder of run directories (of a sweep). Raises ``UserError``.
    """
    paths: dict[Path, None] = {}
    for name in names:
        paths |= dict.fromkeys(_directories(run_dir.find(name), name))
    runs = [load(path) for path in paths]
    for run, label in zip(runs, labels(list(paths)), strict=True):
        run.label = label
    return runs


def _directories(path: Path, name: str) -> list[Path]:
    if (path / METRICS).is_file():
        return [path]
    inner = sorted((each.parent for each in path.glob(f"*/{METRICS}")), key=lambda each: _natural(each.name))
    if not inner:
        raise UserError(f"run={name} is not a run directory, nor a folder of some: there is no {METRICS} in it.")
    return inner


def _natural(name: str) -> tuple[int, str]:
    """Jobs of a sweep are numbered: 2 comes before 10."""
    return (int(name) if name.isdecimal() else -1, name)


def labels(paths: list[Path]) -> list[str]:
    """For each path its last two names, or as many more as it takes to tell it from the others."""
    depth = 2
    while True:
        candidates = ["/".join(path.parts[-depth:]).lstrip("/") for path in paths]
        if len(set(candidates)) == len(candidates):
            return candidates
        depth += 1


def load(path: Path) -> Run:
    """Read one run directory. Raises ``UserError`` where its record cannot be read."""
    summary, config = read_object(path / SUMMARY), _yaml(path / run_dir.NOTES / "config.yaml")
    try:
        return Run(path, summary, config, _overrides(path), "/".join(path.parts[-2:]))
    except OSError as error:
        raise UserError(f"{path / METRICS} cannot be read ({error.strerror}): give another run.") from None


def _yaml(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file() or path.stat().st_size > _MOST_NOTES_BYTES:
            return {}
        text = path.read_text(encoding="utf-8")
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):  # prnn writes none, and they multiply
            return {}
        values = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
        OmegaConf.to_yaml(OmegaConf.create(values))  # what can be read can be too much to be written, as a number
    except Exception:  # PyYAML's errors, OmegaConf's, or Python's: whatever stands there is no configuration
        return {}
    return {str(key): value for key, value in values.items()} if isinstance(values, dict) else {}


def _overrides(path: Path) -> list[str]:
    try:
        return run_dir.overrides(path)
    except UserError:
        return []
