"""Darts RNNModel, forecasts: an epoch of training on 600 values and a forecast of 24, float32."""

from __future__ import annotations

import numpy
import torch
from darts import TimeSeries
from darts.models import RNNModel
from torch import Tensor

from benchmarks.programs.program import Built

PACKAGE = "darts"
QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def build() -> Built:
    times = numpy.arange(600)
    values = numpy.sin(2 * numpy.pi * times / 24) + 0.1 * numpy.random.default_rng(0).standard_normal(600)
    series = TimeSeries.from_values(values.astype(numpy.float32))

    def step() -> Tensor:
        model = RNNModel(
            72, "LSTM", hidden_dim=64, training_length=96, n_epochs=1, random_state=0,
            pl_trainer_kwargs=QUIET | {"enable_checkpointing": False},
        )  # fmt: skip
        model.fit(series)
        return torch.from_numpy(model.predict(24).values())

    return Built(step)
