"""NeuralForecast LSTM, forecasts: 20 steps of training on 8 series of 300 values and a forecast of 12."""

from __future__ import annotations

import numpy
import pandas
import torch
from neuralforecast import NeuralForecast
from neuralforecast.models import LSTM
from torch import Tensor

from benchmarks.programs.program import Built

PACKAGE = "neuralforecast"


def build() -> Built:
    noise = numpy.random.default_rng(0).standard_normal((8, 300))
    values = numpy.sin(2 * numpy.pi * numpy.arange(300) / 12) + 0.1 * noise
    frame = pandas.DataFrame(
        {"unique_id": numpy.repeat(numpy.arange(8), 300), "ds": numpy.tile(numpy.arange(300), 8), "y": values.ravel()}
    )

    def step() -> Tensor:
        model = LSTM(
            h=12, input_size=48, encoder_hidden_size=128, max_steps=20, random_seed=0, accelerator="cpu", logger=False,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        )  # fmt: skip
        forecast = NeuralForecast([model], freq=1)
        forecast.fit(frame)
        return torch.from_numpy(forecast.predict()["LSTM"].to_numpy())

    return Built(step)
