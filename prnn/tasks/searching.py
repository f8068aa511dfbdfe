"""Batching, beam search and attention heat maps for ``Seq2Seq``.

S: source steps, T: target steps, N: sequences or sentences, V: target vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from prnn.data.bucketing import padded
from prnn.data.parallel_text import BOS, EOS, PAD, UNK
from prnn.nn.seq2seq import Seq2Seq
from prnn.task import Batch, State
from prnn.tasks.decode import beam_searches

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGEST_INCHES = 30.0  # of a picture's sides

Tokens = tuple[np.ndarray, np.ndarray]  # of a source and of its target, both without BOS and EOS


def source_tensors(sources: Sequence[np.ndarray], device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Source tokens [S,N], each sentence between ``BOS`` and ``EOS``, and their lengths [N].

    The decoder attends to ``BOS`` at the beginning and to ``EOS`` at the end of a translation.
    """
    marked = [np.concatenate([[BOS], source, [EOS]]) for source in sources]
    lengths = torch.tensor([len(source) for source in marked], device=device)
    return torch.from_numpy(padded(marked, PAD)).to(device), lengths


def make_batch(pairs: Sequence[Tokens]) -> Batch:
    """Sources, their lengths, decoder inputs (``BOS`` first) and targets (``EOS`` last)."""
    source, lengths = source_tensors([source for source, _ in pairs])
    inputs = padded([np.concatenate([[BOS], target]) for _, target in pairs], PAD)
    targets = padded([np.concatenate([target, [EOS]]) for _, target in pairs], PAD)
    count = sum(len(target) + 1 for _, target in pairs)
    tensors = {"inputs": torch.from_numpy(inputs), "targets": torch.from_numpy(targets)}
    return Batch({"source": source, "lengths": lengths, **tensors}, count=count, tokens=count)


@torch.no_grad()
def search(
    model: Seq2Seq, sources: Sequence[np.ndarray], longest: Sequence[int], width: int, length_penalty: float
) -> list[tuple[int, ...]]:
    """The best translation of each source, ``EOS`` included, of at most ``longest`` tokens.

    ``UNK`` is excluded, since it is never correct. ``width`` 1 is greedy: it takes the most probable token until that
    is ``EOS``, whatever ``length_penalty`` is.
    """
    device = model.output.weight.device
    training = model.training
    model.eval()  # the encoder has dropout too
    memory, first = model.encode(*source_tensors(sources, device))

    def step(tokens: Tensor, state: State) -> tuple[Tensor, State]:
        decoder_state, sentence = state  # sentence [1,N]: the index of each sequence's source
        logits, decoder_state, _ = model.decode(tokens[None], decoder_state, memory.rows(sentence[0]))
        logits[..., [PAD, UNK, BOS]] = -torch.inf  # never generated
        return logits[0], (decoder_state, sentence)

    begin = torch.full((len(sources),), BOS, device=device)
    logits, state = step(begin, (first, torch.arange(len(sources), device=device)[None]))
    # Without a length penalty no later hypothesis can outrank the first one that a beam of one finishes.
    beams = beam_searches(step, logits, state, longest, width, EOS, length_penalty if width > 1 else 0.0)
    model.train(training)
    return [beam[0].tokens for beam in beams]


@torch.no_grad()
def attention_of(model: Seq2Seq, source: np.ndarray, target: Sequence[int]) -> Tensor:
    """The attention weights [T,S+2] for ``target``, including the source's ``BOS`` and ``EOS``."""
    device = model.output.weight.device
    training = model.training
    model.eval()
    memory, state = model.encode(*source_tensors([source], device))
    inputs = torch.tensor([BOS, *target[:-1]], device=device)
    _, _, weights = model.decode(inputs[:, None], state, memory)
    model.train(training)
    assert weights is not None
    return weights[0].float().cpu()


def heat_map(weights: Tensor, source: Sequence[str], target: Sequence[str]) -> Figure:
    """A heat map of attention weights [T,S]: a row for each target word, a column for each source word."""
    from matplotlib.figure import Figure

    width, height = min(2.5 + 0.42 * len(source), LARGEST_INCHES), min(1.8 + 0.36 * len(target), LARGEST_INCHES)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(weights.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    upright = all(len(word) <= 2 for word in source)
    axes.set_xticks(range(len(source)), source, rotation=0 if upright else 60, ha="center" if upright else "left")
    axes.set_yticks(range(len(target)), target)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.tick_params(length=0)
    axes.set_xlabel("source")
    axes.set_ylabel("target")
    figure.colorbar(image, label="attention", shrink=0.8)
    return figure
