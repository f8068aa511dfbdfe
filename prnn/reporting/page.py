"""A self-contained HTML page about one or several runs, without network access.

The charts are SVG that follows the browser's light or dark mode. The page's only script shows a tooltip; its Content
Security Policy blocks any other script and all network requests, whatever a sample contains.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from omegaconf import OmegaConf

from prnn.reporting import ranks, tables
from prnn.reporting.chart import COLORS, drawing
from prnn.reporting.panels import LOSS, chart, panels
from prnn.reporting.runs import Run
from prnn.terminal import visible
from prnn.training.observe import pictures
from prnn.training.observe.record_reader import damage

MOST_SAMPLES = 20  # per run: the first, the last, and evenly spaced ones between
_HERE = Path(__file__).resolve().parent


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: visible(value) if type(value) is str else value,  # but not our own markup
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")


def render(runs: list[Run]) -> str:
    """The page as HTML."""
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    return _template().render(
        title=", ".join(run.label for run in runs[:4]) + (f" and {len(runs) - 4} more" if len(runs) > 4 else ""),
        style=(_HERE / "page.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        runs=[_run(run, index) for index, run in enumerate(runs)],
        overview=tables.overviews(runs) if len(runs) > 1 else None,
        charts=_charts(runs),
        tests=tables.tests(runs),
        made_with=tables.made_with(runs),
        differences=tables.differences(runs),
        damaged=[damage(run.damaged, run.records.path) for run in runs if run.damaged],
    )


def write(runs: list[Run], path: Path) -> None:
    """Write the page."""
    path.write_text(render(runs), encoding="utf-8")


def _charts(runs: list[Run]) -> list[dict[str, Any]]:
    """All charts; the first loss chart also in a large format, for wide windows."""
    charts: list[dict[str, Any]] = []
    for panel in panels(runs):
        charted = chart(panel, runs)
        large = drawing(charted, 980, 560) if panel.section == LOSS and not charts else None
        drawn = drawing(charted)
        if drawn is not None:
            charts.append({"large": large, **drawn})
    return charts


def _run(run: Run, index: int) -> dict[str, Any]:
    """The page's content about a single run."""
    processes = ranks.ranks(run)
    return {
        "label": run.label,
        "color": index % COLORS,
        "again": index >= COLORS,
        "overview": tables.overview(run),
        "ranks": {
            "chart": drawing(ranks.chart(run, processes), 980, 300),
            "small_chart": drawing(ranks.chart(run, processes)),
            "sentence": ranks.sentence(processes),
            "table": tables.Table(list(ranks.COLUMNS), ranks.rows(processes)),
            "left_out": max(0, len(processes) - ranks.MOST_ROWS),
        }
        if processes
        else None,
        **_samples(run),
        "pictures": _pictures(run),
        "overrides": run.overrides,
        "config": OmegaConf.to_yaml(OmegaConf.create(run.config)) if run.config else "",
    }


def _samples(run: Run) -> dict[str, Any]:
    """Samples, newest first."""
    samples = [(each["step"], each["text"]) for each in run.of_kind("sample") if isinstance(each.get("text"), str)]
    kept = samples
    if len(samples) > MOST_SAMPLES:
        kept = [samples[index * (len(samples) - 1) // (MOST_SAMPLES - 1)] for index in range(MOST_SAMPLES)]
    shown = [{"step": step, "text": text} for step, text in reversed(kept)]
    return {"samples": shown, "samples_left_out": len(samples) - len(kept)}


def _pictures(run: Run) -> list[dict[str, str | None]]:
    """The task's pictures, the newest of each name; ``data``, its data URL, is None if it cannot be shown."""
    files: dict[str, Path | None] = {}
    for record in run.of_kind("pictures"):
        files |= dict.fromkeys(record.get("files") or {}) | pictures.existing(record, run.path)
    return [{"name": name, "data": _inline(path) if path is not None else None} for name, path in files.items()]


def _inline(path: Path) -> str | None:
    """A PNG as a data URL."""
    try:
        return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    except OSError:
        return None
