"""GluonTS DeepAR, forecasts: a training step of DeepARModel, B 32, T 192, without dropout."""

from __future__ import annotations

import torch
from gluonts.torch.model.deepar.module import DeepARModel

from benchmarks.programs.program import Built, training

PACKAGE = "gluonts"
BATCH, CONTEXT, FUTURE = 32, 168, 24


def build() -> Built:
    model = DeepARModel("h", CONTEXT, FUTURE, num_feat_dynamic_real=4, cardinality=[10], dropout_rate=0.0)
    past = model.past_length
    batch = {
        "feat_static_cat": torch.randint(10, (BATCH, 1)),
        "feat_static_real": torch.randn(BATCH, 1),
        "past_time_feat": torch.randn(BATCH, past, 4),
        "past_target": torch.rand(BATCH, past) + 0.5,
        "past_observed_values": torch.ones(BATCH, past),
        "future_time_feat": torch.randn(BATCH, FUTURE, 4),
        "future_target": torch.rand(BATCH, FUTURE) + 0.5,
        "future_observed_values": torch.ones(BATCH, FUTURE),
    }
    return training(model, torch.optim.Adam(model.parameters(), 1e-3), lambda: model.loss(**batch).mean())
