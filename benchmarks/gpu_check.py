"""Everything about the CUDA kernels that needs a GPU, in one command and at most nine minutes:

    python -m benchmarks.gpu_check --out DIR [--parts build,micro,tests,kernels,sanitizer] [--rounds 9]

    build       compiles the native library for the GPU that is here (in place, beside the package)
    micro       latencies and rates of what the regimes are made of (benchmarks/micro.cu)
    tests       tests/gpu: every cell, dtype and regime against the reference, graphs, streams, devices
    kernels     benchmarks/kernels.py --suite gpu: cuDNN, a product per step, FlashRNN where it is installed
    sanitizer   compute-sanitizer (memcheck, racecheck, synccheck) over a few small shapes, where it is installed

It needs torch (a CUDA build), numpy, nvcc and a C++ compiler, nothing else: no pytest, no Hydra. One part's failure
does not keep the next from running, and what runs out of time keeps what it has said; the exit status is 1 if any
failed. DIR gets check.json (what was found, commit,
driver, clocks), gpu.json (benchmarks/kernels.py's) and each part's full output; a table of it all is printed last.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.arguments import at_least, folder

ROOT = Path(__file__).resolve().parents[1]
SECONDS = {"build": 180, "micro": 30, "tests": 120, "kernels": 130, "sanitizer": 80}  # the most each may take
SANITIZED = (
    "rnn_tanh float32 T5 B1 H3",
    "lstm bfloat16 T6 B9 H40",
    "gru float16 T6 B9 H40",
    "memories list float32 T9",
)
Found = dict[str, object]


class Part:
    """Where a part's commands say what they say, and until when they may run."""

    def __init__(self, name: str, out: Path) -> None:
        self.log, self.deadline = out / f"{name}.txt", time.monotonic() + SECONDS[name]

    def call(self, command: list[str], **environment: str) -> tuple[int, str]:
        """Runs a command from the repository's root; 124 if the part's time is over. Its output goes to the log."""
        with self.log.open("a") as log:
            log.write(f"$ {' '.join(command)}\n")
            log.flush()
            began = log.tell()
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that what it has started ends with it
            )
            try:
                code = process.wait(max(1.0, self.deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                code = 124
        with self.log.open(errors="replace") as log:
            log.seek(began)
            return code, log.read() + ("out of time\n" if code == 124 else "")


def build(part: Part, out: Path, options: argparse.Namespace) -> Found:
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    code, said = part.call(command, PRNN_REQUIRE_NATIVE="1", MAX_JOBS=str(os.cpu_count()))
    return {"ok": code == 0} | ({} if code == 0 else {"said": said.strip().splitlines()[-30:]})


def micro(part: Part, out: Path, options: argparse.Namespace) -> Found:
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    name = "{}{}".format(*torch.cuda.get_device_capability())
    program = out / "micro"
    flags = ["-std=c++17", "-O3", f"-gencode=arch=compute_{name},code=sm_{name}", f"-I{ROOT / 'prnn/csrc/cuda'}"]
    nvcc = str(Path(CUDA_HOME or "/usr/local/cuda") / "bin" / "nvcc")
    code, said = part.call([nvcc, *flags, str(ROOT / "benchmarks/micro.cu"), "-o", str(program)])
    if code == 0:
        code, said = part.call([str(program)])
        program.unlink()
    return {"ok": code == 0} | ({"said": said.strip().splitlines()} if code else {"measured": json.loads(said)})


def tests(part: Part, out: Path, options: argparse.Namespace) -> Found:
    code, said = part.call([sys.executable, "-m", "benchmarks.gpu_check", "--run-checks", ""])
    return {"ok": code == 0, "said": said.strip().splitlines()[-20:]}


def kernels(part: Part, out: Path, options: argparse.Namespace) -> Found:
    command = [sys.executable, "-m", "benchmarks.kernels", "--suite", "gpu", "--device", "cuda", "--out", str(out)]
    code, said = part.call([*command, "--rounds", str(options.rounds)])
    return {"ok": code == 0, "said": said.strip().splitlines()}


def sanitizer(part: Part, out: Path, options: argparse.Namespace) -> Found:
    if shutil.which("compute-sanitizer") is None:
        return {"ok": True, "skipped": "compute-sanitizer is not installed"}
    found: Found = {"ok": True}
    for tool in ("memcheck", "racecheck", "synccheck"):
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, "-m"]
        code, said = part.call([*command, "benchmarks.gpu_check", "--run-checks", "|".join(SANITIZED)])
        found[tool] = said.strip().splitlines()[-1] if said.strip() else ""
        found["ok"] = found["ok"] and code == 0
    return found


PARTS: dict[str, Callable[[Part, Path, argparse.Namespace], Found]] = {
    "build": build,
    "micro": micro,
    "tests": tests,
    "kernels": kernels,
    "sanitizer": sanitizer,
}


def run_checks(wanted: str) -> int:
    """tests/gpu without pytest: those whose name begins with one of ``wanted``, all without; 1 if one fails."""
    from tests.gpu import checks

    failed, began = 0, time.monotonic()
    chosen = {n: c for n, c in checks.checks().items() if n.startswith(tuple(wanted.split("|")))}
    for name, check in chosen.items():
        try:
            check()
        except Exception as error:  # one check's failure must not hide the others
            failed += 1
            print(
                f"FAIL {name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", flush=True
            )
    print(f"{len(chosen) - failed} passed, {failed} failed, in {time.monotonic() - began:.0f} s")
    return 1 if failed or not chosen else 0


def said_by(*command: str) -> str:
    """What a command says; nothing where it is not there."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def device() -> Found:
    """Driver, clocks and power limit as nvidia-smi tells them."""
    query = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
    said = said_by("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader").partition("\n")[0]
    return dict(zip(query.split(","), (part.strip() for part in said.split(",")), strict=False))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=folder)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--rounds", type=at_least(1), default=9)
    parser.add_argument("--run-checks", metavar="NAMES", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    unknown = set(options.parts.split(",")) - set(PARTS)
    if unknown:
        parser.error(f"--parts {','.join(sorted(unknown))}: expected some of {', '.join(PARTS)}")
    if options.out is None and options.run_checks is None:
        parser.error("--out DIR is needed: where the results go")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    import torch

    if not torch.cuda.is_available():
        print("gpu_check: torch sees no CUDA device", file=sys.stderr)
        return 2
    if options.run_checks is not None:
        return run_checks(options.run_checks)
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    commit = said_by("git", "rev-parse", "HEAD")
    record: Found = {"commit": commit, "torch": torch.__version__, "cuda": torch.version.cuda, "device": device()}
    for part in options.parts.split(","):
        began = time.monotonic()
        try:
            found = PARTS[part](Part(part, out), out, options)
        except Exception as error:  # the parts that follow have their own reasons to run
            found = {"ok": False, "said": [f"{type(error).__name__}: {error}"]}
        record[part] = found | {"seconds": round(time.monotonic() - began, 1)}
        (out / "check.json").write_text(json.dumps(record, indent=2) + "\n")
        print(f"{part}: {'ok' if found['ok'] else 'FAILED'} in {record[part]['seconds']} s", flush=True)
    for part in options.parts.split(","):
        for line in record[part].get("said", []) or [f"{k}: {v}" for k, v in record[part].items() if k != "ok"]:
            print(f"{part:9} {line}")
    return 0 if all(record[part]["ok"] for part in options.parts.split(",")) else 1


if __name__ == "__main__":
    sys.exit(main())
