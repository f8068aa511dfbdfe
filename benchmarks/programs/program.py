"""What a program is, how it runs with torch.nn's layers and with prnn's, and how the two are compared and timed.

python -m benchmarks.programs.program NAME --threads N --rounds N    # one program: prints its record as JSON
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol

import numpy
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

import prnn
from benchmarks.common import machine, stats
from benchmarks.kernels.peers import OURS, REFERENCE
from prnn.nn.layers import RecurrentLayers

COMPARED_STEPS = 3
TOLERANCE = 1e-3  # of a tensor's largest element
Record = dict[str, Any]


@dataclass(frozen=True)
class Built:
    """A program that is ready to run.

    ``step`` is a training step, or a call; it returns what is compared: the loss, or the output. ``model`` holds the
    recurrent layers, for ``prnn.convert``; a program without one constructs them in ``step``, under ``prnn.patch``.
    """

    step: Callable[[], Tensor]
    model: nn.Module | None = None


class Program(Protocol):
    """A module of this package: its docstring's first line says what it does."""

    __doc__: str | None
    PACKAGE: str  # its name on PyPI

    @staticmethod
    def build() -> Built:
        """Model and data, with the package's own classes; random numbers are seeded."""


@dataclass
class Run:
    """A program with the layers of torch.nn, or with prnn's."""

    program: Program
    ours: bool
    layers: dict[str, bool] = field(default_factory=dict)  # those that ran, and whether they are prnn's

    def __post_init__(self) -> None:
        _seed()
        self.built = self.program.build()
        if self.ours and self.built.model is not None:
            prnn.convert(self.built.model, verbose=False)

    def step(self) -> Tensor:
        with prnn.patch() if self.ours and self.built.model is None else nullcontext():
            return self.built.step()

    def tensors(self) -> dict[str, Tensor]:
        """What the first steps return, and the gradient that the first one leaves.

        One vector of all parameters: of a bias in front of a batch normalisation, it is nothing but rounding errors.
        """
        found = {}
        hook = register_module_forward_hook(self._note)
        _seed()
        try:
            for number in range(1, COMPARED_STEPS + 1):
                found[f"step {number}"] = self.step().detach().clone()
                if number == 1 and self.built.model is not None:
                    gradients = [each.grad for each in self.built.model.parameters() if each.grad is not None]
                    found |= {"gradient": torch.cat([each.flatten() for each in gradients])} if gradients else {}
        finally:
            hook.remove()
        return found

    def _note(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, nn.RNNBase):
            self.layers[f"{type(module).__name__}({module.extra_repr()})"] = isinstance(module, RecurrentLayers)


def training(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> Built:
    """A program that trains ``model`` on one batch."""

    def step() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return value

    return Built(step, model)


def measure(program: Program, rounds: int) -> Record:
    """Times and ratio; instead, "absent" if the program fails with torch.nn, or "disagreement" if prnn is wrong."""
    record: Record = {
        "does": (program.__doc__ or "").partition("\n")[0].rstrip("."),
        "package": f"{program.PACKAGE} {machine.version(program.PACKAGE)}",
    }
    try:
        reference = Run(program, ours=False)
        expected = reference.tensors()
    except Exception as error:
        return record | {"absent": f"fails with torch.nn: {_shown(error)}"}
    record |= {"layers": list(reference.layers), "by": "patch" if reference.built.model is None else "convert"}
    try:
        ours = Run(program, ours=True)
        actual = ours.tensors()
    except Exception as error:
        return record | {"disagreement": [f"fails with {OURS}: {_shown(error)}"]}
    difference, tensor = stats.disagreement(actual, expected)
    record["difference"] = float(f"{difference:.2g}")
    if difference > TOLERANCE:
        return record | {"disagreement": [f"{OURS} differs from {REFERENCE} by {difference:.2g} in {tensor}"]}
    if not ours.layers or not all(ours.layers.values()):
        left = [layer for layer, own in ours.layers.items() if not own] or ["all"]
        return record | {"disagreement": [f"layers that are still {REFERENCE}'s: {', '.join(left)}"]}
    seconds = stats.interleave({REFERENCE: reference.step, OURS: ours.step}, rounds)
    return record | {
        "milliseconds": {name: stats.milliseconds(values) for name, values in seconds.items()},
        "ratio": stats.ratios(seconds[REFERENCE], seconds[OURS]),
    }


def _seed() -> None:
    random.seed(0)
    numpy.random.seed(0)  # noqa: NPY002 - the packages use it
    torch.manual_seed(0)


def _shown(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0][:200]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    options = parser.parse_args()
    stats.limit_threads(options.threads)
    try:
        program = import_module(f"benchmarks.programs.{options.name}")
    except (ImportError, OSError) as error:  # OSError: one of its libraries was built for another torch
        record = {"absent": f"not installed ({error})"}
    else:
        record = measure(program, options.rounds)
    print(f"\n{json.dumps(record)}")


if __name__ == "__main__":
    main()
