"""Stanza, text analysis: a training step of its character language model, B 32, T 100, packed, without dropout."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from stanza.models.common.char_model import CharacterLanguageModel
from stanza.models.common.vocab import CharVocab

from benchmarks.programs.program import Built, training

PACKAGE = "stanza"
BATCH, STEPS = 32, 100
SIZES = {
    "char_emb_dim": 100,
    "char_hidden_dim": 256,
    "char_num_layers": 1,
    "char_rec_dropout": 0.0,
    "char_dropout": 0.0,
}


def build() -> Built:
    vocab = CharVocab(["abcdefghijklmnopqrstuvwxyz .,"])
    model = CharacterLanguageModel(SIZES, {"char": vocab}, is_forward_lm=True)
    text = torch.randint(len(vocab), (BATCH, STEPS + 1))
    lengths = [STEPS] * BATCH

    def loss() -> torch.Tensor:
        return F.cross_entropy(model(text[:, :-1], lengths)[2].flatten(0, 1), text[:, 1:].flatten())

    return training(model, torch.optim.SGD(model.parameters(), 1.0), loss)
