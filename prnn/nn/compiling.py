"""torch.compile for layers that are instances of torch.nn's classes.

torch._dynamo leaves every instance of torch.nn.RNN, GRU and LSTM out of the graph before it looks at its forward pass,
unless ``torch._dynamo.config.allow_rnn`` is on. On for all, it would unroll torch.nn's own layers over time. So it is
on while a layer of prnn is looked at, whose forward pass is one operator.

torch._dynamo takes seconds to import and most programs never do: the switch waits for the import.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from torch import nn

_BUILDER = "torch._dynamo.variables.builder"


def allow(layers: type[nn.Module]) -> None:
    """Have torch.compile look into modules of this class."""
    loaded = sys.modules.get(_BUILDER)
    if loaded is None:
        sys.meta_path.insert(0, _AtImport(layers))
    else:
        _switch(loaded, layers)


def _switch(builder: ModuleType, layers: type[nn.Module]) -> None:
    wrap = builder.VariableBuilder.wrap_module

    def wrap_module(self: Any, value: nn.Module) -> Any:
        if not isinstance(value, layers):
            return wrap(self, value)
        with builder.config.patch(allow_rnn=True):
            return wrap(self, value)

    builder.VariableBuilder.wrap_module = wrap_module


class _AtImport(MetaPathFinder):
    """Adds the switch when torch._dynamo is imported, and is gone then."""

    def __init__(self, layers: type[nn.Module]) -> None:
        self._layers = layers

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _BUILDER:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            _switch(module, self._layers)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
