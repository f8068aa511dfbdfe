"""The specification of a W&B workspace or report as plain data: the same panels as the page, in sections.

    {"project": ..., "entity": ..., "title": ..., "runs": [W&B ids], "sections": [{"title", "panels"}]}

A panel is a dictionary with its ``kind``: ``lines`` (title, x, y or pattern, from_zero), ``pictures`` (keys),
``table`` (name), ``text`` (markdown) or ``differences`` (of the runs' configurations). ``wandb_objects.py`` builds
W&B's objects.
"""

from __future__ import annotations

import re
from typing import Any

from prnn.reporting import ranks, tables
from prnn.reporting.panels import LOSS, Panel, panels
from prnn.reporting.replay import logger_config
from prnn.reporting.runs import Run
from prnn.training.observe.loggers import PICTURE_TABLE, SAMPLE_TABLE
from prnn.training.observe.wandb_setup import WANDB_ID

X_AXES = {"step": "Step", "tokens": "train/tokens", "seconds": "train/seconds"}  # as WandbLogger logs them
_LOSS_AXES = {" by step": "step", " by tokens": "tokens", " by training time": "seconds"}
_TITLE_LENGTH = 128  # W&B's limit for a report
_RANKS = (("Step time of each process", "step_ms_p50"), ("Its slowest steps", "step_ms_max"),
          ("Memory of each process", "memory_mib"), ("Waiting for data, each process", "data_wait"),
          ("Exposed communication, each process", "exposed_comm"))  # fmt: skip


def spec(runs: list[Run], project: str | None = None, entity: str | None = None) -> dict[str, Any]:
    """The specification. ``project`` and ``entity`` default to those of the first run's ``logger`` settings."""
    config = logger_config(runs[0])
    return {
        "project": project or config.project,
        "entity": entity or config.entity,
        "title": _title(runs),
        "runs": [run_id for run in runs if (run_id := _id(run)) is not None],
        "sections": [each for each in (*_curves(runs), *_processes(runs), *_texts(runs)) if each["panels"]],
    }


def _title(runs: list[Run]) -> str:
    title = ", ".join(run.label for run in runs)
    return title if len(title) <= _TITLE_LENGTH else f"{len(runs)} runs, from {runs[0].label}"[:_TITLE_LENGTH]


def _id(run: Run) -> str | None:
    """The run's W&B id; None if it never logged there."""
    try:
        return (run.path / WANDB_ID).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _curves(runs: list[Run]) -> list[dict[str, Any]]:
    sections: dict[str, list[dict[str, Any]]] = {}
    for panel in panels(runs):
        axes = _LOSS_AXES if panel.section == LOSS else {"": "step"}
        sections.setdefault(panel.section, []).extend(_lines(panel, suffix, x) for suffix, x in axes.items())
    return [{"title": title, "panels": lines} for title, lines in sections.items()]


def _lines(panel: Panel, suffix: str, x: str) -> dict[str, Any]:
    return {
        "kind": "lines",
        "title": f"{panel.title}{suffix}",
        "x": X_AXES[x],
        "y": panel.keys,
        "y_title": ", ".join(part for part in (panel.unit, panel.note) if part),
        "from_zero": panel.whole,
    }


def _processes(runs: list[Run]) -> list[dict[str, Any]]:
    """Panels with a curve per rank, selected by a pattern."""
    if not any(ranks.ranks(run) for run in runs):
        return []
    lines = [
        {
            "kind": "lines",
            "title": title,
            "x": X_AXES["step"],
            "pattern": f"^ranks/{re.escape(name)}/([0-9]+|min|p50|max)$",
            "from_zero": True,
        }
        for title, name in _RANKS
    ]
    return [{"title": "Processes", "panels": lines}]


def _texts(runs: list[Run]) -> list[dict[str, Any]]:
    names = dict.fromkeys(
        str(name) for run in runs for record in run.of_kind("pictures") for name in record.get("files") or ()
    )
    pictures = [{"kind": "pictures", "title": name, "keys": [f"pictures/{name}"]} for name in names]
    samples = [{"kind": "text", "markdown": text} for run in runs if (text := _sample(run))]
    overviews = [{"kind": "text", "markdown": _overview(run)} for run in runs]
    return [
        {"title": "Samples", "panels": [*_table(SAMPLE_TABLE, samples), *samples]},
        {"title": "Pictures", "panels": [*pictures, *_table(PICTURE_TABLE, pictures)]},
        {"title": "Settings", "panels": [{"kind": "differences"}, *overviews]},
    ]


def _table(name: str, shown: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"kind": "table", "name": name}] if shown else []


def _sample(run: Run) -> str:
    """The newest sample as markdown, in a code fence longer than any in it."""
    texts = [(each["step"], each["text"]) for each in run.of_kind("sample") if isinstance(each.get("text"), str)]
    if not texts:
        return ""
    step, text = texts[-1]
    fence = "`" * max(3, 1 + max((len(ticks) for ticks in re.findall("`+", text)), default=0))
    return f"**{run.label}**, step {step:,}\n\n{fence}text\n{text}\n{fence}"


def _overview(run: Run) -> str:
    rows = [f"| {name} | {cell.text.replace('|', ' ')} |" for name, cell in tables.overview(run).items()]
    return "\n".join([f"**{run.label}**", "", "| | |", "|---|---|", *rows])
