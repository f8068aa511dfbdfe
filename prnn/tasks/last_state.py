"""A many-to-one model: the answer is computed from the outputs of the last step, or of all steps.

T: time steps, B: batch, I: input size, H: hidden size, K: outputs.
"""

from __future__ import annotations

from torch import Tensor, nn

from prnn.config import ModelConfig
from prnn.nn import build


class LastState(nn.Module):
    """Recurrent layers, dropout, and a linear layer on the last layer's output at the last step, or its sum over time.

    The linear layer is initialised like Keras' Dense, which the IRNN presets rely on: weights uniform within
    sqrt(6 / (H + K)) (Glorot and Bengio, 2010), biases 0.
    """

    def __init__(self, input_size: int, answers: int, model: ModelConfig, counts: bool = False) -> None:
        super().__init__()
        self.counts = counts
        self.recurrent: nn.Module = build(model, input_size)
        self.dropout = nn.Dropout(model.dropout)
        self.head = nn.Linear(model.hidden_size, answers)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """[T, B, I] to [B, K]."""
        outputs, state = self.recurrent(inputs)  # [T, B, H]
        if self.counts:
            answer = outputs.sum(0)
        elif isinstance(state, dict):  # of a cell in Python, whose output may be another than h
            answer = outputs[-1]
        else:  # the same, without a gradient of zeros for all other steps
            answer = (state[0] if isinstance(state, tuple) else state)[-1]
        return self.head(self.dropout(answer))
