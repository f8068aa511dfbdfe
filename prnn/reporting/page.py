"""A self-contained HTML page about one or several runs, without network access.

uPlot draws the charts. The page's Content Security Policy allows its own scripts alone and no network request, whatever
a sample contains; a watched page may ask the server it came from.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from omegaconf import OmegaConf

from prnn.reporting import charts, ranks, tables
from prnn.reporting.runs import Run
from prnn.terminal import visible
from prnn.training.observe import pictures
from prnn.training.observe.record_reader import damage

MOST_NAMED = 3  # runs in the title
MOST_SAMPLES = 20  # per run: the first, the last, and evenly spaced ones between
UPLOT = "uplot/uPlot.iife.min.js"
_BROWSER = Path(__file__).resolve().parent / "browser"
_SCRIPTS = ("numbers.js", "state.js", "curves.js", "chart.js", "drawing.js", "tooltip.js", "gestures.js", "groups.js",
            "tables.js", "watch.js", "page.js")  # fmt: skip


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(_BROWSER),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: visible(value) if type(value) is str else value,  # but not our own markup
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment.get_template("page.html")


@cache
def _asset(*names: str) -> str:
    return "".join((_BROWSER / name).read_text(encoding="utf-8") for name in names)


def _script() -> str:
    """The page's own script: its files share one scope."""
    return f'"use strict";\n(() => {{\n{_asset(*_SCRIPTS)}}})();\n'


def policy(watched: bool) -> str:
    """The page's Content Security Policy."""
    digests = (base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in (_asset(UPLOT), _script()))
    scripts = " ".join(f"'sha256-{digest}'" for digest in digests)
    rules = ["default-src 'none'", "img-src data:", "style-src 'unsafe-inline'", f"script-src {scripts}",
             "base-uri 'none'", "form-action 'none'", *(["connect-src 'self'"] if watched else [])]  # fmt: skip
    return "; ".join(rules)


def render(runs: list[Run], watch_seconds: float = 0) -> str:
    """The page as HTML; with ``watch_seconds``, it asks its server for a newer one so often."""
    several = len(runs) > 1
    return _template().render(
        title=", ".join(run.label for run in runs) if len(runs) <= MOST_NAMED else f"{len(runs)} runs",
        policy=policy(watched=watch_seconds > 0),
        watch_seconds=watch_seconds,
        style=_asset("uplot/uPlot.min.css", "page.css"),
        uplot=_asset(UPLOT),
        script=_script(),
        data=charts.data(runs),
        runs=[_run(run, index) for index, run in enumerate(runs)],
        overview=tables.overviews(runs) if several else None,
        details=tables.details(runs) if several else None,
        tests=tables.tests(runs),
        made_with=tables.made_with(runs),
        differences=tables.differences(runs),
        damaged=[damage(run.damaged, run.records.path) for run in runs if run.damaged],
    )


def write(runs: list[Run], path: Path) -> None:
    """Write the page."""
    path.write_text(render(runs), encoding="utf-8")


def _run(run: Run, index: int) -> dict[str, Any]:
    """The page's content about a single run."""
    processes = ranks.ranks(run)
    return {
        "label": run.label,
        "index": index,
        "color": index % charts.COLORS,
        "again": index >= charts.COLORS,
        "overview": tables.overview(run),
        "ranks": {
            "sentence": ranks.sentence(processes),
            "table": ranks.table(processes),
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
