"""Captum: integrated gradients of an LSTM classifier with respect to its embedding, 25 steps, T 100."""

from __future__ import annotations

import torch
from captum.attr import LayerIntegratedGradients
from torch import Tensor, nn

from benchmarks.programs.program import Built

PACKAGE = "captum"


class Classifier(nn.Module):
    """A sentence's class from the last state of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1000, 100)
        self.lstm = nn.LSTM(100, 128, batch_first=True, bidirectional=True)
        self.classes = nn.Linear(256, 5)

    def forward(self, words: Tensor) -> Tensor:
        """words [B,T] -> logits [B,5]"""
        _, (h, _) = self.lstm(self.embedding(words))
        return self.classes(h.transpose(0, 1).flatten(1))


def build() -> Built:
    model = Classifier()
    attribution = LayerIntegratedGradients(model, model.embedding)
    words, nothing = torch.randint(1000, (1, 100)), torch.zeros(1, 100, dtype=torch.long)
    return Built(lambda: attribution.attribute(words, nothing, target=2, n_steps=25), model)
