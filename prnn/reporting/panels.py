"""The panels of a report and the record fields they show; shared by the page and W&B."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from prnn.reporting.runs import FIGURES, Run
from prnn.reporting.words import title, words

LOSS, VALIDATION, SPEED, OPTIMISATION, MEMORY = "Loss", "Validation", "Speed", "Optimisation", "Memory"
OF_TASK = (LOSS, VALIDATION, SPEED)  # sections whose values are comparable between runs of one task only
_NOT_CURVES = {"kind", "step", "epoch", "share", "tokens", "seconds"}  # of a training record: its position, not metrics
_MOST_NATS = 700.0  # a larger loss has no finite perplexity


@dataclass(frozen=True)
class Panel:
    """One chart: the curves of its fields, each a kind of record and a name.

    ``unit`` is that of the values. ``derived`` computes them from those recorded, for a panel of the page alone.
    """

    section: str
    title: str
    fields: tuple[tuple[str, str], ...]
    note: str = ""
    unit: str = ""
    percent: bool = False
    whole: bool = False  # the y axis starts at 0
    derived: Callable[[float], float] | None = None

    @property
    def keys(self) -> list[str]:
        """The names of its fields in W&B and TensorBoard."""
        return [f"{kind}/{name.removeprefix(FIGURES)}" for kind, name in self.fields]


def _panel(section: str, name: str, note: str = "", whole: bool = False, kind: str = "train") -> Panel:
    shown = words(name.removeprefix(FIGURES))
    heading = title(name.removeprefix(FIGURES))
    return Panel(section, heading, ((kind, name),), note, shown.unit, shown.percent, whole)


PANELS = (
    Panel(LOSS, "Loss", (("train", "loss"), ("val", "loss"))),
    _panel(SPEED, "tokens_per_second", whole=True),
    _panel(SPEED, "tokens_per_second_per_device", whole=True),
    _panel(SPEED, "step_ms", "median", whole=True),
    _panel(SPEED, "data_wait", "share of time", whole=True),
    _panel(SPEED, "exposed_comm", "share of time", whole=True),
    _panel(SPEED, "tflops", whole=True),
    _panel(SPEED, "mfu", "share of the device's peak", whole=True),
    _panel(OPTIMISATION, "grad_norm", "before clipping"),
    _panel(OPTIMISATION, "lr", whole=True),
    _panel(MEMORY, "memory_mib", "peak so far", whole=True),
)


def _perplexity(nats: float) -> float:
    return math.exp(min(nats, _MOST_NATS))


# The loss is in nats per prediction. By the unit of the task's tokens: the figures that papers report.
_DERIVED = {
    "characters": ("Bits per character", lambda nats: nats / math.log(2)),
    "bytes": ("Bits per byte", lambda nats: nats / math.log(2)),
    "words": ("Perplexity per word", _perplexity),
    "target tokens": ("Perplexity per token", _perplexity),
}


def panels(runs: Iterable[Run]) -> list[Panel]:
    """The panels with data in these runs: the known ones, the task's metrics, then any other recorded field."""
    runs = list(runs)
    figures = dict.fromkeys(name for run in runs for name in run.names("val") if name.startswith(FIGURES))
    task = [_panel(VALIDATION, name, kind="val") for name in figures]
    known = {name for panel in PANELS for kind, name in panel.fields if kind == "train"} | _NOT_CURVES
    others = dict.fromkeys(name for run in runs for name in run.names("train") if name not in known)
    rest = [_panel(OPTIMISATION, name) for name in others]
    loss, *common = PANELS
    return [each for each in (loss, *task, *common, *rest) if _worth_showing(each, runs)]


def derived(runs: list[Run]) -> list[Panel]:
    """Panels of figures that follow from the validation loss, of runs of one task."""
    units = {run.unit for run in runs}
    found = _DERIVED.get(units.pop()) if len(units) == 1 else None
    if found is None:
        return []
    panel = Panel(VALIDATION, found[0], (("val", "loss"),), derived=found[1])
    return [panel] if _worth_showing(panel, runs) else []


def _worth_showing(panel: Panel, runs: list[Run]) -> bool:
    if panel.fields == (("train", "tokens_per_second_per_device"),):  # redundant for a single device
        each, together = "tokens_per_second_per_device", "tokens_per_second"
        columns = [(run.column("train", each)[1], run.column("train", together)[1]) for run in runs]
        return not all(np.array_equal(*pair, equal_nan=True) for pair in columns)
    return any(len(run.known(kind, name)[1]) for run in runs for kind, name in panel.fields)
