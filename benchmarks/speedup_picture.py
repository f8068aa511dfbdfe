"""docs/speedup.svg, the README's picture: speedup over torch.nn, from the results under benchmarks/results.

    python -m benchmarks.speedup_picture

Bars begin at 1 (torch.nn) on a logarithmic axis; a layer slower than torch.nn has its bar to the left.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks.common.files import ROOT
from benchmarks.kernels.peers import REFERENCE

PICTURE = ROOT / "docs" / "speedup.svg"
RESULTS = ROOT / "benchmarks" / "results"
MODE = "forward+backward"
WIDTH, LABELS, RIGHT, ROW, GAP = 900, 310, 60, 22, 58
TICKS = (0.25, 0.5, 1, 2, 5, 10, 20, 40)
TITLE = "Speedup over torch.nn, forward + backward"
NOTE = "T time steps, B batch, H hidden size; median, logarithmic axis"
# The card has a background, so that the text is legible if the viewer and the page have different colour schemes.
STYLE = """\
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600; font-size: 14px }
.quiet { font-weight: 400; font-size: 12px; fill: #59636e }
.card { fill: #ffffff; stroke: #d1d9e0 }
.grid { stroke: #d1d9e0 }
.one { stroke: #1f2328 }
.faster { fill: #0072b2 }
.slower { fill: #d55e00 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc }
  .quiet { fill: #9198a1 }
  .card { fill: #0d1117; stroke: #3d444d }
  .grid { stroke: #3d444d }
  .one { stroke: #f0f6fc }
  .faster { fill: #4aa8e0 }
  .slower { fill: #e8823a }
}"""


class Panel(NamedTuple):
    """One machine: its title, (layer, median speedup) of every layer measured and found correct, and its axis."""

    title: str
    bars: list[tuple[str, float]]
    ticks: tuple[float, ...] = TICKS


def panels() -> list[Panel]:
    """The panels of the committed forward+backward results."""
    cpu = json.loads((RESULTS / "zen4-2core" / "kernels.json").read_text())
    gpu = json.loads((RESULTS / "h200" / "gpu.json").read_text())
    cores = cpu["machine"]["threads"]
    return [Panel(f"CPU: {cores} cores of a Zen 4", bars(cpu)), Panel("GPU: one H200", bars(gpu))]


def bars(record: dict[str, Any]) -> list[tuple[str, float]]:
    timed = (case for case in record["cases"] if case["mode"] == MODE and "ratios" in case)
    return [(label(case["name"]), case["ratios"][REFERENCE]["median"]) for case in timed]


def label(name: str) -> str:
    """``rnn_relu T784 B32 I1 H100`` as ``RNN T784 B32 H100``, with the dtype where it is not float32."""
    cell, *parts = name.split()
    shown = " ".join([cell.partition("_")[0].upper(), *(part for part in parts if not part.startswith("I"))])
    return shown.replace("bidirectional", "bidir.")


def render(shown: list[Panel], title: str = TITLE, note: str = NOTE) -> str:
    """The picture as SVG."""
    height = 34 + sum(GAP + ROW * len(panel.bars) for panel in shown)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">',
        f"<title>Speedup over torch.nn</title>\n<style>\n{STYLE}\n</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
        f'<text class="title" x="16" y="25">{title} <tspan class="quiet">· {note}</tspan></text>',
    ]
    top = 34.0
    for panel in shown:
        parts += _panel(panel, top)
        top += GAP + ROW * len(panel.bars)
    return "\n".join([*parts, "</svg>\n"])


def _panel(panel: Panel, top: float) -> Iterator[str]:
    bottom = top + 26 + ROW * len(panel.bars)
    yield f'<text class="title" x="16" y="{top + 19:g}">{panel.title}</text>'
    for tick in panel.ticks:
        kind = "one" if tick == 1 else "grid"
        x = _x(tick, panel.ticks)
        yield f'<path class="{kind}" d="M{x} {top + 26:g}V{bottom:g}"/>'
        yield f'<text class="quiet" x="{x}" y="{bottom + 16:g}" text-anchor="middle">{tick:g}x</text>'
    for i, (name, speedup) in enumerate(panel.bars):
        y = top + 26 + ROW * i
        left, right = sorted((_x(1, panel.ticks), _x(speedup, panel.ticks)))
        kind = "faster" if speedup >= 1 else "slower"
        yield f'<text x="{LABELS - 12}" y="{y + 15:g}" text-anchor="end">{name}</text>'
        yield f'<rect class="{kind}" x="{left}" y="{y + 4:g}" width="{right - left:.1f}" height="{ROW - 8}"/>'
        yield f'<text x="{max(right, _x(1, panel.ticks)) + 6:.1f}" y="{y + 15:g}">{_digits(speedup)}x</text>'


def _x(speedup: float, ticks: tuple[float, ...] = TICKS) -> float:
    share = math.log(speedup / ticks[0]) / math.log(ticks[-1] / ticks[0])
    return round(LABELS + share * (WIDTH - LABELS - RIGHT), 1)


def _digits(speedup: float) -> str:
    """Format with two digits, given the spread of the rounds."""
    return f"{speedup:.0f}" if speedup >= 9.95 else f"{speedup:.2g}" if speedup < 0.995 else f"{speedup:.1f}"


if __name__ == "__main__":
    PICTURE.write_text(render(panels()))
