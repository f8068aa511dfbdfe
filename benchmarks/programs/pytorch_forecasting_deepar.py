"""PyTorch Forecasting: a training step of DeepAR, whose LSTM derives from torch.nn's, B 64, T 60 and 20, packed."""

from __future__ import annotations

import numpy
import pandas
import torch
from pytorch_forecasting import DeepAR, TimeSeriesDataSet
from torch import Tensor

from benchmarks.programs.program import Built, training

PACKAGE = "pytorch-forecasting"


def build() -> Built:
    noise = numpy.random.default_rng(0).standard_normal((16, 200))
    values = numpy.sin(2 * numpy.pi * numpy.arange(200) / 12) + 0.1 * noise + 2
    frame = pandas.DataFrame(
        {
            "series": numpy.repeat([f"{number}" for number in range(16)], 200),
            "time": numpy.tile(numpy.arange(200), 16),
            "value": values.ravel().astype(numpy.float32),
        }
    )
    dataset = TimeSeriesDataSet(
        frame, "time", "value", ["series"], max_encoder_length=60, max_prediction_length=20, min_encoder_length=30,
        time_varying_unknown_reals=["value"], static_categoricals=["series"],
    )  # fmt: skip
    model = DeepAR.from_dataset(dataset, hidden_size=64, rnn_layers=2, dropout=0.0)
    x, (y, _) = next(iter(dataset.to_dataloader(train=True, batch_size=64, num_workers=0)))

    def loss() -> Tensor:
        return model.loss(model(x)["prediction"], y)

    return training(model, torch.optim.Adam(model.parameters(), 1e-3), loss)
