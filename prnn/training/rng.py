"""Global random number generators: seeding, checkpoint state, isolated sections; determinism.

NumPy's global generator is not covered: a task creates its own ``numpy.random.Generator``.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def seed_of(*numbers: int) -> int:
    """A seed derived from these numbers by hashing."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:7], "big")


def seed_all(seed: int) -> None:
    """Seed Python's and torch's global generators (torch's on every device)."""
    random.seed(seed)
    torch.manual_seed(seed)


def get_state(device: torch.device) -> dict[str, Any]:
    """The state of every generator as types that ``torch.load(weights_only=True)`` accepts."""
    state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore a state from ``get_state``."""
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def isolated(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from generators seeded with ``seed``, and restore the training state of the generators afterwards."""
    state = get_state(device)
    seed_all(seed)
    try:
        yield
    finally:
        set_state(state, device)


def set_determinism(deterministic: bool) -> None:
    """Make results bitwise reproducible; nondeterministic operations raise an error. No slowdown on the CPU."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with a workspace
    torch.use_deterministic_algorithms(deterministic)
    # That mode fills empty tensors with NaN, as a debugging aid; it costs a pass over memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
