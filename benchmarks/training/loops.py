"""A hand-written training loop, and models with torch's or prnn's recurrent layer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Loss = Callable[[nn.Module, Any, Any], tuple[Tensor, Any]]  # (model, batch, state) -> mean loss, the next state


class PlainLoop:
    """Forward, backward, clip, update, loss.item(). Keeps weights, optimizer and state across calls."""

    def __init__(self, model: nn.Module, loss: Loss, optimizer: torch.optim.Optimizer, clip: float) -> None:
        self.model, self.loss, self.optimizer, self.clip, self.state = model, loss, optimizer, clip, None

    def __call__(self, batches: Sequence[Any]) -> float:
        """Train on ``batches``; returns the seconds per step."""
        began = time.perf_counter()
        for batch in batches:
            loss, self.state = self.loss(self.model, batch, self.state)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.last_loss = loss.item()
        return (time.perf_counter() - began) / len(batches)


def with_recurrent(model: nn.Module, module: type[nn.Module]) -> nn.Module:
    """The model with its ``recurrent`` replaced by ``module`` of the same sizes and weights."""
    theirs = model.recurrent
    options = {"nonlinearity": theirs.nonlinearity} if hasattr(theirs, "nonlinearity") else {}
    recurrent = module(theirs.input_size, theirs.hidden_size, theirs.num_layers, **options)
    recurrent.load_state_dict(theirs.state_dict())
    model.recurrent = recurrent
    return model


def loss_and_gradients(model: nn.Module, loss: Loss, batch: Any) -> dict[str, Tensor]:
    """Loss and gradients from a zero state; the model's gradients are cleared."""
    value, _ = loss(model, batch, None)
    value.backward()
    results = {"loss": value.detach()} | {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return results
