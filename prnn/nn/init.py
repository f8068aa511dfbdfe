"""Initialisations of recurrent modules beyond ``torch.nn``'s own."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from prnn.nn.layers import RecurrentLayers
from prnn.nn.recurrent import LSTM

Layers = TypeVar("Layers", bound=RecurrentLayers)


@torch.no_grad()
def identity_(module: Layers, scale: float = 1.0, input_std: float = 1e-3) -> Layers:
    """IRNN: recurrent weights ``scale`` times the identity, biases 0, input weights N(0, input_std).

    For layers with a square ``weight_hh``: RNN, and a cell written in Python with one gate, whose own parameters stay.

    With ReLU and scale 1, a state without input keeps its value and its gradient; with a scale below 1 (0.01 for
    speech in the paper) both decay. Le, Jaitly and Hinton (2015), arXiv:1504.00941, section 3.
    """
    for name, parameter in module.named_parameters():
        kind = name.removesuffix("_reverse").rpartition("_l")[0]
        if kind == "weight_hh":
            nn.init.eye_(parameter).mul_(scale)
        elif kind == "weight_ih":
            nn.init.normal_(parameter, std=input_std)
        elif kind in ("bias_ih", "bias_hh"):
            nn.init.zeros_(parameter)
    return module


@torch.no_grad()
def forget_bias_(module: LSTM, value: float = 1.0) -> LSTM:
    """Initialise the forget gates' bias to ``value`` (Gers et al., 2000; Jozefowicz et al., 2015: 1).

    bias_ih is set to it and bias_hh to 0, since the two are added.
    """
    H = module.hidden_size
    for name, parameter in module.named_parameters():
        if name.startswith("bias"):  # [4*H]: input, forget, cell and output gate
            parameter[H : 2 * H] = value if name.startswith("bias_ih") else 0.0
    return module


@torch.no_grad()
def single_bias_(module: Layers) -> Layers:
    """Set the second bias, bias_hh, to 0 and stop its training: the layers have one bias each, bias_ih.

    torch.nn and cuDNN add two, whose gradients are the same in RNN and LSTM: their sum then moves by two updates of the
    optimizer instead of one. Keras' RNN and LSTM, and most papers, have one. ``reset_parameters`` draws the second bias
    again, which then stays as it is drawn: call this after it.
    """
    for name, parameter in module.named_parameters():
        if name.startswith("bias_hh"):
            nn.init.zeros_(parameter).requires_grad_(False)
    return module
