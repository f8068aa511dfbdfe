"""Training: the loop and what it stands on. Knows the Task protocol, never a particular task."""

from prnn.training.loop import Outcome, fit

__all__ = ["Outcome", "fit"]
