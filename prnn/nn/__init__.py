"""Recurrent modules: drop-in for ``torch.nn``'s.

RNNCell, GRUCell and LSTMCell are ``torch.nn``'s own: a call of one step has no weights to keep for the next.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from torch.nn import GRUCell, LSTMCell, RNNCell

from prnn.nn.build import build
from prnn.nn.conversion import convert, patch
from prnn.nn.init import forget_bias_, identity_, single_bias_
from prnn.nn.layers import explain
from prnn.nn.recurrent import GRU, LSTM, RNN
from prnn.nn.stack import ListRNN, StackRNN
from prnn.nn.streaming import Stream

if TYPE_CHECKING:
    from prnn.nn.user_cell import Recurrent

__all__ = [
    "GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "ListRNN", "RNNCell", "Recurrent", "StackRNN", "Stream", "build",
    "convert", "explain", "forget_bias_", "identity_", "patch", "single_bias_",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Recurrent on first use: without a cell in Python nothing of what compiles one is imported."""
    if name == "Recurrent":
        return import_module("prnn.nn.user_cell").Recurrent
    raise AttributeError(f"module 'prnn.nn' has no attribute {name!r}")
