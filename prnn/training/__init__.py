"""The training loop and its building blocks. Depends on the Task protocol, never on a particular task."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prnn.training.loop import Outcome, fit

__all__ = ["Outcome", "fit"]


def __getattr__(name: str) -> Any:
    """The loop on first use: what reads the files of a run need not import it."""
    if name in __all__:
        return getattr(import_module("prnn.training.loop"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
