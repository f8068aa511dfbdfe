"""Training throughput of a stack-augmented RNN: the fused kernel against a per-step reference implementation.

    python -m benchmarks.memory_networks [--rounds 9] [--threads 1] [--out benchmarks/results/MACHINE]

40 hidden units, 10 stacks of 200 cells of which 2 are read, 10 rows of 5 sequences a^n b^n, n up to 15: a training step
of experiment=stack_rnn, forward and backward, in characters per second. ``filled``: the stacks are full, as after a
long run; otherwise they are empty at first, and only pushed cells need to be processed. Both must first give the same
output and gradients, or nothing is timed. The published C++ trains 2,000 characters/s on one core.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import machine, stats
from benchmarks.common.arguments import at_least, folder
from prnn.data.algorithmic import PROBLEMS, rows
from prnn.nn import StackRNN
from prnn.ops.memory import memory_recurrence, reference

ROWS, SEQUENCES, LARGEST = 10, 5, 15


def step(function: Callable[..., tuple[Tensor, Tensor]], module: StackRNN, x: Tensor, filled: bool) -> list[Tensor]:
    """Output and gradients of one pass."""
    h, memory = module.empty_state(x)
    if filled:
        memory = torch.rand(memory.shape, generator=torch.Generator().manual_seed(1))
    output, _ = function(module._operands(x, (h, memory)), module.kind)
    return [output.detach(), *torch.autograd.grad(output.square().sum(), list(module.parameters()))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=at_least(1), default=9)
    parser.add_argument("--threads", type=at_least(1), default=1)
    parser.add_argument("--out", type=folder, help="folder for memory_networks.json")
    arguments = parser.parse_args()
    stats.limit_threads(arguments.threads)
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    drawn = rows(PROBLEMS["anbn"], random, random.integers(2, LARGEST + 1, (ROWS, SEQUENCES)).tolist())
    x = torch.nn.functional.one_hot(torch.from_numpy(drawn.inputs), 2).float()
    module = StackRNN(2, 40, stacks=10, depth=2, capacity=200, no_op=True)
    characters, cases = int(drawn.trained.sum()), []
    for filled in (False, True):
        ours, right = (step(function, module, x, filled) for function in (memory_recurrence, reference))
        worst = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, right, strict=True))
        if not worst < 1e-4:
            sys.exit(f"the kernel and the reference disagree by {worst:.2g}: nothing was timed")
        seconds: dict[str, list[float]] = {"prnn": [], "a step at a time": []}
        for _ in range(arguments.rounds + 1):
            for name, function in zip(seconds, (memory_recurrence, reference), strict=True):
                began = time.perf_counter()
                step(function, module, x, filled)
                seconds[name].append(time.perf_counter() - began)
        kept = {name: took[1:] for name, took in seconds.items()}  # the first is a warm-up
        ratio = stats.spread([b / a for a, b in zip(*kept.values(), strict=True)])
        rate = {name: round(characters / stats.spread(took, 6)["median"]) for name, took in kept.items()}
        cases.append({"filled": filled, "disagreement": worst, "characters_per_second": rate, "ratio": ratio})
        print(f"{'filled' if filled else 'empty':7} {rate} characters/s; ratio {ratio}; agree to {worst:.1g}")
    if arguments.out:
        record = {"benchmark": "memory_networks", "machine": machine.describe(), "rounds": arguments.rounds}
        stats.write(arguments.out, "memory_networks", {**record, "cases": cases})


if __name__ == "__main__":
    main()
