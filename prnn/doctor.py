"""Report on this machine and this installation, for bug reports.

    python -m prnn.doctor          a table
    python -m prnn.doctor --json   the same as JSON

Read-only: nothing is downloaded, no process group is created, and anything missing is a line of output, not an error.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

from prnn import extras

extras.begin_imports("prnn-doctor")

import torch
import torch.distributed as dist

import prnn
from prnn import native
from prnn.codegen import build, gpu
from prnn.error_messages import run_command
from prnn.terminal import put

PACKAGES = ("numpy", "hydra-core", "omegaconf", "safetensors", "matplotlib", "tqdm", "wandb", "tensorboard")
FEATURES = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")  # as in /proc/cpuinfo
SETTINGS = (
    "PRNN_BACKEND",
    "PRNN_NO_NATIVE",
    "PRNN_CPU_ISA",
    "PRNN_CUDA_REGIME",
    "PRNN_CUDA_PLAN",
    "PRNN_CUDA_WAIT_SECONDS",
    "PRNN_CUDA_MAX_SMS",
    "NCCL_MAX_CTAS",
    "PRNN_CUDA_BENCHMARK",
    "PRNN_DATA",
    "PRNN_CACHE",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
)

Report = dict[str, dict[str, Any]]


def report() -> Report:
    """Section -> name -> value."""
    return {
        "versions": _versions(),
        "processor": _processor(),
        "gpu": _gpu(),
        "backends": _backends(),
        "network": _network(),
        "packages": {name: _version(name) for name in PACKAGES},
        "environment": {name: os.environ.get(name, "not set") for name in SETTINGS} | _data(),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _versions() -> dict[str, Any]:
    return {
        "prnn": f"{prnn.__version__}, in {Path(prnn.__file__).parent}",
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda or 'none'}, HIP {torch.version.hip or 'none'})",
        "python": f"{platform.python_version()}, {sys.executable}",
        "system": f"{platform.platform()}, {' '.join(platform.libc_ver()) or 'unknown libc'}",
    }


def _processor() -> dict[str, Any]:
    cpuinfo = _read("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    present = set(flags[1].split()) if flags else set()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "model": model[1] if model else platform.processor() or platform.machine(),
        "features": " ".join(name for name in FEATURES if name in present) or "none that prnn uses",
        "torch uses": torch.backends.cpu.get_cpu_capability(),
        "cores": f"{usable} usable of {os.cpu_count()}",
        "threads": f"{torch.get_num_threads()} intra-op, {torch.get_num_interop_threads()} inter-op",
        "memory": _memory(),
    }


def _memory() -> str:
    kib = {name: int(size) for name, size in re.findall(r"^(\w+):\s+(\d+) kB$", _read("/proc/meminfo"), re.MULTILINE)}
    if "MemTotal" not in kib:
        return "unknown"
    return f"{kib.get('MemAvailable', 0) / 2**20:.1f} of {kib['MemTotal'] / 2**20:.1f} GiB available"


def _gpu() -> dict[str, Any]:
    if torch.cuda.is_available():
        return {f"cuda:{index}": _device(index) for index in range(torch.cuda.device_count())}
    if torch.version.cuda is None and torch.version.hip is None:
        return {"none": "this torch is built without CUDA"}
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return {"none": "CUDA_VISIBLE_DEVICES is empty"}
    if not Path("/dev/nvidiactl").exists() and not Path("/dev/kfd").exists():
        return {"none": "torch can use one, but no driver is loaded (no /dev/nvidiactl)"}
    return {"none": "a driver is loaded, but torch cannot use it (too old for this torch, or no device visible)"}


def _device(index: int) -> str:
    device = torch.cuda.get_device_properties(index)
    return (
        f"{device.name}, sm_{device.major}{device.minor}, {device.multi_processor_count} SMs, "
        f"{device.total_memory / 2**30:.0f} GiB"
    )


def _backends() -> dict[str, Any]:
    available, reason = native.status()
    return {
        "reference": "yes",
        "torch": "yes" + (", cuDNN " + str(torch.backends.cudnn.version()) if torch.cuda.is_available() else ""),
        "cpu": f"{'yes' if available else 'no'}: {reason}",
        "cells in Python": _cells(),
        "cuda": _cuda_backend(),
    }


def _cells() -> str:
    """The compilers, and the cache of compiled cells."""
    try:
        compiler = " ".join(build.compiler())
    except build.CannotCompile as reason:
        compiler = str(reason)
    for_gpus = ", ".join(each.name for each in gpu.compilers()) or "none"
    if torch.version.cuda is None:
        for_gpus += " (not used: this torch is built without CUDA)"
    folder = build.cache()
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        return f"{compiler}, for GPUs {for_gpus}, nothing can be written into {folder}"
    compiled = sum(1 for kind in ("*.so", "*.cubin") for _ in folder.glob(kind))
    return f"{compiler}, for GPUs {for_gpus}, {compiled} compiled in {folder}"


def _cuda_backend() -> str:
    built, reason = native.cuda_status()
    if not built:
        return f"no: {reason}"
    if not torch.cuda.is_available():
        return "built, but torch sees no GPU"
    try:
        plans = torch.ops.prnn_native.cuda_explain(native.cell_id("lstm"), 0, 1, 64, False, 0)
    except RuntimeError as error:
        return f"no: {str(error).splitlines()[0]}"
    return "yes" if plans.strip() else "no: not for this GPU"


def _network() -> dict[str, Any]:
    if not dist.is_available():
        return {"torch.distributed": "not in this build of torch"}
    backends = {"gloo": dist.is_gloo_available(), "nccl": dist.is_nccl_available(), "mpi": dist.is_mpi_available()}
    return {name: "yes" if available else "no" for name, available in backends.items()}


def _data() -> dict[str, str]:
    folder = os.environ.get("PRNN_DATA")
    if not folder:
        return {}
    if not Path(folder).is_dir():
        return {"data": f"{folder} is not a folder"}
    return {"data": ", ".join(sorted(each.name for each in Path(folder).iterdir() if each.is_dir())) or "none found"}


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def text(report: Report) -> str:
    """The report as aligned lines."""
    lines = []
    for section, rows in report.items():
        for index, (name, value) in enumerate(rows.items()):
            lines.append(f"{section if index == 0 else '':<12} {name:<20} {value}")
    return "\n".join(lines)


def main() -> int:
    """The command ``prnn-doctor``."""
    parser = argparse.ArgumentParser(prog="prnn-doctor", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")

    def command(words: list[str]) -> None:
        arguments = parser.parse_args(words)
        facts = report()
        put(json.dumps(facts, indent=2) if arguments.json else text(facts))

    return run_command(None, parser.format_help, command, "free some memory", "make it readable")


if __name__ == "__main__":
    sys.exit(main())
