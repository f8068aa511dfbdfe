"""The panels of a report and the record fields they show; shared by the page and W&B."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from prnn.reporting.chart import Chart, Curve
from prnn.reporting.runs import FIGURES, Run

LOSS, SPEED, TRAINING, TASK = "Loss", "Speed and memory", "Training", "Validation"
_NOT_CURVES = {"kind", "step", "epoch", "tokens", "seconds"}  # of a training record: its position, not metrics


@dataclass(frozen=True)
class Panel:
    """One chart: the curves of its fields, each a kind of record and a name, over ``x``."""

    section: str
    title: str
    fields: tuple[tuple[str, str], ...]
    x: str = "step"  # step, tokens or seconds
    note: str = ""
    percent: bool = False
    whole: bool = False  # the y axis starts at 0

    @property
    def keys(self) -> list[str]:
        """The names of its fields in W&B and TensorBoard."""
        return [f"{kind}/{name.removeprefix(FIGURES)}" for kind, name in self.fields]


_LOSSES = (("train", "loss"), ("val", "loss"))


def _train(section: str, title: str, name: str, note: str = "", percent: bool = False, whole: bool = False) -> Panel:
    return Panel(section, title, (("train", name),), note=note, percent=percent, whole=whole)


PANELS = (
    Panel(LOSS, "Loss by step", _LOSSES),
    Panel(LOSS, "Loss by tokens", _LOSSES, x="tokens"),
    Panel(LOSS, "Loss by training time", _LOSSES, x="seconds"),
    _train(SPEED, "Throughput", "tokens_per_second", "per second, all processes together", whole=True),
    _train(SPEED, "Throughput per device", "tokens_per_second_per_device", "per second", whole=True),
    _train(SPEED, "Step time", "step_ms", "milliseconds, median over each record's steps", whole=True),
    _train(SPEED, "Waiting for data", "data_wait", "share of the time", percent=True, whole=True),
    _train(SPEED, "Exposed communication", "exposed_comm", "share of the time", percent=True, whole=True),
    _train(SPEED, "Arithmetic", "tflops", "TFLOP/s", whole=True),
    _train(SPEED, "Model FLOP utilisation", "mfu", "share of the device's peak", percent=True, whole=True),
    _train(SPEED, "Memory", "memory_mib", "MiB, peak so far", whole=True),
    _train(TRAINING, "Gradient norm", "grad_norm", "before clipping, mean of each record's steps"),
    _train(TRAINING, "Learning rate", "lr", whole=True),
)


def panels(runs: Iterable[Run]) -> list[Panel]:
    """The charts with data in these runs: the known ones, then each task metric, then any other recorded field."""
    runs = list(runs)
    figures = dict.fromkeys(name for run in runs for name in run.names("val") if name.startswith(FIGURES))
    task = [Panel(TASK, name.removeprefix(FIGURES), (("val", name),)) for name in figures]
    known = {name for panel in PANELS for kind, name in panel.fields if kind == "train"} | _NOT_CURVES
    others = dict.fromkeys(name for run in runs for name in run.names("train"))
    rest = [_train(TRAINING, name, name) for name in others if name not in known]
    return [each for each in (*PANELS, *task, *rest) if _worth_showing(each, runs)]


def _worth_showing(panel: Panel, runs: list[Run]) -> bool:
    if panel.fields == (("train", "tokens_per_second_per_device"),):  # redundant for a single device
        each, together = "tokens_per_second_per_device", "tokens_per_second"
        columns = [(run.column("train", each)[1], run.column("train", together)[1]) for run in runs]
        return not all(np.array_equal(*pair, equal_nan=True) for pair in columns)
    return any(y is not None for run in runs for kind, name in panel.fields for _, y in run.points(kind, name, panel.x))


def chart(panel: Panel, runs: list[Run]) -> Chart:
    """The chart of a panel over these runs. One run: a colour per field; several: a colour per run."""
    curves = []
    for index, run in enumerate(runs):
        for nth, (kind, name) in enumerate(panel.fields):
            split = {"train": "training", "val": "validation"}[kind] if len(panel.fields) > 1 else ""
            label = " · ".join(part for part in (run.label if len(runs) > 1 else "", split) if part)
            style = "fine" if len(panel.fields) > 1 and kind == "train" else "bold"
            color = nth if len(runs) == 1 else index
            curves.append(Curve(label or panel.title, run.points(kind, name, panel.x), color, style))
    x_label, scale = x_label_of(panel.x, runs)
    note = panel.note
    if len(runs) > 1 and len(panel.fields) > 1:
        note = "thin: training; thick: validation"
    return Chart(panel.title, x_label, curves, note, panel.percent, panel.whole, scale)


def x_label_of(x: str, runs: list[Run]) -> tuple[str, float]:
    """The label of an x axis, and the divisor of its values."""
    if x == "seconds":
        longest = max((point[0] for run in runs for point in run.points("train", "loss", "seconds")), default=0.0)
        unit, scale = ("hours", 3600.0) if longest >= 10800 else ("minutes", 60.0) if longest >= 300 else ("seconds", 1)
        return f"{unit} of training", scale
    if x == "tokens":
        units = {run.unit for run in runs}
        return (units.pop() if len(units) == 1 else "tokens"), 1.0
    return "optimizer step", 1.0
