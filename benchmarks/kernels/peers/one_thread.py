"""prnn on one thread, beside prnn on all of them."""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks.kernels.peers import torch_nn
from benchmarks.kernels.peers.base import Contender, Problem


def build(problem: Problem) -> Contender:
    contender = torch_nn.build_prnn(problem)

    def run() -> object:
        torch.set_num_threads(1)
        try:
            return contender.run()
        finally:
            torch.set_num_threads(problem.threads)

    return replace(contender, run=run, compared=False)
