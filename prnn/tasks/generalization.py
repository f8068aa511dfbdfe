"""Generalisation of a model of algorithmic patterns to larger sizes, and a visualisation of its memories.

T: time steps, B: rows of sequences, V: characters, S: memories, N: cells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from prnn.data.algorithmic import Problem, Rows
from prnn.nn import ListRNN, StackRNN
from prnn.ops.memory import Memories
from prnn.task import State

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PIECE, ROWS = 1000, 512  # maximum time steps and rows of one call of the model
CELLS_SHOWN, MEMORIES_SHOWN = 8, 4
MOSTLY = 0.9  # fraction of a size's sequences for ``right_to``


@dataclass(frozen=True)
class Outcome:
    """The fraction of correct sequences of each size."""

    sizes: list[int]
    right: list[float]

    def figures(self) -> dict[str, float]:
        """``solved``: the fraction of sizes with every sequence correct; ``solved_to``: the size up to which all are, 0
        if none is; ``right``: the mean accuracy; ``right_to``: the size up to which at least nine in ten of each size
        are correct.
        """
        return {
            "solved": float(np.mean([share == 1.0 for share in self.right])),
            "solved_to": self._up_to(1.0),
            "right": float(np.mean(self.right)),
            "right_to": self._up_to(MOSTLY),
        }

    def _up_to(self, least: float) -> float:
        first_miss = next((i for i, share in enumerate(self.right) if share < least), len(self.right))
        return float(self.sizes[first_miss - 1]) if first_miss else 0.0


def solve(
    predict: Callable[[Tensor, State], tuple[Tensor, State]],
    drawn: Rows,
    sizes: list[int],
    opens: bool,
    device: torch.device,
) -> Outcome:
    """Row b of ``drawn`` is a concatenation of sequences of size ``sizes[b]``, and the memories are not reset in
    between. A sequence is correct if the most probable character is correct wherever it is determined by its prefix,
    including the first one of the next sequence (``opens``): the last of a row, which has no next, is then not counted.

    This is the criterion of the paper's code, except that there the memories are carried across sizes as well.

    ``predict`` maps characters [T,B] and a state to the most probable next ones [T,B] and the final state.
    """
    predicted = np.empty_like(drawn.targets)
    for first in range(0, len(sizes), ROWS):
        rows, state = slice(first, first + ROWS), None
        for start in range(0, len(drawn.inputs), PIECE):
            piece = np.ascontiguousarray(drawn.inputs[start : start + PIECE, rows])
            following, state = predict(torch.from_numpy(piece).to(device), state)
            predicted[start : start + PIECE, rows] = following.cpu().numpy()
    wrong = must_be_right(drawn, opens) & (predicted != drawn.targets)
    # The first character of a sequence tests whether the end of the preceding one was detected.
    number = np.cumsum(drawn.opening, axis=0) - drawn.opening
    right: dict[int, list[bool]] = {}
    for b, size in enumerate(sizes):
        counted = int(drawn.opening[:, b].sum()) + (not opens)
        missed = {*number[wrong[:, b], b].tolist()}
        right.setdefault(size, []).extend(i not in missed for i in range(counted))
    return Outcome(list(right), [float(np.mean(each)) for each in right.values()])


def must_be_right(drawn: Rows, opens: bool) -> np.ndarray:
    """[T,B]: whether the character is determined by its prefix."""
    return drawn.known | drawn.opening if opens else drawn.known


def draw_sizes(outcomes: dict[str, Outcome], trained_to: int) -> Figure:
    """Plot the fraction of correct sequences by size, beyond the training sizes (the paper's figure 3)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for (label, outcome), style in zip(outcomes.items(), ("o-", "s--"), strict=False):
        axes.plot(outcome.sizes, [100 * share for share in outcome.right], style, markersize=3, label=label)
    axes.axvspan(
        axes.get_xlim()[0], trained_to + 0.5, color="0.92", label=f"training sizes: up to {trained_to}", zorder=0
    )
    axes.set(xlabel="size n", ylabel="correct sequences, %", ylim=(-3, 103))
    axes.margins(x=0.01)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    return figure


class Traced(NamedTuple):
    """The trace of a sequence: next-character probabilities [T,V], actions [T,S], memory contents [T,N,S]."""

    probabilities: np.ndarray
    taken: np.ndarray
    cells: np.ndarray


def trace(
    network: StackRNN | ListRNN, decoder: nn.Linear, problem: Problem, drawn: Rows, device: torch.device
) -> Traced:
    """The trace of a network on ``drawn``, which has one row, with hard actions."""
    inputs = torch.from_numpy(drawn.inputs).to(device)
    x = torch.nn.functional.one_hot(inputs, len(problem.alphabet)).to(decoder.weight.dtype)
    output, contents, actions = network.trace(x, rounds=True)
    probabilities = decoder(output)[:, 0].softmax(-1).detach().cpu().numpy()
    return Traced(probabilities, actions[:, :-1, 0].argmax(1).cpu().numpy(), contents[:, :, 0].cpu().numpy())


def draw_memories(traced: Traced, kind: Memories, problem: Problem, drawn: Rows) -> Figure:
    """The paper's figure of a sequence: predictions, actions of each memory, and contents of the most active ones."""
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    probabilities, taken, cells = traced
    names = ("left", "right", "insert") if kind.list else ("push", "pop", "no-op")[: kind.actions]
    changes = (taken[1:] != taken[:-1]).sum(0)  # a memory with a constant action is unused
    busiest = np.argsort(-changes, kind="stable")[:MEMORIES_SHOWN]
    shown = sorted(s for s in busiest.tolist() if changes[s]) or [0]
    T, S = taken.shape

    figure = Figure(figsize=(max(7.0, 0.22 * T + 2), 2.6 + 0.16 * S + 1.1 * len(shown)), layout="constrained")
    heights = [1.0, 0.16 * S + 0.3, *[1.1] * len(shown)]
    top, acts, *stacks = figure.subplots(2 + len(shown), 1, sharex=True, height_ratios=heights)
    steps = np.arange(T)
    known = must_be_right(drawn, problem.opens)[:, 0]
    right = probabilities.argmax(1) == drawn.targets[:, 0]
    colours = np.where(~known, "lightgrey", np.where(right, "tab:green", "tab:red"))
    top.bar(steps, probabilities[steps, drawn.targets[:, 0]], color=colours)
    top.set_ylim(0, 1)
    top.set_ylabel("P(next)")
    top.set_title(
        "probability of the next character: green, determined and correct; red, determined and wrong; grey, random",
        fontsize=8,
    )
    top.tick_params(labelbottom=False)
    palette = ["#2a6fbb", "#f0b429", "#dddddd"][: len(names)]
    acts.imshow(taken.T, aspect="auto", cmap=ListedColormap(palette), vmin=0, vmax=len(names) - 1, interpolation="none")
    acts.set_ylabel("memory")
    acts.set_yticks(range(S))
    acts.tick_params(labelsize=6, labelbottom=False)
    acts.legend(
        handles=[Patch(color=colour, label=name) for colour, name in zip(palette, names, strict=True)],
        loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8,
    )  # fmt: skip
    low = max(0, cells.shape[1] // 2 - CELLS_SHOWN // 2) if kind.list else 0
    for axes, s in zip(stacks, shown, strict=True):
        image = axes.imshow(
            cells[:, low : low + CELLS_SHOWN, s].T, aspect="auto", cmap="viridis", vmin=kind.empty, vmax=1,
            interpolation="none",
        )  # fmt: skip
        axes.set_ylabel(f"{'list' if kind.list else 'stack'} {s}\ncell", fontsize=8)
        axes.set_yticks(range(0, CELLS_SHOWN, 2), range(low, low + CELLS_SHOWN, 2))
        axes.tick_params(labelsize=6, labelbottom=False)
    figure.colorbar(image, ax=stacks, label=f"value ({kind.empty:g}: empty)", fraction=0.02)
    stacks[-1].set_xticks(steps, [problem.alphabet[i] for i in drawn.inputs[:, 0]], fontsize=8, family="monospace")
    stacks[-1].tick_params(labelbottom=True)
    stacks[-1].set_xlabel("character read")
    return figure
