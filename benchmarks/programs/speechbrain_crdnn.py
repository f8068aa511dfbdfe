"""SpeechBrain, speech recognition: a training step of CRDNN with its LSTM and CTC, B 4, 2 s, without dropout."""

from __future__ import annotations

import torch
from speechbrain.lobes.models.CRDNN import CRDNN
from speechbrain.nnet.linear import Linear
from speechbrain.nnet.losses import ctc_loss
from speechbrain.nnet.RNN import LSTM
from torch import nn

from benchmarks.programs.program import Built, training

PACKAGE = "speechbrain"
BATCH, FRAMES, SYMBOLS = 4, 200, 40


def build() -> Built:
    encoder = CRDNN(
        input_size=40,
        dropout=0.0,
        time_pooling=True,
        rnn_class=LSTM,
        rnn_layers=2,
        rnn_neurons=256,
        cnn_channels=[32, 64],
    )
    model = nn.Sequential(encoder, Linear(SYMBOLS, input_size=512), nn.LogSoftmax(-1))
    features, whole = torch.randn(BATCH, FRAMES, 40), torch.ones(BATCH)
    targets = torch.randint(1, SYMBOLS, (BATCH, 20))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    return training(model, optimizer, lambda: ctc_loss(model(features), targets, whole, whole, blank_index=0))
