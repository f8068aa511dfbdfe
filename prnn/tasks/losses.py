"""The loss the tasks that choose among classes share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from prnn.data.sampler import IGNORED


def summed_cross_entropy(logits: Tensor, targets: Tensor, ignored: int = IGNORED, smoothing: float = 0.0) -> Tensor:
    """Logits [..., V] and targets [...] to the sum, in nats, over all targets but those that are ``ignored``.

    In float32 at least, under autocast too: the sum over a batch is past what half precision can add up.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, -2)
    return F.cross_entropy(logits, targets.flatten(), ignore_index=ignored, reduction="sum", label_smoothing=smoothing)
