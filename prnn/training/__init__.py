"""The training loop and its building blocks. Depends on the Task protocol, never on a particular task."""

from prnn.training.loop import Outcome, fit

__all__ = ["Outcome", "fit"]
