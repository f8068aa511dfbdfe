"""A many-to-one model: the output is computed from the final state of a sequence.

T: time steps, B: batch, I: input size, H: hidden size, K: outputs.
"""

from __future__ import annotations

from torch import Tensor, nn

from prnn.config import ModelConfig
from prnn.nn import build


class LastState(nn.Module):
    """Recurrent layers, dropout, and a linear layer on the last layer's final state.

    The linear layer is initialised like Keras' Dense, which the IRNN presets rely on: weights uniform within
    sqrt(6 / (H + K)) (Glorot and Bengio, 2010), biases 0.
    """

    def __init__(self, input_size: int, answers: int, model: ModelConfig) -> None:
        super().__init__()
        self.recurrent: nn.Module = build(model, input_size)
        self.dropout = nn.Dropout(model.dropout)
        self.head = nn.Linear(model.hidden_size, answers)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """[T, B, I] to [B, K]."""
        _, state = self.recurrent(inputs)
        h_n = state[0] if isinstance(state, tuple) else state  # [L, B, H]
        return self.head(self.dropout(h_n[-1]))
