"""Time of a step of an exported GRU: plain C and ONNX, beside torch.nn, torch.jit and prnn's own layer.

    python -m benchmarks.exported [--hidden 16 64 256] [--rounds 21] [--out benchmarks/results/MACHINE]

B = 1, input and hidden size H, one thread, float32. ``prnn.export`` writes and checks what is timed. Frame by frame is
how a stream is processed: a call of one frame, whose state goes into the next; of C, whose step is a call, 1,000 of
them in its ``run``. Whole: 1,000 frames in a call. What a step has to do, for H = 64: 24,576 multiplications and
additions and 98 KB of weights, more than the first cache holds: 3,072 cycles at 8 multiplications and additions a cycle
(baseline x86-64), as many at 32 bytes a cycle from the second cache; and 192 activation functions.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import prnn
from benchmarks.common import files, machine, markdown, stats
from benchmarks.common.arguments import at_least, folder
from prnn.export import c

FLAGS = {
    "": "-O3",
    ", PRNN_FAST_MATH": "-O3 -DPRNN_FAST_MATH",
    ", PRNN_FAST_MATH, -march=native": "-O3 -DPRNN_FAST_MATH -march=native",
}
FRAMES = 1000
Contenders = dict[str, tuple[Callable[[], object], int]]  # a call, and its frames


def in_c(model: nn.Module, place: Path, weights: str) -> Contenders:
    """The exported C, by its flags."""
    prnn.export(model, place, "c", weights=weights)
    H, contenders = model.hidden_size, {}
    for number, (name, flags) in enumerate(FLAGS.items()):
        c.check(place, "model", 1e-5, flags.split())
        library = place / f"model_{number}.so"
        command = [*c.compiler(), "-std=c99", *flags.split(), "-shared", "-fPIC", "-o", str(library)]
        subprocess.run([*command, str(place / "model.c"), "-lm"], check=True)
        loaded = ctypes.CDLL(str(library))
        state = ctypes.create_string_buffer(4 * 64 * H + 4 * 65536)  # larger than the struct
        x, y = torch.randn(FRAMES, H), torch.empty(FRAMES, H)
        loaded.model_init(state)

        def run(loaded: Any = loaded, state: Any = state, x: torch.Tensor = x, y: torch.Tensor = y) -> None:
            loaded.model_run(state, FRAMES, ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(y.data_ptr()))

        contenders[f"C, {weights}{name}"] = run, FRAMES
    return contenders


def in_onnxruntime(model: nn.Module, place: Path) -> Contenders:
    """The exported ONNX, frame by frame and whole; nothing where onnxruntime is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return {}
    prnn.export(model, place, "onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(place / "model.onnx", options, providers=["CPUExecutionProvider"])
    contenders: Contenders = {}
    for name, frames in (("frame by frame", 1), ("whole", FRAMES)):
        given = {"input": torch.randn(frames, 1, model.hidden_size).numpy()}
        given["h0"] = torch.zeros(1, 1, model.hidden_size).numpy()

        def run(given: Any = given) -> None:
            _, given["h0"] = session.run(None, given)

        contenders[f"onnxruntime, {name}"] = run, frames
    return contenders


def in_torch(model: nn.Module, name: str, whole: bool) -> Contenders:
    """A module, frame by frame and, if so, whole."""
    contenders: Contenders = {}
    for way, frames in (("frame by frame", 1), *([("whole", FRAMES)] if whole else [])):
        given = [torch.randn(frames, 1, model.hidden_size), torch.zeros(1, 1, model.hidden_size)]

        def run(given: Any = given, model: Any = model) -> None:
            _, given[1] = model(*given)

        contenders[f"{name}, {way}"] = run, frames
    return contenders


@torch.no_grad()
def measure(H: int, rounds: int) -> dict[str, dict[str, float]]:
    """Microseconds a step of each contender."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, theirs = prnn.GRU(H, H).eval(), nn.GRU(H, H).eval()
    theirs.load_state_dict(model.state_dict())
    traced = torch.jit.freeze(torch.jit.trace(theirs, (torch.randn(1, 1, H), torch.zeros(1, 1, H))).eval())
    traced.hidden_size = H
    with tempfile.TemporaryDirectory() as place:
        contenders = in_c(model, Path(place) / "c", "float32") | in_c(model, Path(place) / "int8", "int8")
        contenders |= in_onnxruntime(model, Path(place) / "onnx")
        contenders |= in_torch(theirs, "torch.nn", True) | in_torch(traced, "torch.jit", False)
        contenders |= in_torch(model, "prnn.GRU", True)
        seconds = stats.interleave({name: run for name, (run, _) in contenders.items()}, rounds)
    return {name: stats.spread([1e6 * each / contenders[name][1] for each in of]) for name, of in seconds.items()}


def report(record: dict[str, Any]) -> str:
    """The table of a record."""
    sizes = list(record["microseconds"])
    names = list(record["microseconds"][sizes[0]])
    rows = [
        [name, *("{median:.2f} ({min:.2f} to {max:.2f})".format(**record["microseconds"][H][name]) for H in sizes)]
        for name in names
    ]
    where = "{processor}, torch {torch}, onnxruntime {onnxruntime}, commit {commit}".format(**record["machine"])
    head = ["us a step: median (min to max)", *(f"H {size}" for size in sizes)]
    title = "# A step of an exported GRU\n\nB = 1, one thread, input of size H. `python -m benchmarks.exported`"
    return f"{title}: {where}.\n\n{markdown.table(head, rows)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=at_least(1), nargs="+", default=[16, 64, 256])
    parser.add_argument("--rounds", type=at_least(1), default=21)
    parser.add_argument("--out", type=folder)
    options = parser.parse_args()
    found = {str(H): measure(H, options.rounds) for H in options.hidden}
    record = {"machine": machine.describe(), "rounds": options.rounds, "microseconds": found}
    print(report(record))
    if options.out is not None:
        files.write(options.out / "exported.json", json.dumps(record, indent=1) + "\n")
        files.write(options.out / "exported.md", report(record))


if __name__ == "__main__":
    main()
