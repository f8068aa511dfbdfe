"""Recurrent modules: drop-in for ``torch.nn``'s."""

from prnn.nn.recurrent import GRU, LSTM, RNN, explain

__all__ = ["GRU", "LSTM", "RNN", "explain"]
