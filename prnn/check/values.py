"""The tensors of one call, what comes out of it with every gradient, and how far two such results are apart.

Shapes: T steps, B batch, I input size, H hidden size, D directions, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

Results = dict[str, Tensor]
Outputs = tuple[Tensor, dict[str, Tensor]]  # the output [T,B,D*H], and the final states by name
Run = Callable[[nn.Module, "Given"], Outputs]
Loss = Callable[[Tensor, Mapping[str, Tensor]], Sequence[Tensor]]  # the tensors that the loss sees
FLOOR = 1e-3  # a tensor of a smaller norm is compared as if it had this one
SHARE = 0.1  # and so is a gradient of a smaller share of the largest one's norm: it may be a sum that cancels


class NotSupported(Exception):
    """Something that a module does not offer, in words."""


@dataclass(frozen=True)
class Given:
    """The arguments of one call, time first whatever the module's layout."""

    x: Tensor  # [T,B,I]
    state: dict[str, Tensor] | None = None  # [L*D,B,H] each
    lengths: Tensor | None = None  # [B]
    resets: Tensor | None = None  # [T,B]
    inputs: dict[str, Tensor] = field(default_factory=dict)  # [T,B,H] each, the per-step inputs of a cell

    def map(self, function: Callable[[str, Tensor], Tensor]) -> Given:
        """``function(name, tensor)`` in the place of each differentiable tensor."""
        state = self.state and {name: function(f"initial {name}", each) for name, each in self.state.items()}
        inputs = {name: function(f"input {name}", each) for name, each in self.inputs.items()}
        return replace(self, x=function("x", self.x), state=state, inputs=inputs)

    def double(self) -> Given:
        """The same values in float64."""
        return self.map(lambda _, tensor: tensor.double())

    def steps(self, begin: int, end: int | None = None) -> Given:
        """Those steps alone, of a call without lengths."""
        resets = None if self.resets is None else self.resets[begin:end]
        inputs = {name: tensor[begin:end] for name, tensor in self.inputs.items()}
        return replace(self, x=self.x[begin:end], resets=resets, inputs=inputs)

    def words(self) -> str:
        """As a report names the call."""
        parts = [f"T {self.x.shape[0]}, B {self.x.shape[1]}, {'no' if self.state is None else 'an'} initial state"]
        if self.lengths is not None:
            parts.append(f"lengths {self.lengths.tolist()}")
        if self.resets is not None:
            parts.append("resets")
        return ", ".join(parts)


def padding(T: int, lengths: Tensor) -> Tensor:
    """[T,B], true at and past each sample's length."""
    return torch.arange(T).unsqueeze(1) >= lengths


def everything(output: Tensor, final: Mapping[str, Tensor]) -> list[Tensor]:
    """The loss that sees all."""
    return [output, *final.values()]


def loss_of(tensors: Sequence[Tensor]) -> Tensor:
    """A sum with different weights, in float64, so that no two gradients agree by accident."""
    total = torch.zeros((), dtype=torch.float64)
    for tensor in tensors:
        weights = torch.cos(torch.arange(tensor.numel(), dtype=torch.float64)).view(tensor.shape)
        total = total + (tensor.double() * weights).sum()
    return total


def gradients(loss: Tensor, leaves: Mapping[str, Tensor], create_graph: bool = False) -> Results:
    """The gradient of each leaf, zeros where the loss does not depend on it."""
    if not loss.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    computed = torch.autograd.grad(
        loss, list(leaves.values()), create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return dict(zip(leaves, computed, strict=True))


def results(run: Run, module: nn.Module, given: Given, loss: Loss = everything, order: int = 1) -> Results:
    """Output, final states and the gradients, by name; with ``order`` 2 also the gradients of all those gradients."""
    leaves: dict[str, Tensor] = {name: leaf for name, leaf in module.named_parameters() if leaf.requires_grad}

    def leaf(name: str, tensor: Tensor) -> Tensor:
        leaves[name] = tensor.detach().requires_grad_()
        return leaves[name]

    output, final = run(module, given.map(leaf))
    found = {"the output": output, **{f"the final {name}": tensor for name, tensor in final.items()}}
    first = gradients(loss_of(loss(output, final)), leaves, create_graph=order == 2)
    found |= {f"the gradient of {name}": grad for name, grad in first.items()}
    if order == 2:
        second = gradients(loss_of(list(first.values())), leaves)
        found |= {f"the second-order gradient of {name}": grad for name, grad in second.items()}
    return {name: tensor.detach() for name, tensor in found.items()}


def distance(computed: Results, right: Results, floor: float = FLOOR) -> tuple[float, str]:
    """The largest error relative to a tensor's norm, and which tensor has it, in words. A value that is not finite
    counts where the right one is.
    """
    largest, where = 0.0, ""
    norms = {name: tensor.double().nan_to_num(0, 0, 0).norm().item() for name, tensor in right.items()}
    for name, tensor in right.items():
        ours, exact = computed[name], tensor.double()
        kind, is_gradient, _ = name.partition("gradient of")
        alike = [norm for each, norm in norms.items() if is_gradient and each.startswith(kind + is_gradient)]
        least = max(floor, SHARE * max(alike, default=0.0))
        if ours.shape != tensor.shape:
            return torch.inf, f"{name} is {list(ours.shape)}, not {list(tensor.shape)}"
        finite = torch.isfinite(exact)
        ours, exact = ours.double()[finite], exact[finite]
        if not torch.isfinite(ours).all():
            return torch.inf, f"{name} is not finite in {(~torch.isfinite(ours)).sum()} of {ours.numel()} places"
        error = ((ours - exact).norm() / exact.norm().clamp(min=least)).item() if exact.numel() else 0.0
        if error > largest:
            largest, where = error, name
    return largest, where


def unequal(one: Results, other: Results) -> tuple[float, str]:
    """The largest difference of two results that must have the same bits, and which tensor has it."""
    largest, where = 0.0, ""
    for name, tensor in one.items():
        if tensor.shape != other[name].shape or not torch.equal(torch.isnan(tensor), torch.isnan(other[name])):
            return torch.inf, name
        difference = (tensor.double() - other[name].double()).nan_to_num().abs()
        if difference.numel() and difference.max() > largest:
            largest, where = difference.max().item(), name
    return largest, where


def flatten(state: Any) -> dict[str, Tensor]:
    """A module's state by name: its own names where it is a dictionary, else h, c, state 2, ..."""
    if isinstance(state, Mapping):
        return dict(state)
    if isinstance(state, Tensor):
        return {"h": state}
    return {("h", "c")[i] if i < 2 else f"state {i}": tensor for i, tensor in enumerate(state)}


def unflatten(tensors: dict[str, Tensor] | None, like: Any) -> Any:
    """The other way round, in the form of ``like``."""
    if tensors is None or isinstance(like, Mapping):
        return tensors
    return next(iter(tensors.values())) if isinstance(like, Tensor) else tuple(tensors.values())
