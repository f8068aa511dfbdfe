"""EnCodec, audio compression: coding and decoding 2 s at 24 kHz with untrained weights, inference."""

from __future__ import annotations

import torch
from encodec import EncodecModel
from torch import Tensor

from benchmarks.programs.program import Built

PACKAGE = "encodec"


def build() -> Built:
    model = EncodecModel.encodec_model_24khz(pretrained=False).eval()
    audio = torch.randn(1, 1, 48000)

    def step() -> Tensor:
        with torch.inference_mode():
            return model(audio)

    return Built(step, model)
