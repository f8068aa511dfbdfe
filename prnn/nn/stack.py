"""Recurrent networks with differentiable stacks or lists (Joulin and Mikolov, 2015, arXiv:1503.01007).

Shapes: T time steps, B batch, I input size, H hidden size; S memories of N cells each, K cells of each are read, A
actions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prnn.ops.memory import Memories, Operands, head_of, memory_recurrence, steps

SIGMOID_OF_NORMAL = 0.2083  # the standard deviation of the sigmoid of a standard normal number
SATURATED = 100.0  # its sigmoid is 1
FLIPPED = 1000.0  # what a flip adds to the logit of a value, or takes away: beyond all that a network has there

# h [1,B,H] and the memories [N,B,S]; the batch is dimension 1 of both
State = tuple[Tensor, Tensor]
PARAMETERS = ("weight_ih", "weight_hh", "weight_read", "weight_act")
InitStd = float | Mapping[str, float]
Draw = Callable[..., Tensor]  # random numbers of a shape, on a device


def _check_not_negative(**given: float) -> None:
    for name, value in given.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be a number of at least 0, got {value}")


def _signs(share: float, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """SATURATED or -SATURATED in this share of the places, 0 elsewhere."""
    signs = torch.randint(2, shape, device=device) * 2 - 1
    return signs * SATURATED * (torch.rand(shape, device=device) < share)


class _MemoryRNN(nn.Module):
    """The base of StackRNN and ListRNN; the equations are in ``prnn.ops.memory``.

    ``forward(input, state=None, rounds=False, noise=0.0, value_noise=0.0, action_noise=0.0, flips=0.0)`` takes input
    [T,B,I] and the state of an earlier call (None: h is 0 and the memories are empty), and returns output [T,B,H] and
    the final state. With ``rounds`` the actions are hard (each memory's most probable one), as in the paper at test
    time, without a gradient.

    Four kinds of noise, for training, are drawn from torch's generator. Three are standard deviations before the
    sigmoid or the softmax. ``noise``, on the hidden layer, makes its units nearly 0 or 1. ``value_noise``, on the
    pushed values, makes those nearly 0 or 1, so that a cell cannot hold several digits as one number. ``action_noise``
    makes actions nearly 0 or 1: little is lost by rounding, and the memories do not drift in sequences longer than
    those in training. If it is large from the beginning nothing is learned: let it rise. ``flips`` is the probability
    that a pushed value is replaced by 0 or 1: what is read and pushed again in every step is soon lost, what stays in a
    stack is not. These three are computed by further hidden units: S for values, S*A for actions, S for flips, and one.

    Parameters, without biases as in the paper and drawn from N(0, ``init_std``), a number, or one for each parameter
    by name: weight_ih [H,I] (U), weight_hh [H,H] (R; with ``recurrent`` only), weight_read [H,S*K] (P), weight_act
    [S*A+S,H]: a row for each action of each memory (A), followed by one for each memory's pushed value (D).
    """

    kind: Memories

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        memories: int,
        depth: int,
        capacity: int,
        recurrent: bool,
        kind: Memories,
        init_std: InitStd,
    ) -> None:
        super().__init__()
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "memories": memories, "depth": depth}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        head = head_of(capacity, kind)
        if capacity < head + depth:
            raise ValueError(f"a capacity of {capacity} cells cannot be read {depth} deep from cell {head} on")
        self.input_size, self.hidden_size, self.memories = input_size, hidden_size, memories
        self.depth, self.capacity, self.recurrent, self.kind = depth, capacity, recurrent, kind
        self.weight_ih = nn.Parameter(torch.empty(hidden_size, input_size))
        self.weight_hh = nn.Parameter(torch.empty(hidden_size, hidden_size)) if recurrent else None
        self.weight_read = nn.Parameter(torch.empty(hidden_size, memories * depth))
        self.weight_act = nn.Parameter(torch.empty(memories * (kind.actions + 1), hidden_size))
        self.init_std = dict(init_std) if isinstance(init_std, Mapping) else dict.fromkeys(PARAMETERS, init_std)
        if self.init_std.keys() != set(PARAMETERS):
            raise ValueError(f"init_std must be one number, or one for each of {', '.join(PARAMETERS)}, got {init_std}")
        for std in self.init_std.values():
            _check_not_negative(init_std=std)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every parameter from N(0, init_std).

        The paper's code has 0.1. With torch.nn's U(-1/sqrt(H), 1/sqrt(H)) and no biases, all units start near 0.5, all
        actions near uniform, and all pushed values nearly equal: memorization was then not learned at all. Counting is
        learned from 0.1 and from 0.5; addition by more seeds where units respond to their input from the start and
        actions are near uniform: weight_ih 2, weight_read 1, weight_act 0.2 (benchmarks/NOTES.md).
        """
        for name, parameter in self.named_parameters():
            nn.init.normal_(parameter, std=self.init_std[name])

    def empty_state(self, input: Tensor) -> State:
        """h [1,B,H] of zeros and empty memories [N,B,S] for input [T,B,I]."""
        B, weight = input.shape[1], self.weight_act
        memory = torch.full(
            (self.capacity, B, self.memories), self.kind.empty, dtype=weight.dtype, device=weight.device
        )
        return weight.new_zeros(1, B, self.hidden_size), memory

    def forward(
        self,
        input: Tensor,
        state: State | None = None,
        rounds: bool = False,
        noise: float = 0.0,
        value_noise: float = 0.0,
        action_noise: float = 0.0,
        flips: float = 0.0,
    ) -> tuple[Tensor, State]:
        operands = self._operands(input, state)
        _check_not_negative(noise=noise, value_noise=value_noise, action_noise=action_noise, flips=flips)
        if flips > 1:
            raise ValueError(f"flips must be a probability, at most 1, got {flips}")
        if noise:
            operands = operands._replace(gates_x=operands.gates_x + noise * torch.randn_like(operands.gates_x))
        actions, values = slice(self.memories * self.kind.actions), slice(self.memories * self.kind.actions, None)
        drawn: list[tuple[slice, Draw, float]] = []
        if value_noise:
            drawn.append((values, torch.randn, value_noise / SIGMOID_OF_NORMAL))
        if action_noise:
            drawn.append((actions, torch.randn, action_noise / SIGMOID_OF_NORMAL))
        if flips:
            drawn.append((values, partial(_signs, flips), 2 * FLIPPED))
        if drawn:
            operands = self._with_noise(operands, drawn)
        with torch.autocast(input.device.type, enabled=False):  # the memories' contents must not be rounded
            output, memory = memory_recurrence(operands, self.kind._replace(rounds=rounds), fresh=state is None)
        output = output[..., : self.hidden_size]
        return output, (output[-1:], memory)

    def _with_noise(self, operands: Operands, noise: list[tuple[slice, Draw, float]]) -> Operands:
        """For each (rows, draw, scale) add scale * (sigmoid(x) - 0.5), x from ``draw``, to what these rows of
        weight_act give: by a further hidden unit for each row, on which nothing else depends, and by one that is 1 and
        takes the mean away. The sigmoid of a normal number is itself nearly normal, within 2.4 deviations.
        """
        x, act = operands.gates_x, operands.weight_act
        eye = torch.eye(len(act), dtype=x.dtype, device=x.device)
        of_rows = torch.cat([eye[:, rows] * scale for rows, _, scale in noise], 1)
        drawn = [draw((*x.shape[:2], eye[:, rows].shape[1]), device=x.device).to(x.dtype) for rows, draw, _ in noise]
        one, more = x.new_full((*x.shape[:2], 1), SATURATED), of_rows.shape[1] + 1
        wider = torch.nn.functional.pad
        return operands._replace(
            gates_x=torch.cat([x, *drawn, one], 2),
            weight_hh=None if operands.weight_hh is None else wider(operands.weight_hh, (0, more, 0, more)),
            weight_read=wider(operands.weight_read, (0, 0, 0, more)),
            weight_act=torch.cat([act, of_rows, -0.5 * of_rows.sum(1, keepdim=True)], 1),
            h0=wider(operands.h0, (0, more)),
        )

    @torch.no_grad()
    def trace(self, input: Tensor, state: State | None = None, rounds: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """The memories at every step: output [T,B,H], the memories after each step [T,N,B,S], and [T,A+1,B,S] the
        weight of each action and, last, the candidate value v.
        """
        operands, kind = self._operands(input, state), self.kind._replace(rounds=rounds)
        with torch.autocast(input.device.type, enabled=False):
            traces = zip(*steps(operands, kind), strict=True)
        output, memories, actions = (torch.stack(parts) for parts in traces)
        return output, memories, actions

    def _operands(self, input: Tensor, state: State | None) -> Operands:
        if input.dim() != 3 or input.shape[2] != self.input_size or input.shape[0] == 0:
            raise ValueError(f"input must be [T,B,{self.input_size}] with T at least 1, got {list(input.shape)}")
        h, memory = self.empty_state(input) if state is None else state
        if memory.shape != (self.capacity, input.shape[1], self.memories):
            expected = f"[{self.capacity},{input.shape[1]},{self.memories}]"
            raise ValueError(f"the state's memories must be {expected}, got {list(memory.shape)}")
        gates_x = (input @ self.weight_ih.t()).to(memory.dtype)  # the dtypes differ under autocast
        return Operands(gates_x, self.weight_hh, self.weight_read, self.weight_act, h[0], memory)

    def __prepare_scriptable__(self) -> nn.Module:
        return import_module("prnn.nn.conversion").scriptable(self)  # which says why not

    def extra_repr(self) -> str:
        recurrent = ", recurrent=True" if self.recurrent else ""
        return (
            f"{self.input_size}, {self.hidden_size}, {self.memories}, depth={self.depth}, capacity={self.capacity}"
            f"{recurrent}"
        )


class StackRNN(_MemoryRNN):
    """A sigmoid hidden layer that reads the top ``depth`` cells of ``stacks`` stacks and at every step mixes PUSH and
    POP, with ``no_op`` also NO-OP, on each.

    Without ``recurrent`` the stacks are its only memory (R = 0, as in the paper's algorithmic tasks). Values pushed
    beyond ``capacity`` are lost; an empty cell holds -1. ``_MemoryRNN`` describes the call.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        stacks: int = 10,
        depth: int = 2,
        capacity: int = 200,
        no_op: bool = False,
        recurrent: bool = False,
        empty: float = -1.0,
        init_std: InitStd = 0.5,
    ) -> None:
        kind = Memories(actions=3 if no_op else 2, empty=empty)
        super().__init__(input_size, hidden_size, stacks, depth, capacity, recurrent, kind, init_std)


class ListRNN(_MemoryRNN):
    """A StackRNN with ``lists`` doubly linked lists in place of stacks: the list shifts left or right under a head
    fixed in the middle of ``capacity`` cells, or a value is inserted there. ``_MemoryRNN`` describes the call.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        lists: int = 5,
        depth: int = 2,
        capacity: int = 200,
        recurrent: bool = False,
        empty: float = -1.0,
        init_std: InitStd = 0.5,
    ) -> None:
        kind = Memories(actions=3, list=True, empty=empty)
        super().__init__(input_size, hidden_size, lists, depth, capacity, recurrent, kind, init_std)


def memories_of(module: nn.Module, state: Any) -> StackRNN | ListRNN | None:
    """The network with memories whose state is ``state``, the module's, (h, memory): its only recurrent one."""
    found = [each for each in module.modules() if isinstance(each, (nn.RNNBase, StackRNN, ListRNN))]
    is_pair = isinstance(state, (tuple, list)) and len(state) == 2 and all(isinstance(each, Tensor) for each in state)
    return found[0] if is_pair and len(found) == 1 and isinstance(found[0], (StackRNN, ListRNN)) else None


def state_before(module: nn.Module, state: Any) -> Any:
    """A state before the first step in the form of ``state``, which the module returned: zeros, but of a network with
    memories, which are empty.
    """
    memories = memories_of(module, state)
    if memories is None:
        return pytree.tree_map(lambda each: torch.zeros_like(each) if isinstance(each, Tensor) else each, state)
    return memories.empty_state(state[0])  # h is [1,B,H]
