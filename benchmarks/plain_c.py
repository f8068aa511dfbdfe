"""Time of a step of an exported GRU in plain C (``prnn.export.c``), beside onnxruntime.

    python -m benchmarks.plain_c [--hidden 64] [--rounds 21] [--out benchmarks/results/MACHINE]

B = 1, input and hidden size H, one thread. What a step has to do, for H = 64: 24,576 multiplications and additions and
98 KB of float32 weights, more than the first cache holds: 3,072 cycles at 8 multiplications and additions a cycle
(baseline x86-64: two products and two sums of four floats), and as many at 32 bytes a cycle from the second cache; and
192 activation functions. onnxruntime is called frame by frame, as a stream is processed, and with 1,000 frames at once,
where it multiplies the input's share of all frames by one matrix product.

A round measures the mean over 20,000 steps of each program, after each other; median, minimum and maximum are printed.
The program is compared with the model first, and not timed if it differs. On an EPYC of 2 cores with gcc 12 (us):

    float32, -O2                                  3.78
    float32, -O3                                  2.72
    float32, -O3 -DPRNN_FAST_MATH                 1.77
    float32, -O3 -march=native -DPRNN_FAST_MATH   0.93
    int8, -O3 -DPRNN_FAST_MATH                    3.52
    onnxruntime, 1 frames a call                 11.06
    onnxruntime, 1000 frames a call               1.12
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import prnn
from benchmarks.common import machine, stats
from benchmarks.common.arguments import at_least, folder
from prnn.export import c
from prnn.export.program import Case, State, Step

BOUND = 1e-5  # of the largest entry, before anything is timed
FLAGS = ("-O2", "-O3", "-O3 -DPRNN_FAST_MATH", "-O3 -march=native", "-O3 -march=native -DPRNN_FAST_MATH")
STEPS = 20_000
MAIN = """
#include "model.h"
#include <stdio.h>
#include <time.h>

int main(void) {
  static model_state state;
  static float input[256][MODEL_INPUT_SIZE], output[MODEL_OUTPUT_SIZE];
  unsigned random = 1;
  for (int i = 0; i < 256; i++)
    for (int j = 0; j < MODEL_INPUT_SIZE; j++) {
      random = random * 1664525u + 1013904223u;
      input[i][j] = (float)(random >> 8) / 8388608.0f - 1.0f;
    }
  model_init(&state);
  struct timespec from, to;
  for (int i = 0; i < 1000; i++) model_step(&state, input[i % 256], output);
  clock_gettime(CLOCK_MONOTONIC, &from);
  for (int i = 0; i < STEPS; i++) model_step(&state, input[i % 256], output);
  clock_gettime(CLOCK_MONOTONIC, &to);
  printf("%.9g\\n", ((double)(to.tv_sec - from.tv_sec) + 1e-9 * (double)(to.tv_nsec - from.tv_nsec)) / STEPS);
  return output[0] > 2.0f;
}
"""


def exported(model: nn.Module, H: int) -> tuple[Step, Case]:
    """The GRU's step, and a case of 20 frames."""
    x, h = torch.zeros(1, 1, H), torch.zeros(1, 1, H)
    step = Step(torch.export.export(model, (x, h), strict=False), "x", "y", (State("h", h),))
    x = torch.randn(20, 1, H)
    with torch.no_grad():
        output, final = model.double()(x.double(), h.double())
    model.float()
    return step, Case(x, None, (h[0],), output, (final[0],))


def programs(folder: Path, weights: str) -> dict[str, Path]:
    """The programs that time a step, by their flags."""
    (folder / "main.c").write_text(MAIN)
    found = {}
    for number, flags in enumerate(FLAGS):
        if (error := c.check(folder, "model", BOUND, flags.split())) > (BOUND if weights == "float32" else 0.05):
            sys.exit(f"the C of {weights} weights with {flags} is off by {error:.2g}: it is not timed")
        found[f"{weights}, {flags}"] = program = folder / f"time_{number}"
        options = ["-std=gnu99", *flags.split(), f"-DSTEPS={STEPS}", "-o", str(program)]
        subprocess.run([*c.compiler(), *options, folder / "main.c", folder / "model.c", "-lm"], check=True)
    return found


def session(model: nn.Module, H: int) -> Any:
    """The same layer in onnxruntime; None where that is not installed."""
    try:
        import onnx
        import onnxruntime
    except ImportError:
        return None
    order = [H + i for i in range(H)], list(range(H)), [2 * H + i for i in range(H)]  # z, r, n
    rows = [row for gate in order for row in gate]
    tensors = dict(model.named_parameters())

    def of(name: str) -> Tensor:
        return tensors[f"{name}_l0"].detach()[rows]

    given = {"W": of("weight_ih")[None], "R": of("weight_hh")[None]}
    given["B"] = torch.cat([of("bias_ih"), of("bias_hh")])[None]
    value = onnx.helper.make_tensor_value_info
    inputs = ["x", "W", "R", "B", "", "h"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("GRU", inputs, ["y", "h_n"], hidden_size=H, linear_before_reset=1)],
        "gru",
        [value("x", 1, [None, 1, H]), value("h", 1, [1, 1, H])],
        [value("y", 1, None), value("h_n", 1, None)],
        [onnx.numpy_helper.from_array(tensor.numpy(), name) for name, tensor in given.items()],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    proto.ir_version = 9
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def of_onnxruntime(run: Any, frames: int, H: int) -> float:
    """Seconds a step."""
    given = {"x": torch.randn(frames, 1, H).numpy(), "h": torch.zeros(1, 1, H).numpy()}
    calls = max(1, 4000 // frames)
    run(None, given)
    return stats.once(lambda: [run(None, given) for _ in range(calls)]) / calls / frames


def measure(H: int, rounds: int) -> dict[str, dict[str, float]]:
    """Microseconds a step of each contender."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = prnn.GRU(H, H).eval()
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        contenders: dict[str, Any] = {}
        for weights in c.WEIGHTS:
            step, case = exported(model, H)
            c.write(Path(place) / weights, "model", step, [case], weights)
            contenders |= programs(Path(place) / weights, weights)
        onnx = session(model, H)
        for _ in range(rounds):
            for name, program in contenders.items():
                printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout
                seconds.setdefault(name, []).append(float(printed))
            for frames in (1, 1000) if onnx is not None else ():
                name = f"onnxruntime, {frames} frames a call"
                seconds.setdefault(name, []).append(of_onnxruntime(onnx.run, frames, H))
    return {name: stats.spread([1e6 * each for each in values]) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=at_least(1), default=64)
    parser.add_argument("--rounds", type=at_least(1), default=21)
    parser.add_argument("--out", type=folder)
    options = parser.parse_args()
    found = measure(options.hidden, options.rounds)
    for name, values in found.items():
        print(f"{name:44} {values['median']:7.3f} us  ({values['min']:.3f} to {values['max']:.3f})")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        record = {"machine": machine.describe(), "hidden": options.hidden, "microseconds": found}
        (options.out / "plain_c.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
