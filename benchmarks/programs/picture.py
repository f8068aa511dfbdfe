"""docs/programs.svg: speedup of third-party programs, from the results under benchmarks/results.

python -m benchmarks.programs.picture
"""

from __future__ import annotations

import json

from benchmarks import speedup_picture
from benchmarks.common import files
from benchmarks.common.files import ROOT
from benchmarks.speedup_picture import Panel

PICTURE = ROOT / "docs" / "programs.svg"
RESULTS = ROOT / "benchmarks" / "results" / "zen3-2core" / "programs.json"
TICKS = (0.5, 1.0, 2.0, 4.0)


def panel() -> Panel:
    """Every program that was measured and found correct, the fastest first."""
    record = json.loads(RESULTS.read_text())
    bars = [(case["name"], case["ratio"]["median"]) for case in record["cases"] if "ratio" in case]
    bars.sort(key=lambda bar: bar[1], reverse=True)
    cores = record["machine"]["threads"]
    return Panel(f"CPU without AVX-512: {cores} core{'s' if cores > 1 else ''} of a Zen 3", bars, TICKS)


def render() -> str:
    return speedup_picture.render(
        [panel()], "Speedup of third-party programs", "their whole steps, with prnn's layers over torch.nn's; median"
    )


if __name__ == "__main__":
    files.write(PICTURE, render())
