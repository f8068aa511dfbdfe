"""Provide the native library for this machine's GPUs: use the existing one if it supports them, else build in place.

    python -m benchmarks.gpu_build [--log FILE]

The library can be built beforehand on a machine without a GPU, with the same Python and torch:

    NVCC_APPEND_FLAGS=-lineinfo TORCH_CUDA_ARCH_LIST=9.0 PRNN_REQUIRE_NATIVE=1 python setup.py build_ext --inplace

Whether it supports the GPUs is tested in a separate process, which may crash: for every GPU and kind of recurrence
`cuda_explain` queries the driver about the kernels, which fails if none is compiled for that GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.files import ROOT
from prnn import parent_death

PROBE_SECONDS = 90.0  # importing torch from a cold disk, starting CUDA
BUILD_SECONDS = 400.0
COMPILE_SECONDS = 120.0
DTYPES = 3  # of elements, as prnn_native numbers them

# Runs a command with extra environment variables and a timeout in seconds: exit status (124: timeout), output.
Run = Callable[[list[str], dict[str, str], float], tuple[int, str]]


@dataclass(frozen=True)
class Built:
    """How the library was provided; if it is not available, ``why`` is the reason in one sentence."""

    ok: bool
    prebuilt: bool
    seconds: float
    architectures: list[str]  # of this machine's GPUs, without duplicates: 9.0
    why: str


def prepare(log: Path, build_seconds: float = BUILD_SECONDS, run: Run | None = None) -> Built:
    """Ensure that the library is available, with CUDA kernels for every GPU. The full output goes to ``log``."""
    began = time.monotonic()
    call = run or logged(log)

    def built(why: str, prebuilt: bool = False) -> Built:
        return Built(not why, prebuilt, round(time.monotonic() - began, 1), architectures, why)

    probed = probe_apart(call)
    architectures = sorted(set(probed.get("architectures", [])))
    if not probed["why"]:
        return built("", prebuilt=True)
    if not architectures:  # without the library, which may be the cause
        probed = probe_apart(call, PRNN_NO_NATIVE="1")
        architectures = sorted(set(probed.get("architectures", [])))
    if not architectures:
        return built(probed["why"])
    if old := [name for name in architectures if float(name) < 8]:
        return built(f"the CUDA kernels need sm_80 or later, and this GPU is of {', '.join(old)}")
    status, output = call(
        # Forced: setuptools would accept a library built for other GPUs.
        [sys.executable, "setup.py", "build_ext", "--inplace", "--force"],
        {
            "PRNN_REQUIRE_NATIVE": "1",
            "PRNN_NO_NATIVE": "0",
            "PRNN_NO_CUDA": "0",
            "TORCH_CUDA_ARCH_LIST": ";".join(architectures),
            # For compute-sanitizer and profilers.
            "NVCC_APPEND_FLAGS": f"{os.environ.get('NVCC_APPEND_FLAGS', '')} -lineinfo".strip(),
            "MAX_JOBS": str(len(os.sched_getaffinity(0))),
        },
        build_seconds,
    )
    if status:
        return built(f"the build {ending(status)}: {first_error(output)}")
    return built(probe_apart(call)["why"])


def probe_apart(call: Run, **environment: str) -> dict[str, Any]:
    """Run ``probe`` in a separate process, which a broken library may crash."""
    environment = {"PRNN_NO_NATIVE": "0", "PRNN_CUDA_REGIME": "", "PRNN_CUDA_PLAN": ""} | environment
    status, output = call([sys.executable, "-m", "benchmarks.gpu_build", "--probe"], environment, PROBE_SECONDS)
    for line in reversed(output.splitlines()):  # a warning may follow it
        if status == 0 and line.startswith('{"architectures"'):
            return json.loads(line)
    return {"why": f"loading the library and asking it about the GPU {ending(status)}"}


def probe() -> dict[str, Any]:
    """The GPUs of this machine, and why the library does not support them; "" if it does."""
    import torch

    architectures = ["{}.{}".format(*torch.cuda.get_device_capability(i)) for i in range(torch.cuda.device_count())]
    report = {"architectures": architectures, "why": ""}
    if not architectures:
        reason = "is built without CUDA" if torch.version.cuda is None else "sees no CUDA device"
        return report | {"why": f"torch {torch.__version__} {reason}"}
    from prnn import native

    ready, why = native.cuda_status()
    if not ready:
        return report | {"why": f"the library has no CUDA kernels: {why}"}
    for device, architecture in enumerate(architectures):
        for cell in map(native.cell_id, native.cuda_cells()):
            for dtype in range(DTYPES):
                try:
                    explanation = torch.ops.prnn_native.cuda_explain(cell, dtype, 1, 16, False, device)
                except RuntimeError as error:
                    return report | {
                        "why": f"the library does not serve sm_{architecture}: {(str(error).splitlines() or ['?'])[0]}"
                    }
                if not all(explanation.split("\n")[:2]):
                    return report | {"why": f"the library has no plan for 16 units on sm_{architecture}"}
    return report


def logged(log: Path, until: float = math.inf) -> Run:
    """Run commands from the repository root with output to ``log``; at their time limit, and at the latest at ``until``
    (``time.monotonic``), they are killed with their child processes. If this process is killed, the command ends too,
    but not its child processes.
    """

    def run(command: list[str], environment: dict[str, str], seconds: float) -> tuple[int, str]:
        with log.open("a") as file:
            file.write(f"$ {' '.join(f'{k}={v}' for k, v in environment.items())} {' '.join(command)}\n")
            file.flush()
            began = file.tell()
            process = subprocess.Popen(
                parent_death.command(command),
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                status = process.wait(max(0.0, min(seconds, until - time.monotonic())))
            except BaseException as error:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                status = 124
        with log.open(errors="replace") as file:
            file.seek(began)
            return status, file.read()

    return run


def ending(status: int) -> str:
    if status == 124:
        return "ran out of time"
    return f"ended with signal {-status}" if status < 0 else f"ended with status {status}"


def first_error(output: str) -> str:
    """The most likely error line of a command's output; compilers print more after it."""
    lines = output.strip().splitlines() or ["no output"]
    return next((line for line in lines if re.search(r"\b(error|fatal)\b", line, re.IGNORECASE)), lines[-1]).strip()


def nvcc() -> Path | None:
    """The nvcc of the toolkit that setup.py uses; None without one."""
    import torch

    major = int((torch.version.cuda or "0").split(".")[0])
    toolkit = runpy.run_path(str(ROOT / "setup.py"), run_name="setup")["cuda_toolkit"](major)
    return toolkit and toolkit / "bin" / "nvcc"


def compile_micro(call: Run, out: Path, nvcc: Path, architecture: str) -> Path:
    """gpu_check/micro.cu for a GPU (9.0), into the folder ``out``; RuntimeError with the compiler's error."""
    program, name = out / "micro", architecture.replace(".", "")
    flags = ["-std=c++17", "-O3", f"-gencode=arch=compute_{name},code=sm_{name}", f"-I{ROOT / 'prnn/csrc/cuda'}"]
    command = [str(nvcc), *flags, str(ROOT / "benchmarks/gpu_check/micro.cu"), "-o", str(program)]
    status, output = call(command, {}, COMPILE_SECONDS)
    if status:
        raise RuntimeError(f"{nvcc} {ending(status)} at micro.cu: {first_error(output)}")
    return program


def micro_lines(output: str) -> list[dict[str, Any]]:
    """The measurements of micro, one dictionary per line; a truncated line is skipped."""
    measurements = []
    for line in output.splitlines():
        if line.startswith("{") and line.endswith("}"):
            with contextlib.suppress(ValueError):  # a measurement without a number
                measurements.append(json.loads(line))
    return measurements


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, default=Path("gpu_build.txt"), help="file for the full output")
    parser.add_argument("--probe", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.probe:
        print(json.dumps(probe()))
        return 0
    try:
        options.log.open("a").close()
    except OSError as error:
        parser.error(f"--log {options.log}: {error.strerror}")
    outcome = prepare(options.log.resolve())
    print(json.dumps(asdict(outcome)))
    return 0 if outcome.ok else 1


if __name__ == "__main__":
    sys.exit(main())
