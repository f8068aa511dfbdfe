"""Reading of run directories: record, summary and configuration.

Everything but the record may be missing or damaged (a run that is in progress, was killed, or was copied in part) and
is then empty. A value that is not a finite number is None, and a gap in its curve.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from prnn.errors import UserError
from prnn.reporting import words
from prnn.training import run_dir, run_names
from prnn.training.observe import run_state
from prnn.training.observe.curves import MOST_POINTS, Curves, Point, thin
from prnn.training.observe.record_reader import Records, number, read_object
from prnn.training.run_files import CONFIG, METRICS, SUMMARY

FIGURES = "figures."  # prefix of the task's metrics
POSITIONS = ("tokens", "seconds")  # of a training record, besides its step
RANKS = "ranks"  # records of this kind hold an entry per rank, whose kind is (RANKS, rank)
_WHOLE = ("sample", "pictures", "test")  # kinds whose records are kept whole; of the others only the numbers
_MOST_POSITIONS = 300
_NOT_COMPARED = ("run_dir", "resume")  # the location of a run, not its settings


@dataclass
class Run:
    """One run; ``label`` is unique on the page.

    ``records`` re-reads the file on each pass: a long record does not fit into memory as dictionaries. ``count`` is the
    number of records, ``damaged`` that of invalid lines.
    """

    path: Path
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    label: str = ""

    def __post_init__(self) -> None:
        self.state = run_state.read(self.path)
        self.records = Records(self.path / METRICS)
        self.count, self.last_step = 0, 0
        self._curves = Curves()
        self._whole: dict[str, list[dict[str, Any]]] = {}
        self._latest: dict[Hashable, tuple[int, dict[str, Any]]] = {}
        for record in self.records:
            self.count += 1
            self.last_step = max(self.last_step, record["step"])
            self._add(record["kind"], record["step"], record)
        self.damaged = self.records.damaged
        for records in self._whole.values():
            records.sort(key=lambda each: each["step"])

    def _add(self, kind: str, step: int, record: dict[str, Any]) -> None:
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
        """The records of kind sample, pictures or test, sorted by step."""
        return self._whole.get(kind, [])

    def latest(self, kind: Hashable) -> dict[str, Any]:
        """The record of one kind with the largest step; empty if there is none."""
        return self._latest.get(kind, (0, {}))[1]

    def ranks(self) -> list[int]:
        """The ranks with records."""
        return sorted(kind[1] for kind in self._latest if isinstance(kind, tuple))

    def names(self, kind: Hashable) -> list[str]:
        """The numeric fields of one kind of record."""
        return self._curves.names(kind)

    def column(self, kind: Hashable, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values [N] of a field, sorted by step; NaN is a gap. ``figures.NAME`` is a task metric."""
        return self._curves.column(kind, name)

    def known(self, kind: Hashable, name: str) -> tuple[np.ndarray, np.ndarray]:
        """``column`` without gaps."""
        steps, values = self.column(kind, name)
        return steps[np.isfinite(values)], values[np.isfinite(values)]

    def points(self, kind: Hashable, name: str, most: int = MOST_POINTS) -> list[Point]:
        """A field's curve over the step, downsampled to about ``most`` points."""
        return thin(*self.column(kind, name), most)

    def positions(self) -> dict[str, list[float]]:
        """The tokens and the seconds of training at some of the steps, the first and the last among them.

        Only training records have them: those of any other step lie on the line between the nearest two. Empty lists
        where no training record has one.
        """
        found: dict[str, list[float]] = {}
        for name in POSITIONS:
            steps, values = self.known("train", name)
            last = np.flatnonzero(np.diff(steps, append=np.inf))  # the last record of each step
            last = last[steps[last] > 0]
            kept = last[np.unique(np.linspace(0, len(last) - 1, min(len(last), _MOST_POSITIONS)).round().astype(int))]
            found[f"{name}_steps"] = [0.0, *steps[kept].tolist()] if len(kept) else []
            found[name] = [0.0, *values[kept].tolist()] if len(kept) else []
        return found

    @property
    def finished(self) -> bool:
        """Whether the summary covers the whole record: a resumed run goes beyond an earlier summary."""
        return bool(self.summary) and (number(self.summary.get("steps")) or 0) >= self.last_step

    @property
    def ended(self) -> bool:
        """Whether nothing more is recorded, unless the run is resumed."""
        return not self.state.active and self.state.name != "empty"

    @property
    def unit(self) -> str:
        """The unit of its tokens: characters, images, words."""
        data = self.config.get("data")
        level = data.get("level") if isinstance(data, dict) else None
        return str(self.summary.get("unit") or words.unit(self.task, str(level)))

    @property
    def task(self) -> str:
        """The name of its task; empty if unknown."""
        task = self.config.get("task")
        return str(task.get("name") or "") if isinstance(task, dict) else ""

    def settings(self) -> dict[str, Any]:
        """The flat configuration: ``{"model.cell": "gru"}``; without the location of the run."""
        return {key: value for key, value in flat(self.config).items() if key not in _NOT_COMPARED}


def flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries to dotted keys."""
    result: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, dict) and value:
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def load_all(names: Iterable[str]) -> list[Run]:
    """Load the runs of these names, without duplicates, and label them.

    A name is one that ``run_dir.find`` knows, of a run or of a folder of run directories (of a sweep); or several such
    names, with commas between them. Raises ``UserError``.
    """
    return load_paths(directories(names))


def directories(names: Iterable[str]) -> list[Path]:
    """The run directories of these names. Raises ``UserError``."""
    paths: dict[Path, None] = {}
    for name in (each for given in names for each in run_dir.split(given)):
        paths |= dict.fromkeys(_directories(run_dir.find(name, folders=True), name))
    return list(paths)


def load_paths(paths: list[Path]) -> list[Run]:
    """The runs in these directories, labelled. Raises ``UserError``."""
    runs = [load(path) for path in paths]
    for run, label in zip(runs, labels(paths), strict=True):
        run.label = label
    return runs


def _directories(path: Path, name: str) -> list[Path]:
    if has_begun(path):
        return [path]
    found = run_names.discover(path)
    inner = [found[name] for name in sorted(found, key=run_names.natural) if has_begun(found[name])]
    if not inner:
        raise UserError(
            f"run={name} is not a run directory, nor a folder of some: there is no record and no configuration in it."
        )
    return inner


def has_begun(path: Path) -> bool:
    """Whether there is something of a run to report: it has its configuration before the first record."""
    return (path / METRICS).is_file() or (path / CONFIG).is_file()


def labels(paths: list[Path]) -> list[str]:
    """The last two components of each path, or as many more as are needed to make them unique."""
    depth = 2
    while True:
        names = ["/".join(path.parts[-depth:]).lstrip("/") for path in paths]
        if len(set(names)) == len(names):
            return names
        depth += 1


def load(path: Path) -> Run:
    """Read one run directory. Raises ``UserError`` if its record cannot be read."""
    summary, config = read_object(path / SUMMARY), _yaml(path / CONFIG)
    try:
        return Run(path, summary, config, _overrides(path), "/".join(path.parts[-2:]))
    except OSError as error:
        raise UserError(f"{path / METRICS} cannot be read ({error.strerror}): give another run.") from None


def load_again(run: Run) -> Run:
    """The run as it is now, under its label. Raises ``UserError`` if its record cannot be read."""
    again = load(run.path)
    again.label = run.label
    return again


def _yaml(path: Path) -> dict[str, Any]:
    try:
        config = OmegaConf.to_container(run_dir.read_yaml(path), resolve=False)
        OmegaConf.to_yaml(OmegaConf.create(config))  # fails for some readable values, as huge integers
    except Exception:  # PyYAML's errors, OmegaConf's, or Python's: the content is not a configuration
        return {}
    return {str(key): value for key, value in config.items()} if isinstance(config, dict) else {}


def _overrides(path: Path) -> list[str]:
    try:
        return run_dir.overrides(path)
    except UserError:
        return []
