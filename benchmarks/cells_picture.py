"""docs/cells.svg, the picture of docs/cells.md: validation curves of cells written in Python, beside built-in ones.

python -m benchmarks.cells_picture                   # from benchmarks/results/cells_in_training.json
python -m benchmarks.cells_picture runs/reproduce    # that file first, from the runs of benchmarks.reproduce
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.common import files
from benchmarks.common.files import ROOT
from prnn.training.observe.record_reader import read_records

PICTURE = ROOT / "docs" / "cells.svg"
CURVES = ROOT / "benchmarks" / "results" / "cells_in_training.json"
SEED = 1
Curve = list[list[float]]  # of [step, figure]


class Panel(NamedTuple):
    """A task: its title, the figure of a validation, the factor and range it is shown in, and a label for each row of
    ``benchmarks.reproduce``, those of cells written in Python first.
    """

    title: str
    figure: str
    scale: float
    ticks: tuple[float, ...]
    labels: dict[str, str]
    python: int  # how many of them are written in Python


PANELS = (
    Panel(
        "Decisions: right choices, %", "accuracy", 100, (50, 60, 70, 80, 90),
        {"decision_ctrnn": "rate network", "decision_rnn": "RNN (tanh)", "decision_gru": "GRU"}, 1,
    ),
    Panel(
        "MNIST 7x7: test images, % right", "accuracy", 100, (0, 20, 40, 60, 80, 100),
        {"alif_7x7": "ALIF", "lif_7x7": "LIF", "irnn_7x7_10": "IRNN"}, 2,
    ),
    Panel(
        "Tiny Shakespeare: nats per character", "loss", 1, (1.4, 1.6, 1.8, 2.0, 2.2, 2.4),
        {"slstm_char": "sLSTM, 4 heads", "slstm_char_lstm": "LSTM"}, 1,
    ),
)  # fmt: skip
WIDTH, HEIGHT, LEFT, TOP, SIDE, TALL = 900, 300, 44, 60, 236, 200
COLUMN = WIDTH / len(PANELS)
STYLE = """\
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600; font-size: 13px }
.quiet { font-size: 11px; fill: #59636e }
.card { fill: #ffffff; stroke: #d1d9e0 }
.grid { stroke: #d1d9e0 }
.curve { fill: none; stroke-width: 2 }
.python0 { stroke: #0072b2 } .python1 { stroke: #009e73 } .built0 { stroke: #d55e00 } .built1 { stroke: #b8860b }
.built0, .built1 { stroke-dasharray: 5 3 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc }
  .quiet { fill: #9198a1 }
  .card { fill: #0d1117; stroke: #3d444d }
  .grid { stroke: #3d444d }
  .python0 { stroke: #4aa8e0 } .python1 { stroke: #3fc49a } .built0 { stroke: #e8823a } .built1 { stroke: #d9b64a }
}"""


def collect(runs: Path) -> dict[str, Curve]:
    """The curve of each row, from its newest finished run under ``runs``."""
    found = {}
    for panel in PANELS:
        for row in panel.labels:
            finished = list(runs.glob(f"{row}/*/seed-{SEED}/summary.json"))
            if not finished:
                raise SystemExit(f"cells_picture: {runs} has no finished run {row}/*/seed-{SEED}")
            newest = max(finished, key=lambda path: path.stat().st_mtime)
            validated = [each for each in read_records(newest.with_name("metrics.jsonl")) if each["kind"] == "val"]
            found[row] = [[each["step"], {**each, **each.get("figures", {})}[panel.figure]] for each in validated]
    return found


def render(curves: dict[str, Curve]) -> str:
    """The picture as SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">',
        f"<title>Cells written in Python in training</title>\n<style>\n{STYLE}\n</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="8"/>',
    ]
    for number, panel in enumerate(PANELS):
        parts += _panel(panel, {row: curves[row] for row in panel.labels}, COLUMN * number + LEFT)
    return "\n".join([*parts, "</svg>\n"])


def _panel(panel: Panel, curves: dict[str, Curve], left: float) -> Iterator[str]:
    steps = max(step for curve in curves.values() for step, _ in curve)
    yield f'<text class="title" x="{left - 28:g}" y="24">{panel.title}</text>'
    for tick in panel.ticks:
        y = _y(panel, tick)
        yield f'<path class="grid" d="M{left:g} {y}H{left + SIDE:g}"/>'
        yield f'<text class="quiet" x="{left - 6:g}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
    yield f'<text class="quiet" x="{left:g}" y="{TOP + TALL + 16}">0</text>'
    yield f'<text class="quiet" x="{left + SIDE:g}" y="{TOP + TALL + 16}" text-anchor="end">{steps:,.0f} steps</text>'
    x = left
    for number, (row, curve) in enumerate(curves.items()):
        built = number - panel.python
        kind = f"python{number}" if built < 0 else f"built{built}"
        points = [(left + SIDE * step / steps, _y(panel, figure * panel.scale)) for step, figure in curve]
        yield f'<path class="curve {kind}" d="M{"L".join(f"{px:.1f} {py}" for px, py in points)}"/>'
        yield f'<path class="curve {kind}" d="M{x:g} 42h18"/><text x="{x + 22:g}" y="46">{panel.labels[row]}</text>'
        x += 34 + 6.6 * len(panel.labels[row])


def _y(panel: Panel, figure: float) -> float:
    low, high = panel.ticks[0], panel.ticks[-1]
    share = (figure - low) / (high - low)
    return round(TOP + TALL * (1 - share), 1)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="?", type=Path, help="folder of runs, whose curves are recorded first")
    options = parser.parse_args(arguments)
    if options.runs:
        files.write(CURVES, json.dumps(collect(options.runs), indent=None) + "\n")
    files.write(PICTURE, render(json.loads(CURVES.read_text())))


if __name__ == "__main__":
    main()
