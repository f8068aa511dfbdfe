"""A run directory, read: its record, its summary, its configuration.

Everything but the record may be missing or damaged (a run that goes on, one that was killed, one that was copied in
part); it is then empty. A value that is no finite number is None, and a gap in its curve.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from prnn.errors import UserError
from prnn.training import run_dir
from prnn.training.logging import METRICS, read_records
from prnn.training.report import SUMMARY

Point = tuple[float, float | None]  # x, y; None is a gap
FIGURES = "figures."  # before a name: it is a figure of the task's
_LARGEST = 1e300  # a number beyond it is taken for no number: differences of such are not finite
_NOT_COMPARED = ("run_dir", "resume")  # where a run lies, not what it is


@dataclass
class Run:
    """One run; ``label`` is unlike every other's on the page."""

    path: Path
    records: list[dict[str, Any]]
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    label: str = ""

    def __post_init__(self) -> None:
        self._by_kind: dict[str, list[dict[str, Any]]] = {}
        self._places: dict[str, list[tuple[int, float]]] = {}
        for record in sorted(self.records, key=lambda each: each["step"]):
            self._by_kind.setdefault(record["kind"], []).append(record)

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """Its records of one kind, by step."""
        return self._by_kind.get(kind, [])

    def points(self, kind: str, name: str, x: str = "step") -> list[Point]:
        """A figure's curve over ``x`` (step, tokens or seconds); ``figures.NAME`` is a figure of the task's."""
        within, inner = name.startswith(FIGURES), name.removeprefix(FIGURES)
        found = []
        for record in self.of_kind(kind):
            holder = record.get("figures") if within else record
            if isinstance(holder, dict) and inner in holder:
                found.append((record["step"], number(holder[inner])))
        if x == "step":
            return [(float(step), value) for step, value in found]
        places = [(self.at(step, x), value) for step, value in found]
        return [(place, value) for place, value in places if place is not None]

    def at(self, step: int, x: str) -> float | None:
        """The tokens or the seconds of training at ``step``: those recorded, else on the line through the nearest two.

        Validations have neither in their record. None where no training record tells.
        """
        known = self._known(x)
        if not known:
            return None
        right = min(max(bisect_left(known, step, key=lambda each: each[0]), 1), len(known) - 1)
        (step_0, value_0), (step_1, value_1) = known[right - 1], known[right]
        return value_0 + (value_1 - value_0) * (step - step_0) / (step_1 - step_0)

    def _known(self, x: str) -> list[tuple[int, float]]:
        """(step, tokens or seconds) of the training records, from (0, 0) on, one for each step."""
        if x not in self._places:
            pairs = ((record["step"], number(record.get(x))) for record in self.of_kind("train"))
            found = {step: value for step, value in pairs if step > 0 and value is not None}
            self._places[x] = [(0, 0.0), *found.items()] if found else []
        return self._places[x]

    @property
    def last_step(self) -> int:
        """The largest step in the record; 0 without one."""
        return max((record["step"] for record in self.records), default=0)

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


def number(value: Any) -> float | None:
    """A finite number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if abs(value) <= _LARGEST else None  # false for NaN


def flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


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
        found = ["/".join(path.parts[-depth:]).lstrip("/") for path in paths]
        if len(set(found)) == len(found):
            return found
        depth += 1


def load(path: Path) -> Run:
    """Read one run directory. Raises ``UserError`` where its record cannot be read."""
    try:
        records = read_records(path / METRICS)
    except OSError as error:
        raise UserError(f"{path / METRICS} cannot be read ({error.strerror}): give another run.") from None
    return Run(
        path,
        [each for each in records if _is_record(each)],
        _json(path / SUMMARY),
        _yaml(path / run_dir.NOTES / "config.yaml"),
        _overrides(path),
        "/".join(path.parts[-2:]),
    )


def _is_record(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("kind"), str) and type(value.get("step")) is int


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _yaml(path: Path) -> dict[str, Any]:
    try:
        found = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception:  # PyYAML's errors, OmegaConf's, or Python's: whatever stands there is no configuration
        return {}
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}


def _overrides(path: Path) -> list[str]:
    try:
        return run_dir.overrides(path)
    except UserError:
        return []
