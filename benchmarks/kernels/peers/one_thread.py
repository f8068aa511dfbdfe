"""prnn on one thread, beside prnn on all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from benchmarks.kernels.peers import torch_nn
from benchmarks.kernels.peers.base import Contender, Problem


def build(problem: Problem) -> Contender:
    contender = torch_nn.build_prnn(problem)

    def alone(function: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            torch.set_num_threads(1)
            try:
                return function()
            finally:
                torch.set_num_threads(problem.threads)

        return run

    return replace(contender, run=alone(contender.run), tensors=alone(contender.tensors))
