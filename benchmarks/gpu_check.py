"""Everything about the CUDA kernels that needs a GPU, in one command and at most nine minutes:

    python -m benchmarks.gpu_check --out DIR [--parts build,micro,tests,kernels,sanitizer] [--rounds 9]

    build       compiles the native library for the GPU that is here (in place, beside the package)
    micro       latencies and rates of what the regimes are made of (benchmarks/micro.cu)
    tests       tests/gpu: every cell, dtype and regime against the reference, graphs, streams, devices
    kernels     benchmarks/kernels.py --suite gpu: cuDNN, a product per step, FlashRNN where it is installed
    sanitizer   compute-sanitizer (memcheck, racecheck, synccheck) over a few small shapes, where it is installed

It needs torch (a CUDA build), numpy, nvcc and a C++ compiler, nothing else: no pytest, no Hydra. One part's failure
does not keep the next from running; the exit status is 1 if any failed. DIR gets check.json (what was found, commit,
driver, clocks), gpu.json (benchmarks/kernels.py's) and each part's full output; a table of it all is printed last.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SECONDS = {"build": 180, "micro": 30, "tests": 120, "kernels": 130, "sanitizer": 80}  # the most each may take
SANITIZED = ("rnn_tanh float32 T5 B1 H3", "lstm bfloat16 T6 B9 H40", "gru float16 T6 B9 H40")
Found = dict[str, object]


def call(command: list[str], part: str, out: Path, **environment: str) -> tuple[int, str]:
    """Runs a command from the repository's root; its output goes to DIR/PART.txt too."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=SECONDS[part],
    )
    with (out / f"{part}.txt").open("a") as log:
        log.write(f"$ {' '.join(command)}\n{done.stdout}\n")
    return done.returncode, done.stdout


def build(out: Path, options: argparse.Namespace) -> Found:
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    code, _ = call(command, "build", out, PRNN_REQUIRE_NATIVE="1", MAX_JOBS=str(os.cpu_count()))
    return {"ok": code == 0}


def micro(out: Path, options: argparse.Namespace) -> Found:
    import torch

    major, minor = torch.cuda.get_device_capability()
    name = f"{major}{minor}" + ("a" if major >= 9 else "")
    program = out / "micro"
    flags = ["-std=c++17", "-O3", f"-gencode=arch=compute_{name},code=sm_{name}", f"-I{ROOT / 'prnn/csrc/cuda'}"]
    code, _ = call(["nvcc", *flags, str(ROOT / "benchmarks/micro.cu"), "-o", str(program)], "micro", out)
    if code:
        return {"ok": False}
    code, said = call([str(program)], "micro", out)
    program.unlink()
    return {"ok": code == 0} | ({} if code else {"measured": json.loads(said)})


def tests(out: Path, options: argparse.Namespace) -> Found:
    code, said = call([sys.executable, "-m", "benchmarks.gpu_check", "--run-checks", ""], "tests", out)
    return {"ok": code == 0, "said": said.strip().splitlines()[-20:]}


def kernels(out: Path, options: argparse.Namespace) -> Found:
    command = [sys.executable, "-m", "benchmarks.kernels", "--suite", "gpu", "--device", "cuda", "--out", str(out)]
    code, said = call([*command, "--rounds", str(options.rounds)], "kernels", out)
    return {"ok": code == 0, "said": said.strip().splitlines()}


def sanitizer(out: Path, options: argparse.Namespace) -> Found:
    if shutil.which("compute-sanitizer") is None:
        return {"ok": True, "skipped": "compute-sanitizer is not installed"}
    found: Found = {"ok": True}
    for tool in ("memcheck", "racecheck", "synccheck"):
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, "-m"]
        code, said = call([*command, "benchmarks.gpu_check", "--run-checks", "|".join(SANITIZED)], "sanitizer", out)
        found[tool] = said.strip().splitlines()[-1] if said.strip() else ""
        found["ok"] = found["ok"] and code == 0
    return found


PARTS: dict[str, Callable[[Path, argparse.Namespace], Found]] = {
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


def device() -> Found:
    """Driver, clocks and power limit as nvidia-smi tells them."""
    query = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
    done = subprocess.run(
        ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], capture_output=True, text=True
    )
    return dict(zip(query.split(","), (part.strip() for part in done.stdout.split(",")), strict=False))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--rounds", type=int, default=9)
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
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    record: Found = {"commit": commit, "torch": torch.__version__, "cuda": torch.version.cuda, "device": device()}
    for part in options.parts.split(","):
        began = time.monotonic()
        try:
            found = PARTS[part](out, options)
        except subprocess.TimeoutExpired:
            found = {"ok": False, "said": [f"took longer than {SECONDS[part]} s"]}
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
