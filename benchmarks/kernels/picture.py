"""The plot of report.py: speedup over torch.nn for each case."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from benchmarks.kernels.peers import OURS, REFERENCE

# A colour-blind-safe palette, and marker shapes for monochrome prints.
LOOKS = {"jax": ("#E69F00", "s"), "onnxruntime": ("#009E73", "^"), "torch.compile": ("#CC79A7", "v")}
OUR_COLOUR, MISSED_COLOUR = "#0072B2", "#B03000"
TITLES = {"forward+backward": "forward + backward", "forward": "forward alone"}


def draw(record: dict[str, Any], path: Path) -> None:
    """One panel per mode, one row per case; the axis is logarithmic, torch.nn is at 1."""
    modes = {mode: [c for c in record["cases"] if c["mode"] == mode and "ratios" in c] for mode in TITLES}
    modes = {mode: cases for mode, cases in modes.items() if cases}
    names = list(dict.fromkeys(case["name"] for cases in modes.values() for case in cases))
    if not names:
        raise SystemExit("no case has a speed to draw")
    height = 1.9 + 0.42 * len(names)
    figure, panels = plt.subplots(1, len(modes), figsize=(3.0 + 5.0 * len(modes), height), sharey=True, squeeze=False)
    for axes, (mode, cases) in zip(panels[0], modes.items(), strict=True):
        for case in cases:
            _row(axes, len(names) - 1 - names.index(case["name"]), case)
        _dress(axes, names, TITLES[mode])
    shown = {peer for cases in modes.values() for case in cases for peer in case["ratios"]}
    figure.legend(handles=_legend(shown), loc="lower center", ncols=5, frameon=False, fontsize=9)
    machine = record["machine"]
    where = f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}, {record['rounds']} rounds"
    figure.suptitle(f"Times torch.nn's speed\n{where}", fontsize=10)
    figure.tight_layout(rect=(0, 0.35 / height, 1, 1))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _row(axes: Axes, y: int, case: dict[str, Any]) -> None:
    """prnn's median with its spread, the other peers' speed over torch.nn a little below, the target, and figures.

    The figures stand in a column beside the panel, where no mark can lie over them.
    """
    ratio = case["ratios"][REFERENCE]
    spread = [[ratio["median"] - ratio["min"]], [ratio["max"] - ratio["median"]]]
    axes.errorbar(ratio["median"], y + 0.12, xerr=spread, fmt="o", color=OUR_COLOUR, ms=6, capsize=3, lw=1.5, zorder=4)
    text, colour = f"{ratio['median']:.3g}x", OUR_COLOUR
    target = case.get("targets", {}).get(REFERENCE)
    if target:
        axes.plot([target, target], [y - 0.22, y + 0.4], color="black", lw=2, zorder=3)
        text += f" (≥ {target:g})"
        colour = OUR_COLOUR if case["met"].get(REFERENCE) else MISSED_COLOUR
    axes.annotate(text, (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=8, color=colour)
    took = case["milliseconds"]
    for peer, (colour, marker) in LOOKS.items():
        if peer in took:
            speed = took[REFERENCE]["median"] / took[peer]["median"]
            axes.plot(speed, y - 0.2, marker, color=colour, ms=5.5, mec="white", mew=0.6, zorder=3)


def _dress(axes: Axes, names: list[str], title: str) -> None:
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.5) / 1.15, max(high, 2.0) * 1.05)
    low, high = axes.get_xlim()
    ticks = [t for t in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if low <= t <= high]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.axvline(1.0, color="0.4", lw=1, zorder=1)
    axes.set_yticks(range(len(names)), names[::-1], fontsize=9)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(axis="both", color="0.9", zorder=0)
    axes.set_axisbelow(True)
    axes.set_title(title, fontsize=10)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _legend(shown: set[str]) -> list[Line2D]:
    handles = [Line2D([], [], marker="o", color=OUR_COLOUR, lw=1.5, label=f"{OURS}, smallest to largest")]
    handles.append(Line2D([], [], color="black", marker="|", ms=10, mew=2, lw=0, label="target (red: missed)"))
    for peer, (colour, marker) in LOOKS.items():
        if peer in shown:
            handles.append(Line2D([], [], marker=marker, color=colour, lw=0, ms=6, label=peer))
    return handles
