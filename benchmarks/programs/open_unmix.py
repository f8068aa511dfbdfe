"""Open-Unmix, music separation: a training step of the model umx, B 4, T 128, without dropout."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from openunmix.model import OpenUnmix

from benchmarks.programs.program import Built, training

PACKAGE = "openunmix"


def build() -> Built:
    model = OpenUnmix(nb_bins=2049, max_bin=1487)
    model.lstm.dropout = 0.0
    mixture = torch.rand(4, 2, 2049, 128)
    target = mixture * torch.rand_like(mixture)
    return training(model, torch.optim.Adam(model.parameters(), 1e-3), lambda: F.mse_loss(model(mixture), target))
