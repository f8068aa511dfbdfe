"""Inputs of spiking cells on which a spike depends on no rounding.

A voltage within rounding of its threshold spikes in one implementation and not in another, and from then on the two
sequences differ, both of them right. Among a million voltages some are that close. Samples are independent: more are
drawn than needed, each runs in float64, and those are taken whose voltages stay farthest from the threshold at every
step. On these every implementation must have the same spikes, and the tolerance is that of the other cells.

T: time steps, B: batch, I: input size, H: hidden size.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

import prnn
from benchmarks.kernels.cases import Case

CELLS = ("lif", "alif")
DRAWN = 4  # samples for each one needed
CLOSEST = 2e-5  # of the threshold: some ten times the rounding of a voltage, which is a sum of two hundred numbers


def clear_input(layer: prnn.Recurrent, case: Case) -> tuple[Tensor, str]:
    """x [T,B,I], how close a voltage comes to its threshold, and how many units spike. RuntimeError if a voltage is
    closer than ``CLOSEST``.
    """
    drawn = torch.randn(case.T, DRAWN * case.B, case.I)
    distance, rate = simulated(layer, drawn)
    best = distance.topk(case.B).indices.sort().values
    closest = distance[best].min().item()
    if closest < CLOSEST:
        raise RuntimeError(f"{case.name}: a voltage is {closest:.1e} of the threshold from it: draw more samples")
    note = f"in float64 no voltage is closer to its threshold than {closest:.1e} of it"
    return drawn[:, best].contiguous(), f"{note}; {100 * rate[best].mean():.1f} % of the units spike in a step"


@torch.no_grad()
def simulated(layer: prnn.Recurrent, x: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest |v - threshold| / threshold of each sample [B], all units and steps of x [T,B,I], and the share of
    units that spike in a step; in float64.
    """
    layer, state = copy.deepcopy(layer).double(), None
    smallest = torch.full((x.shape[1],), math.inf, dtype=torch.float64)
    rate = torch.zeros_like(smallest)
    for x_t in x.double().split(1):
        _, state = layer(x_t, state)
        rate += state["h"].mean(dim=(0, 2)) / len(x)
        threshold = layer.threshold_l0
        if "b" in state:  # the adaptation raises it
            threshold = threshold + layer.beta_l0 * state["b"]
        distance = ((state["v"] - threshold) / threshold).abs().amin(dim=(0, 2))
        smallest = torch.minimum(smallest, distance)
    return smallest, rate
