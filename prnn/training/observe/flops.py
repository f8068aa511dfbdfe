"""Achieved FLOP/s and, where the device's peak is known, model FLOPs utilization (MFU).

Counted as in PaLM (arXiv:2204.02311, appendix B): the model's forward and backward pass, matrix multiplications only
(``prnn.ops.flops`` has the details), without recomputation.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import prnn.ops.flops  # noqa: F401  (registers the FLOP formulas of the custom operators)
from prnn.config import TrainConfig, TrainerConfig
from prnn.task import Batch, Task
from prnn.training import rng
from prnn.training.device import autocast, to_device
from prnn.training.observe.console import silence

# Peak TFLOP/s by the exact name of a whole GPU (a MIG slice has another name): dense bfloat16 and float16, tf32, and
# float32 without tensor cores. From NVIDIA's data sheets and white papers; figures for 2:4 sparsity are halved.
_SXM = (989.4, 494.7, 66.9)
_AMPERE = (312.0, 156.0, 19.5)
PEAKS: dict[str, tuple[float, float, float]] = {
    "NVIDIA A100-SXM4-40GB": _AMPERE,
    "NVIDIA A100-SXM4-80GB": _AMPERE,
    "NVIDIA A100-PCIE-40GB": _AMPERE,
    "NVIDIA A100 80GB PCIe": _AMPERE,
    "NVIDIA H100 80GB HBM3": _SXM,
    "NVIDIA H100 PCIe": (756.0, 378.0, 51.0),
    "NVIDIA H100 NVL": (835.5, 417.5, 60.0),
    "NVIDIA H200": _SXM,
    "NVIDIA H200 NVL": (835.5, 417.5, 60.0),
    "NVIDIA GH200 480GB": _SXM,
    "NVIDIA L4": (121.0, 60.5, 30.3),
    "NVIDIA L40S": (362.0, 183.0, 91.6),
}


@dataclass(frozen=True)
class Peak:
    """The peak of one device, and the source of the figure."""

    tflops: float
    source: str


def peak(trainer: TrainerConfig, device: torch.device) -> Peak | None:
    """The peak that MFU is relative to; None if unknown, as for every CPU."""
    if trainer.peak_tflops is not None:
        return Peak(trainer.peak_tflops, "trainer.peak_tflops")
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return known_peak(name, trainer.precision, torch.backends.cuda.matmul.fp32_precision == "tf32")


def known_peak(name: str, precision: str, tf32: bool) -> Peak | None:
    """The data sheet's peak for a GPU of this name."""
    if name not in PEAKS:
        return None
    column = 0 if precision != "float32" else 1 if tf32 else 2
    kind = ("bfloat16 and float16", "tf32", "float32")[column]
    return Peak(PEAKS[name][column], f"data sheet of {name}, dense {kind}")


def per_token(cfg: TrainConfig, task: Task, model: nn.Module, batch: Batch) -> float | None:
    """FLOPs per token of one forward and backward pass over ``batch``; None for a batch without tokens.

    Runs a copy of the unwrapped ``model`` eagerly, so that gradients, DDP's hooks and the RNG state of training are
    untouched. The result is used for all batches: exact if they have one shape, an estimate if their lengths, and with
    them padding and the share of attention, differ.
    """
    if batch.tokens == 0:
        return None
    copied = copy.deepcopy(model)
    device = next(copied.parameters()).device
    with silence(), rng.isolated(cfg.seed, device), FlopCounterMode(display=False) as counter:
        with autocast(cfg.trainer.precision, device):
            loss, _ = task.loss(copied, to_device(batch, device), None)
        loss.backward()
    return counter.get_total_flops() / batch.tokens
