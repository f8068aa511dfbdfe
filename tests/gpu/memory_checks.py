"""What the CUDA kernels of networks with soft stacks or lists must do on a GPU; ``checks`` runs them with the others.

Shapes: T time steps, B batch, H hidden size; S memories of N cells each, K of them are read.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from prnn.ops.memory import Memories, Operands, memory_recurrence, reference, refusal

KINDS = {"pushpop": Memories(2), "noop": Memories(3), "list": Memories(3, list=True)}
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-11}
# T, B, H, S, N, K: odd ones, the paper's, more samples than run side by side.
SIZES = (
    (1, 1, 1, 1, 2, 1),
    (9, 11, 17, 3, 6, 3),
    (50, 32, 40, 10, 200, 2),
    (7, 5, 90, 20, 40, 2),
    (3, 3000, 20, 2, 8, 2),
)


def draw(size: tuple[int, ...], kind: Memories, recurrent: bool, fresh: bool) -> Operands:
    """Operands in float64 on the CPU, all with a gradient but fresh memories."""
    T, B, H, S, N, K = size
    generator = torch.Generator().manual_seed(sum(size))

    def some(*shape: int, scale: float = 0.7) -> torch.Tensor:
        return scale * torch.randn(shape, generator=generator, dtype=torch.float64)

    memory0 = torch.full((N, B, S), kind.empty).double() if fresh else some(N, B, S).sigmoid()
    weight_hh = some(H, H, scale=H**-0.5) if recurrent else None
    return Operands(some(T, B, H), weight_hh, some(H, S * K), some(S * (kind.actions + 1), H), some(B, H), memory0)


def memories_are_right(
    kind: Memories, dtype: torch.dtype, size: tuple[int, ...], recurrent: bool, fresh: bool, device: str = "cuda"
) -> None:
    """Output, memories and all gradients against the equations in double precision on the CPU."""
    drawn = draw(size, kind, recurrent, fresh)

    def run(double: bool, function: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
        place = {"dtype": torch.float64} if double else {"dtype": dtype, "device": device}
        given = Operands(*(None if x is None else x.to(dtype).to(**place).requires_grad_() for x in drawn))
        given = given._replace(memory0=given.memory0.detach()) if fresh else given
        given = given if recurrent else given._replace(h0=given.h0.detach())
        if not double:
            assert refusal(given, kind) is None, refusal(given, kind)
        found = function(given, kind)
        weights = [torch.arange(x.numel(), dtype=torch.float64).cos().view_as(x).to(x) for x in found]
        wanted = [x for x in given if x is not None and x.requires_grad]
        return [*found, *torch.autograd.grad(found, wanted, weights)]

    ours = partial(memory_recurrence, fresh=fresh)
    every = zip(run(False, ours), run(True, reference), run(False, ours), strict=True)
    for number, (found, right, again) in enumerate(every):
        error = (found.cpu().double() - right).abs().max() / right.abs().max().clamp(min=1)
        assert error <= TOLERANCE[dtype], f"result {number} of {list(found.shape)} is off by {error:.2g}"
        assert torch.equal(found, again), f"result {number}: another run gave other bits"


def what_does_not_fit_runs_by_steps(device: str = "cuda") -> None:
    kind = Memories(2)
    given = Operands(*(None if x is None else x.to(device) for x in draw((2, 2, 400, 2, 5, 2), kind, True, False)))
    assert "400 units" in (refusal(given, kind) or ""), refusal(given, kind)
    right = reference(given, kind)
    assert all(torch.equal(mine, other) for mine, other in zip(memory_recurrence(given, kind), right, strict=True))


def checks() -> dict[str, Callable[[], None]]:
    found: dict[str, Callable[[], None]] = {"memories that do not fit": what_does_not_fit_runs_by_steps}
    for number, size in enumerate(SIZES):
        for dtype in TOLERANCE:
            for name, kind in KINDS.items():
                if kind.list and size[4] // 2 + size[5] > size[4]:
                    continue
                for fresh in (True, False):
                    text = " ".join(f"{letter}{n}" for letter, n in zip("TBHSNK", size, strict=True))
                    words = f"{name} {str(dtype).removeprefix('torch.')} {text} {'fresh' if fresh else 'filled'}"
                    found[f"memories {words}"] = partial(memories_are_right, kind, dtype, size, number % 2 == 0, fresh)
    return found
