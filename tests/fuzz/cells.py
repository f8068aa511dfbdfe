"""Random cells through ``prnn.Recurrent``: the compiled kernels against the equations in float64, run as a loop under
autograd; outputs, final states and every gradient, in some calls for each cell.

``rounding`` says how far a kernel may be off. The calls are made in one child process, which a crash ends; under
sanitizers with ``python -m tests.fuzz.sanitized --target cells``.

Shapes: T time steps, B batch, I input size, H hidden size.
"""

from __future__ import annotations

import copy
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import prnn
from prnn.check.values import Given, Outputs, Results, results, unequal
from tests.codegen.random_expressions import random_cell
from tests.fuzz import child
from tests.fuzz.rounding import Thresholds, fault, near, says_something

TRIALS = 8
CALLS = 10  # of a cell: to compile it takes as long as twenty of them
STEPS, BATCHES = (1, 1, 2, 3, 5, 9), (0, 1, 1, 2, 3, 5)
UNITS, INPUTS = (1, 2, 3, 5, 8, 12, 16, 17, 33, 100), (1, 2, 3, 17)
INCONCLUSIVE = ("near a threshold", "too large")  # the first is a quarter of the calls


def trial(rng: random.Random, folder: Path) -> None:
    """One cell."""
    child.ask(__name__, rng.getrandbits(63))


def check(seed: int) -> str | None:
    """What is wrong with a cell, or None."""
    rng = random.Random(seed)
    made = random_cell(rng.getrandbits(32))
    signature = made.signature
    params = {name: rng.choice((prnn.scalar, prnn.per_unit))(nn.init.normal_) for name in signature.params}
    options: Any = {"output": signature.output, "recurrent": signature.recurrent}
    cell = prnn.cell(signature.gates, signature.states, params, signature.inputs, **options)(made.function)
    dtype = torch.bfloat16 if rng.random() < 0.15 else torch.float32
    for _ in range(CALLS):
        call = _Call(cell, dtype, rng)
        words = f"{call.words()}\n{made.function.source}\n{signature}"
        print(words, file=sys.stderr, flush=True)  # which is shown if it crashes
        try:
            verdict = call.verdict()
        except Exception as error:
            verdict = f"{type(error).__name__}: {error}"
        if verdict not in ("right", *INCONCLUSIVE):
            return f"{verdict}\n{words}"
    return None


class _Call:
    """Layers of the cell, the operands of one call, and what its gradients are wanted of, all at random."""

    def __init__(self, cell: Any, dtype: torch.dtype, rng: random.Random) -> None:
        self.dtype, self.rng, self.generator = dtype, rng, torch.Generator().manual_seed(rng.getrandbits(63))
        torch.manual_seed(rng.getrandbits(63))
        T, B, H = rng.choice(STEPS), rng.choice(BATCHES), rng.choice(UNITS)
        if self.chance(0.04):  # several chunks of steps
            T, B, H = rng.choice(((70, 5, 3), (2, 150, 5)))
        heads = [n for n in range(1, H + 1) if H % n == 0] if cell.signature.recurrent == "dense" else [1]
        self.layer = prnn.Recurrent(
            cell,
            rng.choice(INPUTS),
            H,
            num_layers=rng.choice((1, 1, 1, 2, 3)),
            bias=rng.choice((True, True, False, "input", "recurrent")),
            batch_first=self.chance(0.2),
            bidirectional=self.chance(0.25),
            heads=rng.choice((1, rng.choice(heads))),
            dtype=dtype,
        )
        for parameter in self.layer.parameters():
            parameter.requires_grad_(self.chance(0.9))
        self.given = self._operands(T, B)
        names = ("x", *(f"initial {name}" for name in self.given.state or {}), *self.given.inputs)
        self.constant = {name for name in names if self.chance(0.2)}
        self.unseen = {name for name in ("output", *cell.signature.states) if self.chance(0.2)}
        self.learns = self.chance(0.9)

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def _operands(self, T: int, B: int) -> Given:
        layer, H, signature = self.layer, self.layer.hidden_size, self.layer.cell.signature
        rows = layer.num_layers * (2 if layer.bidirectional else 1)
        lengths = (
            torch.tensor([self.rng.randint(0, T) for _ in range(B)], dtype=torch.int64) if self.chance(0.3) else None
        )
        resets = torch.rand(T, B, generator=self.generator) < 0.3 if self.chance(0.3) else None
        state = None
        if self.chance(0.7):
            state = {name: self._uniform(rows, B, H) for name in signature.states if self.chance(0.9)}
            state = {name: tensor.to(self.dtype) if name == "h" else tensor for name, tensor in state.items()}
        shapes = ((T, B, H), (T, B, H), (T, 1, 1), (H,))
        inputs = {name: self._uniform(*self.rng.choice(shapes)) for name in signature.inputs}
        x = torch.randn(T, B, layer.input_size, generator=self.generator)
        if lengths is not None and self.chance(0.5):
            x[torch.arange(T).unsqueeze(1) >= lengths] = torch.nan
        return Given(x.to(self.dtype), state, lengths, resets, inputs)

    def _uniform(self, *shape: int) -> Tensor:
        return 4 * torch.rand(shape, generator=self.generator) - 2

    def verdict(self) -> str:
        """ "right", what is wrong, or why nothing can be said."""
        self.layer.compile_native()
        exact, witnesses = self._exact(), (self._loop(), self._changed())
        if not says_something(exact[0], [run for run, _ in witnesses]):
            return "too large"
        if near(exact[1], [thresholds for _, thresholds in witnesses]):
            return "near a threshold"
        computed, again = (self._native(threads) for threads in self.rng.sample((1, 2), 2))
        difference, where = unequal(computed, again)
        if difference:
            return f"{where} differs by {difference:.3g} between one and two threads"
        return fault(computed, exact[0], [run for run, _ in witnesses], self.dtype) or "right"

    def _native(self, threads: int) -> Results:
        torch.set_num_threads(threads)
        try:
            with prnn.backend("cpu"):
                return self._results(self.layer, self.given)
        finally:
            torch.set_num_threads(1)

    def _exact(self) -> tuple[Results, Thresholds]:
        return self._equations(copy.deepcopy(self.layer).double(), self.given.double())

    def _loop(self) -> tuple[Results, Thresholds]:
        return self._equations(self.layer, self.given)

    def _changed(self) -> tuple[Results, Thresholds]:
        """In float64, of operands that were changed by a rounding error."""

        def change(tensor: Tensor) -> Tensor:
            noise = torch.randn(tensor.shape, generator=self.generator, dtype=torch.float64)
            return tensor * (1 + torch.finfo(self.dtype).eps * noise)

        layer = copy.deepcopy(self.layer).double()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_(change(parameter))
        return self._equations(layer, self.given.double().map(lambda _, tensor: change(tensor)))

    def _equations(self, layer: nn.Module, given: Given) -> tuple[Results, Thresholds]:
        with prnn.backend("reference"), Thresholds() as thresholds:
            return self._results(layer, given), thresholds

    def _results(self, layer: nn.Module, given: Given) -> Results:
        with torch.set_grad_enabled(self.learns):
            return results(self._run, layer, given, self._loss)

    def _run(self, layer: nn.Module, given: Given) -> Outputs:
        given = given.map(lambda name, tensor: tensor.detach() if name in self.constant else tensor)

        def layout(tensor: Tensor) -> Tensor:
            return tensor.transpose(0, 1) if self.layer.batch_first and tensor.dim() > 1 else tensor

        inputs = {name: layout(tensor) for name, tensor in given.inputs.items()}
        resets = None if given.resets is None else layout(given.resets)
        output, final = layer(
            layout(given.x), given.state or None, lengths=given.lengths, resets=resets, inputs=inputs or None
        )
        return layout(output), final

    def _loss(self, output: Tensor, final: Any) -> list[Tensor]:
        seen = {"output": output, **final}
        # With different weights, so that no two gradients cancel.
        weighted = {name: tensor.double() * (1 - 0.17 * number) for number, (name, tensor) in enumerate(seen.items())}
        return [tensor for name, tensor in weighted.items() if name not in self.unseen]

    def words(self) -> str:
        given = self.given
        shapes = {"state": {name: [*tensor.shape] for name, tensor in (given.state or {}).items()}}
        shapes["inputs"] = {name: [*tensor.shape] for name, tensor in given.inputs.items()}
        told = f"{given.words()}, {shapes}, gradients not wanted of {sorted(self.constant)}, "
        return f"{told}loss without {sorted(self.unseen)}\n{self.layer}, bias {self.layer.bias}, {self.dtype}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="prnn-fuzz-cells-") as cache:  # of compiled cells, none needed again
        os.environ["PRNN_CACHE"] = cache
        child.main(check)
