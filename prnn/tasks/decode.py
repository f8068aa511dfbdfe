"""Decoding from a model that predicts the next token: sampling, greedy and beam search, stop strings.

The model is a step function: from the last token of each of N sequences and their state to the logits [N, V] of the
next token and the new state. The state is a tensor with the sequences along its dimension 1, or nested tuples and
dictionaries of such tensors (``select_rows``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from prnn.data.text import Decoder
from prnn.errors import UserError
from prnn.task import State, map_state

MOST_BEAMS = 1000  # of a search: more are of no use, and may not fit into memory
MOST_TOKENS = 10_000_000  # of a text, generated one by one: minutes for a small model
MOST_LENGTH_PENALTY = 10.0  # a length to a higher power would overflow a float

Step = Callable[[Tensor, State], tuple[Tensor, State]]  # (tokens [N] int64, state) -> (logits [N, V], state)


@dataclass(frozen=True)
class Decoding:
    """How to choose the next tokens."""

    length: int = 500  # tokens to generate
    temperature: float = 1.0  # the logits are divided by it: below 1 the distribution is sharper; 0: as greedy
    top_k: int = 0  # sample from the k most probable tokens only; 0: from all
    top_p: float = 1.0  # sample from the smallest set of most probable tokens with total probability p
    greedy: bool = False  # always the most probable token
    beam: int = 0  # beam search of this width for the most probable continuation; 0: none
    seed: int | None = None  # of a separate generator; None: random each time
    stop: str = ""  # end before this string first appears; "": run to the full length

    def validate(self, prefix: str = "") -> None:
        """Raise ``UserError`` for a setting out of range; ``prefix`` goes before the name (``"task."``)."""
        rules = (
            ("length", 0 <= self.length <= MOST_TOKENS, f"at least 0 and at most {MOST_TOKENS:,}"),
            (
                "temperature",
                0 <= self.temperature < math.inf,
                "at least 0 (0: the most probable token, as greedy=true)",
            ),
            ("top_k", 0 <= self.top_k < 1 << 63, "at least 0 (0: among all tokens) and below 2^63"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("beam", 0 <= self.beam <= MOST_BEAMS, f"from 0 (no beam search) to {MOST_BEAMS}"),
            ("seed", self.seed is None or 0 <= self.seed < 1 << 63, "null or from 0 to 2^63 - 1"),
        )
        for name, holds, expected in rules:
            if not holds:
                raise UserError(f"{prefix}{name}={getattr(self, name)} must be {expected}.")
        if self.greedy and self.beam:
            raise UserError(f"{prefix}greedy=true and {prefix}beam={self.beam} exclude each other: give one of them.")


@dataclass(frozen=True)
class Score:
    """The log-likelihood of a text under a model."""

    nats: float  # log-probability of the text after its prompt
    tokens: int  # predictions: characters, bytes or words
    characters: int

    @property
    def bits_per_character(self) -> float:
        return -self.nats / math.log(2) / self.characters

    @property
    def perplexity(self) -> float:
        """Per token; the exponent is clamped, so that it does not overflow."""
        return math.exp(min(-self.nats / self.tokens, 700.0))


@runtime_checkable
class TextTask(Protocol):
    """A task whose model generates text, for ``prnn-sample``."""

    unit: str

    def generate(self, model: nn.Module, device: torch.device, prompt: str | None, decoding: Decoding) -> Iterator[str]:
        """The text after ``prompt``, in pieces, as it is generated; None: without a prompt."""

    def score(self, model: nn.Module, device: torch.device, text: str, prompt: str | None) -> Score:
        """The probability of ``text`` after ``prompt``."""


@runtime_checkable
class TranslatingTask(Protocol):
    """A task whose model maps a line to a line; ``prnn-sample`` reads the lines from stdin."""

    def translate(
        self,
        model: nn.Module,
        device: torch.device,
        lines: Iterable[str],
        beam: int | None = None,
        length_penalty: float | None = None,
    ) -> Iterator[str]:
        """Yield the translation of each of ``lines`` before reading the next one; that of an empty line is empty.

        ``beam`` is the width of the search, 1: greedy. None: as in the run's configuration.
        """


@dataclass(frozen=True)
class Hypothesis:
    """A finished sequence of the beam; ``log_prob`` in nats."""

    tokens: tuple[int, ...]
    log_prob: float
    score: float = field(default=0.0)  # log_prob / len(tokens) ** length_penalty, for ranking


def probabilities(logits: Tensor, decoding: Decoding) -> Tensor:
    """Logits [V] -> the probabilities [V] to sample from, float64 on the CPU."""
    logits = logits.detach().to("cpu", torch.float64)
    if not logits.max().isfinite():  # NaN is the largest where there is one
        raise UserError("the model's outputs are not finite numbers: they cannot be sampled from.")
    if decoding.greedy or not decoding.temperature:
        return torch.nn.functional.one_hot(logits.argmax(), len(logits)).double()
    # The maximum is subtracted first, so that no temperature, however small, causes an overflow.
    ordered, order = ((logits - logits.max()) / decoding.temperature).sort(descending=True, stable=True)
    kept = ordered.softmax(0)
    if decoding.top_k:
        kept[decoding.top_k :] = 0
    # A token is kept if the preceding ones do not reach top_p of the mass left by top_k.
    kept = kept / kept.sum()
    if decoding.top_p < 1:
        kept[1:][kept.cumsum(0)[:-1] >= decoding.top_p] = 0
    return torch.zeros_like(kept).scatter_(0, order, kept / kept.sum())


def sample(step: Step, logits: Tensor, state: State, decoding: Decoding) -> Iterator[int]:
    """Yield ``decoding.length`` tokens, one at a time; ``logits`` [1, V] are those of the first.

    Uses a separate generator on the CPU: a seed gives the same text on every device that computes the same logits, and
    torch's global generator is not affected.
    """
    generator = torch.Generator()
    if decoding.seed is None:
        generator.seed()
    else:
        generator.manual_seed(decoding.seed)
    for i in range(decoding.length):
        token = torch.multinomial(probabilities(logits[0], decoding), 1, generator=generator)
        yield int(token)
        if i + 1 < decoding.length:
            logits, state = step(token.to(logits.device), state)


def beam_search(
    step: Step,
    logits: Tensor,
    state: State,
    length: int,
    width: int,
    end: int | None = None,
    length_penalty: float = 0.0,
) -> list[Hypothesis]:
    """The ``width`` best sequences of the search, best first; ``logits`` [1, V] are those of the first token.

    A sequence is finished by the token ``end`` (which it includes) or at ``length`` tokens. ``length_penalty`` 0 ranks
    by probability, which favours short sequences; 1 by log-probability per token.
    """
    return beam_searches(step, logits, state, [length], width, end, length_penalty)[0]


def beam_searches(
    step: Step,
    logits: Tensor,
    state: State,
    lengths: Sequence[int],
    width: int,
    end: int | None = None,
    length_penalty: float = 0.0,
) -> list[list[Hypothesis]]:
    """Batched ``beam_search`` for N prompts, with logits [N, V] and a length each; one call of ``step`` for all.

    What ``step`` needs of a sequence's prompt is part of its state.
    """
    beams = [_Beam(length, width, end, length_penalty) for length in lengths]
    growing, rows = list(beams), [1] * len(beams)
    while True:
        kept, first = [], 0
        for beam, beam_logits, count in zip(growing, logits.split(rows), rows, strict=True):
            kept.append(beam.grow(beam_logits) + first)
            first += count
        growing = [beam for beam, indices in zip(growing, kept, strict=True) if len(indices)]
        rows = [len(indices) for indices in kept if len(indices)]
        if not growing:
            return [beam.finished for beam in beams]
        last = torch.cat([beam.sequences[:, -1] for beam in growing])
        state = select_rows(state, torch.cat(kept).to(logits.device))
        logits, state = step(last.to(logits.device), state)


class _Beam:
    """The search for one prompt: its R unfinished sequences of I tokens, and the best finished ones."""

    def __init__(self, length: int, width: int, end: int | None, length_penalty: float) -> None:
        self.length, self.width, self.end, self.length_penalty = length, width, end, length_penalty
        self.finished = [] if length else [Hypothesis((), 0.0)]  # best first
        self.sequences = torch.empty(1, 0, dtype=torch.long)  # [R, I]
        self.totals = torch.zeros(1, dtype=torch.float64)  # [R], log-probabilities

    def grow(self, logits: Tensor) -> Tensor:
        """Extend by one token; logits [R, V]. Returns the parent row of each surviving sequence; empty: done."""
        if not self.length:
            return torch.empty(0, dtype=torch.long)
        candidates = self.totals[:, None] + logits.detach().to("cpu", torch.float64).log_softmax(-1)
        # Twice the width: even if half of them end here, `width` sequences survive.
        best, where = candidates.flatten().topk(min(2 * self.width, candidates.numel()))
        rows, tokens = where // candidates.shape[1], where % candidates.shape[1]
        grown = torch.cat([self.sequences[rows], tokens[:, None]], dim=1)
        size = grown.shape[1]
        at_end = torch.zeros_like(tokens, dtype=torch.bool) if self.end is None else tokens == self.end
        # An end counts only among the `width` best candidates, so that a beam of one is greedy search.
        ended = at_end & (torch.arange(len(tokens)) < self.width) | torch.tensor(size == self.length)
        self.finished += [
            Hypothesis(tuple(grown[j].tolist()), float(best[j]), float(best[j]) / size**self.length_penalty)
            for j in ended.nonzero().flatten().tolist()
        ]
        self.finished = sorted(self.finished, key=lambda h: -h.score)[: self.width]
        alive = (~(ended | at_end)).nonzero().flatten()[: self.width]
        # Log-probabilities only decrease, so this bounds the score of an unfinished sequence.
        if len(alive) and len(self.finished) == self.width:
            reachable = float(best[alive[0]]) / self.length**self.length_penalty
            alive = alive[:0] if reachable <= self.finished[-1].score else alive
        self.sequences, self.totals = grown[alive], best[alive]
        return rows[alive]


def select_rows(state: State, rows: Tensor) -> State:
    """The state of the sequences ``rows`` [N]."""
    return map_state(lambda part: part.index_select(1, rows), state)


def stream(step: Step, logits: Tensor, state: State, decoder: Decoder, decoding: Decoding) -> Iterator[str]:
    """Text by any of the methods, streamed in pieces; with a beam, all at the end."""
    if decoding.beam:
        tokens: Iterable[int] = beam_search(step, logits, state, decoding.length, decoding.beam)[0].tokens
    else:
        tokens = sample(step, logits, state, decoding)
    return until(_decoded(tokens, decoder), decoding.stop)


def _decoded(tokens: Iterable[int], decoder: Decoder) -> Iterator[str]:
    for token in tokens:
        yield decoder.push(token)
    yield decoder.flush()


def until(pieces: Iterable[str], stop: str) -> Iterator[str]:
    """The text of ``pieces`` before the first ``stop``, no part of which is ever yielded; "" never stops."""
    held = ""
    for piece in pieces:
        held += piece
        at = held.find(stop) if stop else -1
        if at >= 0:
            held = held[:at]
            break
        # The end of the held text may be a prefix of `stop`.
        partial = next((n for n in range(min(len(stop) - 1, len(held)), 0, -1) if held.endswith(stop[:n])), 0)
        safe = len(held) - partial
        if safe:
            yield held[:safe]
        held = held[safe:]
    if held:
        yield held
