"""The native library for the GPU that is here: one that stands in the tree where it serves, else built in place.

    python -m benchmarks.gpu_build [--log FILE]

Such a library can be built beforehand on a machine without a GPU, for the same Python and torch:

    NVCC_APPEND_FLAGS=-lineinfo TORCH_CUDA_ARCH_LIST=9.0 PRNN_REQUIRE_NATIVE=1 python setup.py build_ext --inplace

Whether it serves is asked of the library itself, in a process that may fail: for every GPU and kind of recurrence
`cuda_explain` asks the driver about the kernels, which it refuses where none is compiled for that GPU.
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

PROBE_SECONDS = 90.0  # importing torch from a cold disk, starting CUDA
BUILD_SECONDS = 400.0
COMPILE_SECONDS = 120.0
DTYPES = 3  # of elements, as prnn_native numbers them

# Runs a command with additions to the environment for at most so many seconds: exit status (124: out of time), output.
Run = Callable[[list[str], dict[str, str], float], tuple[int, str]]


@dataclass(frozen=True)
class Built:
    """How the library came to be there; where it is not, ``why`` in one sentence."""

    ok: bool
    prebuilt: bool
    seconds: float
    architectures: list[str]  # of the GPUs that are here, each once: 9.0
    why: str


def prepare(log: Path, build_seconds: float = BUILD_SECONDS, run: Run | None = None) -> Built:
    """Sees to it that the library is there, with CUDA kernels for every GPU. The full output goes to ``log``."""
    began = time.monotonic()
    call = run or logged(log)

    def built(why: str, prebuilt: bool = False) -> Built:
        return Built(not why, prebuilt, round(time.monotonic() - began, 1), architectures, why)

    found = probe_apart(call)
    architectures = sorted(set(found.get("architectures", [])))
    if not found["why"]:
        return built("", prebuilt=True)
    if not architectures:  # asked without the library: it may be what fails
        found = probe_apart(call, PRNN_NO_NATIVE="1")
        architectures = sorted(set(found.get("architectures", [])))
    if not architectures:
        return built(found["why"])
    if old := [name for name in architectures if float(name) < 8]:
        return built(f"the CUDA kernels need sm_80 or later, and this GPU is of {', '.join(old)}")
    status, said = call(
        # Forced: setuptools takes a library as good that was built for other GPUs.
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
        return built(f"the build {ending(status)}: {first_error(said)}")
    return built(probe_apart(call)["why"])


def probe_apart(call: Run, **environment: str) -> dict[str, Any]:
    """``probe`` in a process of its own, which a broken library may take with it."""
    environment = {"PRNN_NO_NATIVE": "0", "PRNN_CUDA_REGIME": "", "PRNN_CUDA_PLAN": ""} | environment
    status, said = call([sys.executable, "-m", "benchmarks.gpu_build", "--probe"], environment, PROBE_SECONDS)
    for line in reversed(said.splitlines()):  # a warning may follow it
        if status == 0 and line.startswith('{"architectures"'):
            return json.loads(line)
    return {"why": f"loading the library and asking it about the GPU {ending(status)}"}


def probe() -> dict[str, Any]:
    """The GPUs that are here, and why the library that is there does not serve them; "" if it does."""
    import torch

    architectures = ["{}.{}".format(*torch.cuda.get_device_capability(i)) for i in range(torch.cuda.device_count())]
    found = {"architectures": architectures, "why": ""}
    if not architectures:
        reason = "is built without CUDA" if torch.version.cuda is None else "sees no CUDA device"
        return found | {"why": f"torch {torch.__version__} {reason}"}
    from prnn import native

    ready, why = native.cuda_status()
    if not ready:
        return found | {"why": f"the library has no CUDA kernels: {why}"}
    for device, architecture in enumerate(architectures):
        for cell in map(native.cell_id, native.cuda_cells()):
            for dtype in range(DTYPES):
                try:
                    said = torch.ops.prnn_native.cuda_explain(cell, dtype, 1, 16, False, device)
                except RuntimeError as error:
                    return found | {
                        "why": f"the library does not serve sm_{architecture}: {(str(error).splitlines() or ['?'])[0]}"
                    }
                if not all(said.split("\n")[:2]):
                    return found | {"why": f"the library has no plan for 16 units on sm_{architecture}"}
    return found


def logged(log: Path, until: float = math.inf) -> Run:
    """Runs commands from the repository's root, with what they say in ``log``; at the limit, and at the latest at
    ``until`` (``time.monotonic``), all they started ends. If this process is killed the command ends too, but not what
    it has started.
    """

    def run(command: list[str], environment: dict[str, str], seconds: float) -> tuple[int, str]:
        with log.open("a") as file:
            file.write(f"$ {' '.join(f'{k}={v}' for k, v in environment.items())} {' '.join(command)}\n")
            file.flush()
            began = file.tell()
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.gpu_check.leash", str(os.getpid()), *command],
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


def first_error(said: str) -> str:
    """The line that says what went wrong, as far as can be told; compilers say more after it."""
    lines = said.strip().splitlines() or ["it said nothing"]
    return next((line for line in lines if re.search(r"\b(error|fatal)\b", line, re.IGNORECASE)), lines[-1]).strip()


def nvcc() -> Path | None:
    """That of the toolkit which setup.py builds with; None without one."""
    import torch

    major = int((torch.version.cuda or "0").split(".")[0])
    toolkit = runpy.run_path(str(ROOT / "setup.py"), run_name="setup")["cuda_toolkit"](major)
    return toolkit and toolkit / "bin" / "nvcc"


def compile_micro(call: Run, out: Path, nvcc: Path, architecture: str) -> Path:
    """benchmarks/micro.cu for a GPU (9.0), into the folder ``out``; RuntimeError with the compiler's words."""
    program, name = out / "micro", architecture.replace(".", "")
    flags = ["-std=c++17", "-O3", f"-gencode=arch=compute_{name},code=sm_{name}", f"-I{ROOT / 'prnn/csrc/cuda'}"]
    command = [str(nvcc), *flags, str(ROOT / "benchmarks/gpu_check/micro.cu"), "-o", str(program)]
    status, said = call(command, {}, COMPILE_SECONDS)
    if status:
        raise RuntimeError(f"{nvcc} {ending(status)} at micro.cu: {first_error(said)}")
    return program


def micro_lines(said: str) -> list[dict[str, Any]]:
    """What micro has measured, a dictionary a line; a line that was cut off is left out."""
    found = []
    for line in said.splitlines():
        if line.startswith("{") and line.endswith("}"):
            with contextlib.suppress(ValueError):  # a measurement that gave no number
                found.append(json.loads(line))
    return found


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
    found = prepare(options.log.resolve())
    print(json.dumps(asdict(found)))
    return 0 if found.ok else 1


if __name__ == "__main__":
    sys.exit(main())
