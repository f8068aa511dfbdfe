"""What the CUDA kernels of networks with soft stacks or lists must do on a GPU; ``checks`` runs them with the others.

Shapes: T time steps, B batch, H hidden size; S memories of N cells each, K of them are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import NamedTuple

import torch

from prnn.ops.memory import Memories, Operands, memory_recurrence, reference, refusal
from tests.gpu import bounds, compare
from tests.gpu.compare import Errors, Figures, judged, require
from tests.gpu.targets import Target

KINDS = {"pushpop": Memories(2), "noop": Memories(3), "list": Memories(3, list=True)}
DTYPES = {"float32": torch.float32, "float64": torch.float64}
# T, B, H, S, N, K: odd ones, the paper's, more samples than run side by side.
SIZES = (
    (1, 1, 1, 1, 2, 1),
    (9, 11, 17, 3, 6, 3),
    (50, 32, 40, 10, 200, 2),
    (7, 5, 90, 20, 40, 2),
    (3, 3000, 20, 2, 8, 2),
)


class Memory(NamedTuple):
    """One network with memories: what kind, the kind of arithmetic, T, B, H, S, N, K, and what it begins with."""

    memories: str  # of KINDS
    kind: str
    size: tuple[int, ...]
    recurrent: bool
    fresh: bool

    @property
    def draws(self) -> int:
        return 16 if self.size[1] * self.size[2] < 100 else 1  # a result of a few elements may be small by cancellation


def draw(case: Memory, number: int = 0) -> Operands:
    """The ``number``-th drawing: operands in float64, as the dtype rounds them, on the CPU."""
    (T, B, H, S, N, K), kind = case.size, KINDS[case.memories]
    generator = torch.Generator().manual_seed(number * 1_000_003 + sum(case.size))

    def some(*shape: int, scale: float = 0.7) -> torch.Tensor:
        drawn = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
        return drawn.to(DTYPES[case.kind]).double()

    memory0 = (
        torch.full((N, B, S), kind.empty).double()
        if case.fresh
        else some(N, B, S).sigmoid().to(DTYPES[case.kind]).double()
    )
    weight_hh = some(H, H, scale=H**-0.5) if case.recurrent else None
    return Operands(some(T, B, H), weight_hh, some(H, S * K), some(S * (kind.actions + 1), H), some(B, H), memory0)


def cases() -> Iterator[Memory]:
    for (number, size), kind, (name, memories) in product(enumerate(SIZES), DTYPES, KINDS.items()):
        if memories.list and size[4] // 2 + size[5] > size[4]:
            continue
        for fresh in (True, False):
            yield Memory(name, kind, size, number % 2 == 0, fresh)


def measured(target: Target, case: Memory, seed: int = 0) -> Errors:
    """The errors of output, memories and all gradients against the equations in double precision on the CPU."""
    drawn = [draw(case, seed * case.draws + number) for number in range(case.draws)]
    right = [_evaluate(operands, case, reference, torch.float64, "cpu") for operands in drawn]
    function = partial(memory_recurrence, fresh=case.fresh)
    with target.forced(None):
        found, again = (
            [_evaluate(operands, case, function, DTYPES[case.kind], target.device) for operands in drawn]
            for _ in range(2)
        )
    return compare.errors(found, again, {what: torch.stack([one[what] for one in right]) for what in right[0]})


def _evaluate(
    drawn: Operands,
    case: Memory,
    function: Callable[[Operands, Memories], tuple[torch.Tensor, torch.Tensor]],
    dtype: torch.dtype,
    device: str,
) -> dict[str, torch.Tensor]:
    given = Operands(*(None if x is None else x.to(device, dtype).requires_grad_() for x in drawn))
    given = given._replace(memory0=given.memory0.detach()) if case.fresh else given
    given = given if case.recurrent else given._replace(h0=given.h0.detach())
    found = function(given, KINDS[case.memories])
    weights = [torch.arange(x.numel(), dtype=torch.float64).cos().view_as(x).to(x) for x in found]
    wanted = {f"grad_{name}": x for name, x in given._asdict().items() if x is not None and x.requires_grad}
    grads = torch.autograd.grad(found, list(wanted.values()), weights)
    return dict(zip(("output", "memory_n"), found, strict=True)) | dict(zip(wanted, grads, strict=True))


def memories_are_right(target: Target, case: Memory) -> Figures:
    errors = measured(target, case)
    return judged(errors, {what: bounds.of("memories", case.kind, what) for what in errors})


def what_does_not_fit_runs_by_steps(device: str = "cuda") -> None:
    kind = Memories(2)
    case = Memory("pushpop", "float32", (2, 2, 400, 2, 5, 2), True, False)
    given = Operands(*(None if x is None else x.to(device) for x in draw(case)))
    require("400 units" in (refusal(given, kind) or ""), str(refusal(given, kind)))
    right = reference(given, kind)
    same = [torch.equal(mine, other) for mine, other in zip(memory_recurrence(given, kind), right, strict=True)]
    require(all(same), "the steps gave other bits")


def name_of(case: Memory) -> str:
    size = " ".join(f"{letter}{n}" for letter, n in zip("TBHSNK", case.size, strict=True))
    return f"memories {case.memories} {case.kind} {size} {'fresh' if case.fresh else 'filled'}"


def checks(target: Target) -> Iterator[tuple[str, Callable[[], Figures | None]]]:
    """Name and function of each."""
    if target.device == "cuda":
        yield "memories that do not fit", what_does_not_fit_runs_by_steps
    for case in cases():
        yield name_of(case), partial(memories_are_right, target, case)
