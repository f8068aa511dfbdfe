"""Run by test_torch_alone.py in a process of its own: layers and commands where nothing but torch, and what torch
requires, is there. Prints what it has run.
"""

from __future__ import annotations

import contextlib
import importlib.metadata as metadata
import io
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from typing import Any

from tests.distributions import normalized, required_by


class Hide:
    """A finder of modules, without those that are hidden: an import fails as if they were not installed."""

    def __init__(self, finder: Any, hidden: set[str]) -> None:
        self.finder, self.hidden = finder, hidden

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        return None if name.partition(".")[0] in self.hidden else self.finder.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)


allowed = required_by("torch")
hidden = {
    module
    for module, owners in metadata.packages_distributions().items()
    if not any(normalized(owner) in allowed for owner in owners)
} - {"prnn"}
assert {"omegaconf", "hydra", "yaml", "numpy"} <= hidden and not {"torch", "sympy"} & hidden
sys.meta_path[:] = [Hide(finder, hidden) for finder in sys.meta_path]

import torch  # noqa: E402

import prnn  # noqa: E402
import prnn.nn  # noqa: E402
import prnn.ops  # noqa: E402

for layer in (prnn.RNN(5, 6), prnn.GRU(5, 6, num_layers=2), prnn.LSTM(5, 6, bidirectional=True)):
    x = torch.randn(4, 3, 5, requires_grad=True)
    layer(x)[0].sum().backward()
    assert x.grad.abs().sum() > 0 and all(p.grad.isfinite().all() for p in layer.parameters())
    assert "layer 0" in prnn.explain(layer, x)
    print(type(layer).__name__)
for memories in (prnn.nn.StackRNN(5, 6), prnn.nn.ListRNN(5, 6)):
    x = torch.randn(4, 3, 5, requires_grad=True)
    memories(x)[0].sum().backward()
    assert x.grad.abs().sum() > 0
    print(type(memories).__name__)
with prnn.backend("reference"):
    prnn.LSTM(5, 6)(torch.randn(4, 3, 5))[0].sum().backward()
    print("reference")


def printed(command: Callable[[], int]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert command() == 0
    return out.getvalue()


sys.argv = ["prnn-doctor"]
assert "hydra-core" in printed(import_module("prnn.doctor").main)
check = import_module("prnn.check.__main__").main
assert "GRU" in printed(lambda: check(["prnn.nn.GRU", "--hidden-size", "3"]))
print("doctor check")
for name in ("train", "sample", "report"):
    try:
        import_module(f"prnn.{name}")
    except SystemExit as stop:
        assert stop.code == 2
        print(name)
