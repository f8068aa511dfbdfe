"""Run by test_torch_alone.py in a process of its own: layers where nothing but torch, and what torch requires, is
there. Prints what it has run.
"""

from __future__ import annotations

import importlib.metadata as metadata
import re
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from typing import Any


def required_by(distribution: str) -> set[str]:
    """The names of the distributions that this one needs, and of those that they need, its own among them."""
    found, pending = set(), [distribution]
    while pending:
        name = re.sub(r"[-_.]+", "-", pending.pop()).lower()
        if name in found:
            continue
        found.add(name)
        try:
            asked = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # it is for another platform
            continue
        pending += [re.match(r"[\w.-]+", each)[0] for each in asked if "extra ==" not in each]
    return found


class Hide:
    """A finder of modules, without those that are hidden: an import fails as if they were not installed."""

    def __init__(self, finder: Any, hidden: set[str]) -> None:
        self.finder, self.hidden = finder, hidden

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        return None if name.partition(".")[0] in self.hidden else self.finder.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)


# NumPy is torch's, though torch works without it.
allowed = required_by("torch") | {"numpy"}
hidden = {
    module
    for module, owners in metadata.packages_distributions().items()
    if not any(re.sub(r"[-_.]+", "-", owner).lower() in allowed for owner in owners)
} - {"prnn"}
assert {"omegaconf", "hydra", "yaml"} <= hidden and not {"torch", "numpy", "sympy"} & hidden
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
