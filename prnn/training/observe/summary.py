"""The summary of a finished run: ``summary.json`` and ``loss.png``."""

from __future__ import annotations

import json
import logging
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prnn.terminal import visible
from prnn.training import disk
from prnn.training.observe import pictures
from prnn.training.observe.curves import Curves, thin
from prnn.training.observe.record_reader import Records
from prnn.training.observe.record_writer import jsonable
from prnn.training.run_files import METRICS, SUMMARY

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLOT = "loss"  # a PNG
_log = logging.getLogger(__name__)


def write_summary(run_dir: Path, figures: dict[str, Any]) -> None:
    """Write ``summary.json``: ``figures``, the package versions and the git commit."""
    commit = git_commit()
    summary = {**figures, "versions": versions(), **({"git_commit": commit} if commit else {})}
    try:
        disk.replace(run_dir / SUMMARY, (json.dumps(jsonable(summary), indent=1) + "\n").encode())
    except OSError as error:
        _log.warning("%s cannot be written (%s)", run_dir / SUMMARY, error.strerror)


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the main packages that are installed."""
    installed = {"python": platform.python_version()}
    for name in ("prnn", "torch", "numpy", "hydra-core"):
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def git_commit() -> str | None:
    """The commit of the checkout this package runs from, with ``+`` if it has uncommitted changes; None elsewhere."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():  # an installed package may be inside an unrelated repository
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()


def plot_loss(run_dir: Path, title: str) -> None:
    """Draw training and validation loss against the step into ``loss.png``."""
    pictures.save(run_dir, PLOT, lambda: _loss_plot(run_dir / METRICS, title))


def _loss_plot(path: Path, title: str) -> Figure:
    from matplotlib.figure import Figure

    curves = Curves()
    for record in Records(path):
        curves.add(record["kind"], record["step"], {"loss": record.get("loss")})
    figure = Figure(figsize=(7, 4.2))
    axes = figure.subplots()
    lowest = []
    for kind, label, style in (("train", "training", {"linewidth": 1.2}), ("val", "validation", {"marker": "o"})):
        points = [point for point in thin(*curves.column(kind, "loss")) if point[1] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, markersize=4, **style)
            lowest.append(f"{label} {points[-1][1]:.3f}")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss per prediction")
    axes.set_title(visible(title) + (f"\nlast: {', '.join(lowest)}" if lowest else ""), fontsize=10)
    axes.grid(alpha=0.3)
    if lowest:
        axes.legend()
    figure.tight_layout()
    return figure
