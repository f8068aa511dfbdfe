"""Recurrent modules: drop-in for ``torch.nn``'s."""

from prnn.nn.build import build
from prnn.nn.init import forget_bias_, identity_
from prnn.nn.recurrent import GRU, LSTM, RNN, explain
from prnn.nn.stack import ListRNN, StackRNN
from prnn.nn.user_cell import Recurrent

__all__ = ["GRU", "LSTM", "RNN", "ListRNN", "Recurrent", "StackRNN", "build", "explain", "forget_bias_", "identity_"]
