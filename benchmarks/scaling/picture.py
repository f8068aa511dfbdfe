"""The two plots of the scaling study: measurements with the fitted model, and predictions for GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.scaling.allreduce import FITTED
from benchmarks.scaling.alpha_beta import Link

Record = dict[str, Any]
# A colour-blind-safe palette, and marker shapes for monochrome prints.
KINDS = {"weak": ("#0072B2", "o"), "strong": ("#E69F00", "s"), "side by side": ("#009E73", "^")}
TASKS = ("#0072B2", "#D55E00", "#CC79A7", "#009E73")
KERNELS = {"persistent": ("#0072B2", "o"), "product per step": ("#D55E00", "s")}


def draw(record: Record, path: Path) -> list[Path]:
    """Write ``path`` if something was measured, and ``NAME_projection.png`` beside it; returns what was written."""
    written = []
    if "tasks" in record:
        written.append(_save(_measured(record), path))
    written.append(_save(_predicted(record["gpu"]), path.with_name(f"{path.stem}_projection{path.suffix}")))
    return written


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _measured(record: Record) -> Figure:
    figure, ((a, b), (c, d)) = plt.subplots(2, 2, figsize=(12, 9))
    _efficiency(a, record["tasks"])
    _exposed(b, record)
    _all_reduce(c, record)
    _projection(d, record)
    machine = record["machine"]
    figure.suptitle(f"{machine['processor']}, a thread for each process, torch {machine['torch']}", fontsize=10)
    figure.tight_layout(rect=(0, 0, 1, 0.98))
    return figure


def _rows(tasks: list[Record]) -> list[tuple[str, Record]]:
    return [(task["task"], row) for task in tasks for row in task["rows"] if "efficiency" in row]


def _efficiency(axes: Axes, tasks: list[Record]) -> None:
    rows = _rows(tasks)
    for x, (_, row) in enumerate(rows):
        colour, marker = KINDS[row["scaling"]]
        e = row["efficiency"]
        error = [[e["median"] - e["min"]], [e["max"] - e["median"]]]
        axes.errorbar(x, e["median"], yerr=error, fmt=marker, color=colour, capsize=4, ms=7)
        axes.annotate(f"{e['median']:.2f}", (x, e["median"]), xytext=(9, -3), textcoords="offset points", fontsize=8)
    axes.axhline(1, color="0.3", lw=1, label="ideal")
    axes.axhline(tasks[0]["goal"], color="0.5", lw=1, ls=":", label="target of weak scaling")
    axes.legend(loc="lower left", fontsize=8, frameon=False)
    _names(axes, rows)
    axes.set_xlim(-0.5, len(rows) - 0.5)
    axes.set_ylim(0, max(1.1, *(row["efficiency"]["max"] * 1.03 for _, row in rows)))
    _dress(axes, "Efficiency, measured (median, smallest to largest)")


def _names(axes: Axes, rows: list[tuple[str, Record]]) -> None:
    crowded = "\n(more than cores)"
    axes.set_xticks(
        range(len(rows)),
        [f"{t}\n{r['scaling']}, {r['processes']}{crowded if r['oversubscribed'] else ''}" for t, r in rows],
        fontsize=7,
    )


def _exposed(axes: Axes, record: Record) -> None:
    """Bars of the measurements, each with a line at the fitted model."""
    rows = [(task, row) for task in record["tasks"] for row in task["rows"] if row["exposed_ms"] is not None]
    link = Link(record["fit"]["alpha_us"] / 1e6, record["fit"]["beta_ns"] / 1e9)
    for x, (task, row) in enumerate(rows):
        axes.bar(x, row["exposed_ms"], 0.55, color=KINDS[row["scaling"]][0])
        share = f"{row['exposed_ms']:.2g} ms\n{row['exposed_comm']['median']:.1%}"
        axes.annotate(share, (x, row["exposed_ms"]), ha="center", va="bottom", fontsize=8)
        expected = 1e3 * link.ring(row["processes"], task["gradient_bytes"])
        axes.plot(
            [x - 0.35, x + 0.35], [expected] * 2, color="black", lw=2, label=None if x else "all-reduce by the fit"
        )
    _names(axes, [(task["task"], row) for task, row in rows])
    axes.set_xlim(-0.6, len(rows) - 0.4)
    axes.margins(y=0.2)
    axes.set_ylabel("ms a step")
    axes.legend(fontsize=8, frameon=False)
    _dress(axes, "Exposed communication, measured, with waiting")


def _all_reduce(axes: Axes, record: Record) -> None:
    link = Link(record["fit"]["alpha_us"] / 1e6, record["fit"]["beta_ns"] / 1e9)
    among = sorted({p["processes"] for p in record["points"]})
    crowded = {p["processes"] for p in record["points"] if p["oversubscribed"]}
    for n, colour in zip(among, TASKS, strict=False):
        for p in (p for p in record["points"] if p["processes"] == n):
            ms = p["milliseconds"]
            used = n == 2 and p["bytes"] in FITTED
            error = [[ms["median"] - ms["min"]], [ms["max"] - ms["median"]]]
            face = colour if used else "white"
            axes.errorbar(p["bytes"], ms["median"], yerr=error, fmt="o", color=colour, mfc=face, ms=6, capsize=2, lw=1)
        sizes = np.geomspace(min(p["bytes"] for p in record["points"]), max(p["bytes"] for p in record["points"]), 60)
        note = ", more than cores" if n in crowded else ""
        label = f"{n} processes{note}"
        axes.plot(
            sizes, [1e3 * link.ring(n, s) for s in sizes], color=colour, ls="--" if n in crowded else "-", label=label
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("bytes")
    axes.set_ylabel("ms")
    axes.legend(fontsize=8, frameon=False)
    _dress(axes, "gloo's all-reduce: measured points (filled: fitted, hollow: held out); lines: model")


def _projection(axes: Axes, record: Record) -> None:
    for task, colour in zip(record["tasks"], TASKS, strict=False):
        counts = [row["processes"] for row in task["projection"]]
        for name, style in (("ring", "-"), ("tree", "--")):
            values = [row[name]["efficiency"] for row in task["projection"]]
            axes.plot(counts, values, style, color=colour, lw=1.3, label=f"{task['task']}, {name}: projected")
        points = [(row["processes"], row["efficiency"]) for row in task["rows"] if row["scaling"] == "weak"]
        for x, e in [(1, {"median": 1, "min": 1, "max": 1}), *points]:
            error = [[e["median"] - e["min"]], [e["max"] - e["median"]]]
            label = f"{task['task']}: measured" if x == 1 else None
            axes.errorbar(x, e["median"], yerr=error, fmt="o", color=colour, capsize=4, ms=7, label=label)
    axes.axhline(1, color="0.3", lw=1)
    axes.set_xscale("log", base=2)
    axes.set_ylim(0, 1.15)
    axes.set_xlabel("processes, each with a core and a link of its own")
    axes.legend(fontsize=7, frameon=False, ncols=2, loc="lower left")
    _dress(axes, "Weak scaling by the fitted model: projected")


def _predicted(gpu: Record) -> Figure:
    nets = gpu["nets"]
    figure, panels = plt.subplots(len(nets), 3, figsize=(15, 4.6 * len(nets)), squeeze=False)
    for (a, b, c), net in zip(panels, nets, strict=True):
        _by_batch(a, net)
        _strong(b, net)
        _weak(c, net)
    figure.suptitle(
        "Predicted for nodes of 8 H200 over InfiniBand, from data sheets and cost models; nothing here is measured",
        fontsize=11,
    )
    figure.tight_layout(rect=(0, 0, 1, 0.98))
    return figure


def _by_batch(axes: Axes, net: Record) -> None:
    """Both ways together; a band for how a launch is counted."""
    batches, launches = net["batches"], list(net["product_us_by_launch"].values())
    colour, marker = KERNELS["persistent"]
    axes.plot(batches, [sum(us) for us in net["persistent_us"]], f"-{marker}", color=colour, label="persistent")
    colour, marker = KERNELS["product per step"]
    low, middle, high = ([2 * us for us in each] for each in launches)
    axes.plot(batches, middle, f"-{marker}", color=colour, label="product per step")
    us = list(net["product_us_by_launch"])
    axes.fill_between(batches, low, high, color=colour, alpha=0.15, label=f"a launch of {us[0]} to {us[-1]} us")
    axes.axvline(4, color="0.5", lw=1, ls=":")
    _logarithmic(axes, batches)
    axes.set_ylim(1)
    axes.set_xlabel("sequences of one GPU")
    axes.set_ylabel("us a time step of a layer, forward + backward")
    axes.legend(fontsize=8, frameon=False)
    _dress(axes, f"{net['net']}: predicted")


def _strong(axes: Axes, net: Record) -> None:
    best = max(row["sequences_per_second"] / row["gpus"] for rows in net["strong"].values() for row in rows)
    for kind, rows in net["strong"].items():
        colour, marker = KERNELS[kind]
        counts = [row["gpus"] for row in rows]
        axes.plot(counts, [row["sequences_per_second"] for row in rows], f"-{marker}", color=colour, label=kind)
    axes.plot(counts, [best * n for n in counts], color="0.3", lw=1, label="ideal: the cheapest GPU second")
    for row in net["strong"]["persistent"]:
        where = (row["gpus"], row["sequences_per_second"])
        axes.annotate(f"{row['batch']} each", where, xytext=(3, -13), textcoords="offset points", fontsize=7)
    _logarithmic(axes, counts)
    axes.set_ylim(bottom=0.7 * min(row["sequences_per_second"] for rows in net["strong"].values() for row in rows))
    axes.set_xlabel("GPUs")
    axes.set_ylabel("sequences a second")
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    _dress(axes, f"Strong scaling at {net['global_batch']:,} sequences: predicted")


def _weak(axes: Axes, net: Record) -> None:
    lowest = 1.0
    for kind, by_batch in net["weak"].items():
        for (batch, rows), style in zip(by_batch.items(), ("-", "--"), strict=True):
            values = [row["efficiency"] for row in rows]
            lowest = min(lowest, *values)
            axes.plot([r["gpus"] for r in rows], values, style, color=KERNELS[kind][0], label=f"{kind}, {batch} each")
    axes.axhline(1, color="0.3", lw=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 8, 64, 1024], ["1", "8", "64", "1,024"])
    axes.set_ylim(min(0.9, lowest - 0.02), 1.01)
    axes.set_xlabel("GPUs")
    axes.set_ylabel("efficiency (the axis does not begin at 0)")
    axes.legend(fontsize=8, frameon=False, loc="lower left")
    _dress(axes, "Weak scaling: predicted")


def _logarithmic(axes: Axes, ticks: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
