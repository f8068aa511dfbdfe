"""What the checks run on: the CUDA kernels, and in their place, to try the checks themselves, what a CPU has."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from prnn import ops
from tests.gpu import stand_in
from tests.ops.problems import layer

# Of each kind of arithmetic the dtype of its tensors. tf32: float32 whose products may be rounded.
KINDS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "tf32": torch.float32,
}


class DoesNotFit(Exception):
    """No kernel of this regime holds this layer on this GPU: there is nothing to check."""


@dataclass(frozen=True)
class Target:
    """A device, the backend forced on it (None: no choice), the kinds of arithmetic and the regimes it has. ``layer``
    runs one direction, ``directions`` both, as ``prnn.ops.layer``; None says that there is no such.
    """

    name: str
    device: str
    backend: str | None
    kinds: tuple[str, ...]
    regimes: tuple[str | None, ...] = (None,)
    layer: Callable[..., tuple[torch.Tensor | None, ...]] = layer
    directions: Callable[..., tuple[torch.Tensor, tuple[torch.Tensor, ...]]] | None = ops.layer

    @contextmanager
    def forced(self, regime: str | None, kind: str = "float32") -> Iterator[None]:
        """The backend, the regime (None: the cost model chooses) and the precision of float32's products."""
        before = os.environ.pop("PRNN_CUDA_REGIME", None)
        if regime is not None:
            os.environ["PRNN_CUDA_REGIME"] = regime
        torch.backends.cuda.matmul.fp32_precision = "tf32" if kind == "tf32" else "ieee"
        try:
            with ops.backend(self.backend):
                yield
        finally:
            torch.backends.cuda.matmul.fp32_precision = "ieee"
            os.environ.pop("PRNN_CUDA_REGIME", None)
            if before is not None:
                os.environ["PRNN_CUDA_REGIME"] = before

    def refusal(self, cell: str, kind: str, B: int, H: int, regime: str | None) -> str | None:
        """Why no kernel runs this; None if one does."""
        if self.backend is None:
            return None
        number = torch.cuda.current_device() if self.device == "cuda" else 0
        request = ops.Request(cell, 1, B, H, H, KINDS[kind], self.device, False, False, False, number, True)
        with self.forced(regime, kind):
            try:
                ops.choose(request)
            except ops.BackendError as error:
                return str(error)
        return None

    def needs(self, cell: str, kind: str, B: int, H: int, regime: str | None) -> None:
        """Raises DoesNotFit where no kernel runs this."""
        refusal = self.refusal(cell, kind, B, H, regime)
        if refusal is not None:
            raise DoesNotFit(refusal)


CUDA = Target("cuda", "cuda", "cuda", tuple(KINDS), ("block", "cluster", "grid"))
CUDNN = Target("cudnn", "cuda", "torch", ("float32",))  # what runs where no regime holds a layer
CPU = Target("cpu", "cpu", "cpu", ("float32", "bfloat16"))
TORCH = Target("torch", "cpu", "torch", ("float32", "bfloat16", "float16"))
STAND_IN = Target("stand-in", "cpu", None, tuple(KINDS), layer=stand_in.layer, directions=None)
TARGETS = {target.name: target for target in (CUDA, CPU, TORCH, STAND_IN)}


def prepare() -> None:
    """float32 is to be float32, here and in cuDNN."""
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
