"""The loss of the classification tasks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from prnn.data.sampler import IGNORED


def summed_cross_entropy(logits: Tensor, targets: Tensor, ignored: int = IGNORED, smoothing: float = 0.0) -> Tensor:
    """Cross entropy of logits [..., V] and targets [...], summed, in nats, over all targets except ``ignored``.

    In float32 at least, even under autocast: the sum over a batch exceeds what half precision can accumulate.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, -2)
    return F.cross_entropy(logits, targets.flatten(), ignore_index=ignored, reduction="sum", label_smoothing=smoothing)
