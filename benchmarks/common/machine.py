"""Provenance of a result: machine, versions and commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

import torch

import prnn
from prnn import ops


def describe() -> dict[str, object]:
    """Processor, threads, versions and commit, as in every JSON under ``benchmarks/results/``."""
    loaded, native = ops.native.status()
    return {
        "processor": processor(),
        "clock_mhz": clock_mhz(),
        "load": load(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "jax": version("jax"),
        "onnxruntime": version("onnxruntime"),
        "prnn": prnn.__version__,
        "native": native if loaded else f"not loaded: {native}",
        "commit": commit(),
    }


def processor() -> str:
    """The processor's name and vector extensions, from /proc/cpuinfo if it exists."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    matches = [re.search(rf"^{key}\s*: (.*)$", text, re.MULTILINE) for key in ("model name", "cpu family", "model")]
    name, family, model = (match.group(1) if match else "?" for match in matches)
    wide = " AVX-512" if " avx512f" in text else " AVX2" if " avx2" in text else ""
    return f"{name} (family {family}, model {model}),{wide}, {text.count('processor')} cores"


def clock_mhz() -> float | None:
    """The first core's current clock; in many virtual machines the nominal one."""
    try:
        match = re.search(r"^cpu MHz\s*: ([\d.]+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return float(match.group(1)) if match else None


def load() -> float | None:
    """The load average of the last minute: more than ``threads`` means that other processes disturbed the run."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def version(package: str) -> str | None:
    """The version of an optional package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str:
    """The measured commit, marked if the tree has uncommitted changes."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
