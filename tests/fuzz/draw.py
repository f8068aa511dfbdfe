"""Random operands, in any memory layout; some are invalid."""

from __future__ import annotations

import random
from typing import Any

SIZES = (1, 1, 2, 3, 4, 5, 8, 17, 33)
LAYOUTS = ("dense", "dense", "offset", "transposed", "gaps", "expanded")


class Draw:
    """Operands at random. ``leaves`` are what gradients are wanted of; ``flaw`` is what makes the call a wrong one."""

    def __init__(self, seed: int) -> None:
        import torch

        self.torch, self.rng = torch, random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        dtypes = (torch.float32,) * 4 + (torch.float64, torch.bfloat16, torch.bfloat16, torch.float16)
        self.dtype = self.rng.choice(dtypes)
        self.leaves: list[Any] = []
        self.flaw: str | None = None

    def size(self) -> int:
        return 0 if self.chance(0.06) else self.rng.choice(SIZES)

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def tensor(self, *shape: int, scale: float = 1.0) -> Any:
        """One operand, a view of a leaf: however it lies in memory."""
        torch, layout = self.torch, self.rng.choice(LAYOUTS)
        large = [*shape]
        if layout == "transposed":
            large = large[::-1]
        elif layout == "gaps":
            large = [2 * n + 1 for n in shape]
        elif layout == "expanded":
            large[0] = min(1, shape[0])
        elif layout == "offset":
            large = [shape[0] + 1, *shape[1:]]
        drawn = scale * torch.randn(*large, generator=self.generator, dtype=torch.float64)
        leaf = drawn.to(self.dtype).requires_grad_(self.chance(0.7))
        self.leaves.append(leaf)
        if layout == "transposed":
            return leaf.permute(*reversed(range(leaf.dim())))
        if layout == "gaps":
            return leaf[tuple(slice(1, None, 2) for _ in shape)]
        if layout == "expanded":
            return leaf.expand(*shape)
        return leaf[1:] if layout == "offset" else leaf

    def spoil(self, operands: dict[str, Any], flaw: str) -> None:
        """Give one operand a flaw."""
        torch, rng = self.torch, self.rng
        name = rng.choice([key for key, value in operands.items() if value is not None])
        given, self.flaw = operands[name], f"{flaw} of {name}"
        if flaw == "shape":
            shape = [*given.shape]
            at = rng.randrange(len(shape))
            shape[at] = shape[at] + 1 if shape[at] == 0 or self.chance(0.5) else rng.choice((0, shape[at] - 1))
            operands[name] = torch.ones(shape).to(given.dtype)
        elif flaw == "rank":
            operands[name] = given.unsqueeze(0) if self.chance(0.5) else given.reshape(-1).unsqueeze(1).unsqueeze(1)
            operands[name] = operands[name].unsqueeze(0) if operands[name].dim() == given.dim() else operands[name]
        elif flaw == "scalar":
            operands[name] = torch.zeros((), dtype=given.dtype)
        elif flaw == "dtype":
            others = (torch.int64, torch.complex64, torch.float64, torch.bool, torch.uint8, torch.float8_e5m2)
            operands[name] = given.detach().to(rng.choice(others))
        elif flaw == "device":
            operands[name] = torch.empty(given.shape, dtype=given.dtype, device="meta")
        elif flaw == "sparse":
            operands[name] = torch.zeros(given.shape, dtype=given.dtype).to_sparse()
