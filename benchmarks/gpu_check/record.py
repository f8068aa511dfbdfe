"""The record of a GPU check, check.json: written atomically after every result, so that it is valid at all times.

commit, torch, cuda, gpu, nvidia_smi, device     provenance
parts    {part: {"status", "seconds", ...}}
results  {part: {item: {"status", ...}}}     of the parts that consist of items
running  {part: [item, ...]}                 items that were started and have no result yet
measured [...]                               results of measure and plans, the input of benchmarks.calibrate
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.common import files
from benchmarks.common.files import ROOT
from benchmarks.gpu_check.workers import Result
from prnn import parent_death

FINAL = ("passed", "wrong", "measured", "does not fit", "skipped", "error", "hung", "died")  # --resume leaves them
WRITE_SECONDS = 0.25
BAD = ("wrong", "error", "hung", "died", "out of time", "not run")


class Record:
    """The results, written to disk within WRITE_SECONDS of each addition. ``clocks`` samples the SM clock."""

    def __init__(self, out: Path, resume: bool = False) -> None:
        self.path, self._lock = out / "check.json", threading.Lock()
        self.content: dict[str, Any] = json.loads(self.path.read_text()) if resume else {}
        self.content.setdefault("parts", {})
        self.content.setdefault("results", {})
        self.content["running"] = {}
        self.clocks = Clocks()
        self._changed = threading.Event()
        threading.Thread(target=self._keep_writing, daemon=True).start()

    def _keep_writing(self) -> None:
        while self._changed.wait():
            self._changed.clear()
            try:
                self.write()
            except OSError as error:  # a full disk may have space again later
                print(f"    {self.path}: {error.strerror}", file=sys.stderr, flush=True)
            time.sleep(WRITE_SECONDS)

    def set(self, **values: object) -> None:
        with self._lock:
            self.content |= values
            self._changed.set()

    def part(self, name: str, **values: object) -> None:
        with self._lock:
            self.content["parts"][name] = values
            self._changed.set()

    def begin(self, part: str, item: str) -> None:
        with self._lock:
            self.content["running"].setdefault(part, []).append(item)
            self._changed.set()

    def add(self, part: str, item: str, result: Result) -> None:
        result = finite(result)
        window = result.pop("window", None)
        if isinstance(window, list) and len(window) == 2:
            result["clock_mhz"] = self.clocks.within(*window)
        with self._lock:
            running = self.content["running"].get(part, [])
            self.content["running"][part] = [name for name in running if name != item]
            self.content["results"].setdefault(part, {})[item] = result
            self._changed.set()

    def open_items(self, part: str, items: list[str]) -> list[str]:
        """The items without a final result: all, unless an earlier run is resumed."""
        known = self.content["results"].get(part, {})
        return [item for item in items if known.get(item, {}).get("status") not in FINAL]

    def write(self) -> None:
        with self._lock:
            self._write()

    def _write(self) -> None:
        results = self.content["results"]
        both = [*results.get("measure", {}).values(), *results.get("plans", {}).values()]
        self.content["measured"] = [result for result in both if "microseconds_per_step" in result]
        if self.content["measured"]:
            self.content["device"] = self.content["measured"][0].get("device")
        files.write(self.path, json.dumps(self.content, indent=1, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """Replace non-finite numbers, which JSON lacks, by strings, such as the NaN of a wrong kernel."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class Clocks:
    """The SM clock, sampled by nvidia-smi at 10 Hz while kernels run; empty without nvidia-smi."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, float]] = []
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = ["nvidia-smi", "--query-gpu=clocks.sm", "--format=csv,noheader,nounits", "-lms", "100", "-i", gpu()]
        try:
            self._process = subprocess.Popen(
                parent_death.command(command), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        except OSError:
            return
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip().isdigit():
                self._samples.append((time.monotonic(), float(line)))

    def within(self, began: float, ended: float) -> float | None:
        samples = [mhz for when, mhz in list(self._samples) if began <= when <= ended + 0.1]
        return statistics.median(samples) if samples else None

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def output_of(*command: str) -> str:
    """The standard output of a command; empty if it is not installed."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def gpu() -> str:
    """The identifier, for nvidia-smi, of torch's device 0."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip() or "0"


def device() -> dict[str, str]:
    """Driver, clocks and power limit from nvidia-smi."""
    query = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
    values = output_of("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", "-i", gpu()).partition("\n")[0]
    return dict(zip(query.split(","), (part.strip() for part in values.split(",")), strict=False))
